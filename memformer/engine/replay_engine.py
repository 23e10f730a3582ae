# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`ReplayEngine`: memory replay on a model that lies whole on each replica, exact at every ZeRO stage."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memformer.config.schema import Config
from memformer.engine.base import Engine, LaneGroup
from memformer.engine.parallelize import wavefront_of
from memformer.models.protocol import MemoryModel
from memformer.parallel.activation_checkpointing import replay_buffer
from memformer.processes.group import World
from memformer.processes.spans import span
from memformer.replay import (
    Carry,
    DecoderGroups,
    Rollout,
    RolloutResult,
    Segment,
    bptt_backward,
    grouped_replay_backward,
    memory_replay_backward,
    windowed_replay_backward,
)
from memformer.replay.backward import Backward
from memformer.replay.random_state import mix_seed


class ReplayEngine(Engine):
    """Trains a model of any family by whole rollouts; also the `Cell` that a rollout is computed with."""

    def __init__(self, model: MemoryModel, config: Config, world: World, precision: str) -> None:
        super().__init__(model, config, world, precision)
        self._windows = _Windows(self) if config.training.wavefront_window else None

    @property
    def model(self) -> MemoryModel:
        """The model inside the engine."""
        model: Any = self.module
        return model  # type: ignore[no-any-return]

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The model's `advance` in the run's precision."""
        with span("pass 1"), self.autocast():
            return self.model.advance(segment, memory)

    def __call__(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The model's forward in the run's precision; with a graph by `_forward`."""
        if torch.is_grad_enabled():
            loss, count, next_memory = self._forward(segment, memory)
            return loss, count, next_memory
        with self.autocast():
            return self.model(segment, memory)

    def encode_and_write(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's encoder and writer in the run's precision."""
        if torch.is_grad_enabled():
            return self._forward(segment, memory, "encode")  # type: ignore[no-any-return]
        with span("pass 1"), self.autocast():
            return self.module(segment, memory, "encode")  # type: ignore[no-any-return]

    def score(self, segment: Segment, context: torch.Tensor) -> torch.Tensor:
        """The model's decoder, with a graph, in the run's precision."""
        return self._forward(segment, context, "score")  # type: ignore[no-any-return]

    def rollout_backward(self, rollout: Rollout, carry: Carry, counted_tokens: float, seed: int) -> RolloutResult:
        """Accumulates one rollout's gradients and reduces them over the processes.

        Args:
            rollout: This process's lanes.
            carry: Their state before it.
            counted_tokens: Valid targets of all lanes of all processes, or the sum of their weights (`counted_tokens`).
            seed: Seed of the rollout's random numbers; each replica and group of lanes gets its own stream.
        """
        lanes = len(rollout.tokens)
        algorithm, objectives = self._algorithm(rollout.num_segments)
        results = []
        self.replay_buffer_bytes = 0
        with self._accumulation():
            for group in self.lane_groups(rollout, carry, seed):
                buffer = replay_buffer(self.config, self.world)
                results.append(
                    algorithm(
                        group,
                        functools.partial(self._backward, objectives, group.stop == lanes),
                        denominator=self._denominator(counted_tokens),
                        buffer=buffer,
                    )
                )
                self.replay_buffer_bytes = max(self.replay_buffer_bytes, buffer.peak_bytes)
        return self._unscaled(results[0] if len(results) == 1 else _joined(results))

    def _algorithm(self, segments: int) -> tuple[Callable[..., RolloutResult], int]:
        """How a group of lanes is trained through so many segments, and how often that calls `backward`."""
        training = self.config.training
        if self._windows is not None:
            window, cell = training.wavefront_window, self._windows

            def by_windows(group: LaneGroup, backward: Backward, **given: Any) -> RolloutResult:
                return windowed_replay_backward(cell, group.rollout, group.carry, backward, window=window, **given)

            return by_windows, len(DecoderGroups(segments, window).spans)
        algorithm: Any = memory_replay_backward if training.replay == "mrbp" else bptt_backward
        objectives = segments
        if training.segments_per_decoder_batch > 1:
            spans = DecoderGroups(segments, training.segments_per_decoder_batch)
            algorithm = functools.partial(grouped_replay_backward, group=spans.group)
            objectives += len(spans.spans)

        def in_turn(group: LaneGroup, backward: Backward, **given: Any) -> RolloutResult:
            result: RolloutResult = algorithm(self, group.rollout, group.carry, backward, seed=group.seed, **given)
            return result

        return in_turn, objectives

    def lane_groups(self, rollout: Rollout, carry: Carry, seed: int) -> list[LaneGroup]:
        """The groups of this process's lanes that a rollout is trained in, each with a random stream of its own.

        Args:
            rollout: This process's lanes.
            carry: Their state before it.
            seed: Of the rollout, as in `rollout_backward`.
        """
        lanes = len(rollout.tokens)
        first = self.world.mesh.data.rank * lanes
        return [
            LaneGroup(*span, rollout.lanes(*span), carry.lanes(*span), mix_seed(seed, first + span[0]))
            for span in self._spans(lanes)
        ]

    def token_losses(
        self, group: LaneGroup, index: int, memory: torch.Tensor, seed_stream: Callable[[int], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of a group's segment computed again without a graph, with the random numbers of the training step.

        Called by all processes together (ZeRO-3 gathers parameters).
        """
        seed_stream(index)
        with torch.no_grad(), self.autocast():
            return self.model.losses(group.rollout.segment(index, group.carry), memory)

    def _spans(self, lanes: int) -> list[tuple[int, int]]:
        """(start, stop) of each group of lanes."""
        size = self.config.training.lanes_per_micro_batch or lanes
        return [(start, min(start + size, lanes)) for start in range(0, lanes, size)]

    def _backward(self, objectives: int, last_group: bool, objective: torch.Tensor, remaining: int) -> None:
        if remaining < objectives - 1:
            self.at_segment()
        self._back_propagate(objective, boundary=last_group and remaining == 0)


class _Windows:
    """`replay.WindowCell` of an engine: the model's wavefront in the run's precision.

    DeepSpeed has no part in the forward of the stages that it is for: what it does for gradients begins with them.
    """

    def __init__(self, engine: ReplayEngine) -> None:
        # What lies side by side since before the engine was made stays there: ZeRO owns the storage now.
        self._wavefront: Any = wavefront_of(engine.model, engine.config, moved=False)
        self._autocast = engine.autocast

    def advance(self, segments: Sequence[Segment], memory: torch.Tensor) -> torch.Tensor:
        """The memory behind a window."""
        with span("pass 1"), self._autocast():
            found: torch.Tensor = self._wavefront.advance(segments, memory)
            return found

    def scored(
        self, segments: Sequence[Segment], memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A window's losses, valid targets and the memory behind it, with a graph."""
        with span("segment forward"), self._autocast():
            found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._wavefront.scored(segments, memory)
            return found


def _joined(results: list[RolloutResult]) -> RolloutResult:
    """One result for groups of lanes that were replayed one after another."""
    return RolloutResult(
        torch.stack([r.segment_losses for r in results]).sum(0),
        torch.stack([r.segment_tokens for r in results]).sum(0),
        torch.stack([r.memory_gradient_norms for r in results]).norm(dim=0),
        Carry(
            torch.cat([r.carry.memory for r in results]),
            torch.cat([r.carry.tokens for r in results]),
            torch.cat([r.carry.length for r in results]),
            any(r.carry.ragged for r in results),
        ),
    )
