# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`PipelineReplayEngine`: memory replay over the stages of a pipeline, with ZeRO 0 or 1 over the replicas.

Each stage has a plain DeepSpeed engine of its layers, a `models.protocol.Stage`, and executes its part of the
`ReplaySchedule`, a DeepSpeed `PipeSchedule`. DeepSpeed's `PipelineEngine` is not used, because it

* refuses `coalesce_grad_reduction`, which makes the many backwards of a rollout one reduction;
* clips by each stage's own norm at ZeRO stage 0, and keeps tied parameters, with their optimizer states, on all stages;
* sends and receives by blocking calls, which deadlock on gloo when two stages send to each other.

What makes it exact, beside what `memformer/engine/base.py` says: the decoder's gradient of the encoder's
output is handed to the encoder's backward unscaled and undivided; the gradient of the shared embedding is added up on
its owner before the reduction over the replicas; the norm is summed over all stages, and a step is skipped by all or
none.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import torch

from memformer.config.schema import Config
from memformer.engine.base import Engine, LaneGroup, StepReport
from memformer.engine.fragments import FragmentReader
from memformer.models.protocol import MemoryModel, Stage
from memformer.parallel.activation_checkpointing import replay_buffer
from memformer.parallel.channels import Channels
from memformer.parallel.pipeline.executor import RolloutExecutor
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.split import lanes_of_groups, schedule_of, split_of
from memformer.parallel.pipeline.stage import StagedModel
from memformer.parallel.pipeline.traffic import SHARED, SHARED_GRADIENT, sharing_stages
from memformer.processes.group import World
from memformer.processes.spans import span
from memformer.replay import Carry, Rollout, RolloutResult
from memformer.replay.random_state import mix_seed, segment_seeds


class PipelineReplayEngine(Engine):
    """Trains a model that is spread over stages, by whole rollouts; its results are complete on every stage.

    Args:
        model: The whole model, equal on all processes; this stage's part of it is kept.
        config: The run, with parallel.pipeline above 1.
        world: This process among all.
        precision: fp32, bf16 or fp16 (resolved).
    """

    def __init__(self, model: MemoryModel, config: Config, world: World, precision: str) -> None:
        super().__init__(model, config, world, precision)
        stage, number = cast(Stage, self.module), world.mesh.pipe.rank
        # Frozen weights may be in 16 bits; what goes from layer to layer is not.
        dtype = torch.promote_types(next(self.module.parameters()).dtype, torch.float32)
        channels = Channels(world.mesh.pipe, world.mesh.pipe_back, world.device, dtype)
        self._model = StagedModel(stage, split_of(config, stage.config), number, channels)
        self._schedules: dict[tuple[int, int], ReplaySchedule] = {}

    @property
    def model(self) -> StagedModel:
        """All stages together."""
        return self._model

    def schedule(self, lanes: int, num_segments: int | None = None) -> ReplaySchedule:
        """The schedule of a rollout of that many lanes and segments; None: the most that the run has."""
        size = lanes, num_segments or self.config.data.most_segments
        if size not in self._schedules:
            self._schedules[size] = schedule_of(self.config, self.model.config, *size)
        return self._schedules[size]

    def forward(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """A part of the stage (`Stage.__call__`) with a graph, in the run's precision."""
        return self._forward(part, *inputs)  # type: ignore[no-any-return]

    def evaluate(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """The same without a graph."""
        with span("pass 1"), torch.no_grad(), self.autocast():
            return self.model.stage(part, *inputs)

    def backward(self, objective: torch.Tensor) -> None:
        """Back-propagates a scalar into this stage's gradients, which accumulate until the rollout's end."""
        self._back_propagate(objective, boundary=False)

    def rollout_backward(self, rollout: Rollout, carry: Carry, counted_tokens: float, seed: int) -> RolloutResult:
        """Accumulates one rollout's gradients over all stages and reduces them over the replicas.

        Args:
            rollout: This replica's lanes.
            carry: Their state before it.
            counted_tokens: Valid targets of all lanes of all replicas, or the sum of their weights (`counted_tokens`).
            seed: Seed of the rollout's random numbers; each replica, group of lanes, segment and stage has its own.
        """
        from memformer.parallel.pipeline.deepspeed_schedule import StageSchedule

        mesh, model = self.world.mesh, self.model
        lanes, segments = len(rollout.tokens), rollout.num_segments
        groups = self.lane_groups(rollout, carry, seed)
        schedule = self.schedule(lanes, segments)
        with segment_seeds(groups[0].seed, self.world.device) as seed_stream:

            def seed_task(micro_batch: int, segment: int, decoder: bool) -> None:
                seed_stream(self._stream(groups[micro_batch], segment, decoder))

            executor = RolloutExecutor(
                self,
                schedule,
                StageSchedule(schedule, model.number),
                [(group.rollout, self._own(group.carry)) for group in groups],
                self._denominator(counted_tokens),
                seed_task,
                self.at_segment,
                functools.partial(replay_buffer, self.config, self.world),
            )
            with self._accumulation():
                executor.run()
                self._add_shared_gradients()
        figures = mesh.pipe.sum(torch.cat([executor.segment_losses, executor.memory_gradient_squares]))
        own = [executor.final_memories[i] for i in sorted(executor.final_memories)]
        memory = model.whole_memory(torch.cat(own) if own else None, lanes)
        return self._unscaled(
            RolloutResult(
                figures[:segments], rollout.lengths.sum(dim=0), figures[segments:].sqrt(), rollout.carry(memory)
            )
        )

    def _own(self, carry: Carry) -> Carry:
        """A carry with the memory that this stage reads."""
        return dataclasses.replace(carry, memory=carry.memory[:, self.model.split.memory(self.model.number)])

    def lane_groups(self, rollout: Rollout, carry: Carry, seed: int) -> list[LaneGroup]:
        """The micro-batches of this replica; they have one seed, and the streams of their tasks are numbered."""
        lanes, data = len(rollout.tokens), self.world.mesh.data
        spans = lanes_of_groups(lanes, self.world.mesh.pipe.size, self.config.training.lanes_per_micro_batch)
        seed = mix_seed(seed, data.rank * lanes)
        return [LaneGroup(*span, rollout.lanes(*span), carry.lanes(*span), seed) for span in spans]

    def token_losses(
        self, group: LaneGroup, index: int, memory: torch.Tensor, seed_stream: Callable[[int], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `Engine`: each stage's encoder and decoder have the random streams that their tasks had."""

        def seed_part(decoder: bool) -> None:
            seed_stream(self._stream(group, index, decoder))

        with self.autocast():
            return self.model.losses(group.rollout.segment(index, group.carry), memory, seed_part)

    def _stream(self, group: LaneGroup, segment: int, decoder: bool) -> int:
        """Number of the random stream of this stage's encoder or decoder, for a group's segment."""
        task = group.start * group.rollout.num_segments + segment
        return 2 * (task * self.world.mesh.pipe.size + self.model.number) + decoder

    def step(self, learning_rate: float, beside: torch.Tensor | None = None) -> StepReport:
        """Applies the reduced gradients on all stages, or on none if their common norm is not finite."""
        report = super().step(learning_rate, beside)
        if report.applied and self._shares():
            self._refresh_copies()
        return report

    def load_parameters(self, saved: FragmentReader) -> None:
        """Puts saved parameters and optimizer states in place, whatever topology they were saved from."""
        super().load_parameters(saved)
        self._refresh_copies()

    def _add_shared_gradients(self) -> None:
        """The gradients of the copies of the token embedding go to their owner, and from there through the step."""
        copy, owner, channels = self.model.stage.copy, self.model.stage.shared, self.model.channels
        if not self._shares():
            return
        if copy is not None:
            assert copy.grad is not None
            channels.send(SHARED_GRADIENT, copy.grad, 0).wait()
            copy.grad = None
        elif owner is not None:
            received = [channels.receive(SHARED_GRADIENT, owner.shape, stage) for stage in self._copies()]
            assert owner.grad is not None
            for transfer in received:
                owner.grad.add_(transfer.wait())

    def _shares(self) -> bool:
        """Whether the token embedding, where it is here, is trained."""
        return all(each is None or each.requires_grad for each in (self.model.stage.copy, self.model.stage.shared))

    def _copies(self) -> list[int]:
        return sharing_stages(self.model.split.layout(1, 1), tied=bool(self.model.config.tied()))

    def _refresh_copies(self) -> None:
        """The owner's token embedding goes to the stages that have a copy."""
        copy, owner, channels = self.model.stage.copy, self.model.stage.shared, self.model.channels
        with torch.no_grad():
            if copy is not None:
                copy.copy_(channels.receive(SHARED, copy.shape, 0).wait())
            elif owner is not None:
                sent = [channels.send(SHARED, owner, stage) for stage in self._copies()]
                for transfer in sent:
                    transfer.wait()
