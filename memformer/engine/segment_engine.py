# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentReplayEngine`: memory replay of rollouts that several processes share, with ZeRO 0-3 over all replicas.

Every process has a whole replica of the model and a piece of each rollout of its lanes. DeepSpeed's data-parallel
processes are all replicas, whether they have other lanes or other segments of the same ones: both add their part of the
gradient of one loss, which is divided by the global count. The processes of a segment group hold the same carry of
their lanes before and after every rollout, so that all else (checkpoints, guards, evaluation) sees lanes as it does
where no rollout is shared.
"""

import contextlib

import torch

from memformer.config.schema import Config
from memformer.engine.base import LaneGroup
from memformer.engine.replay_engine import ReplayEngine
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.parallel.activation_checkpointing import replay_buffer
from memformer.parallel.channels import Channels
from memformer.parallel.segment.executor import train_pieces
from memformer.parallel.segment.schedule import SegmentSchedule
from memformer.parallel.segment.sharing import groups_of, schedule_of
from memformer.processes.group import World
from memformer.replay import Carry, Rollout, RolloutPiece, RolloutResult


class SegmentReplayEngine(ReplayEngine):
    """Trains by rollouts whose segments are spread over processes; results are complete on each of them.

    Args:
        model: The whole model, equal on all processes.
        config: The run, with parallel.segment above 1.
        world: This process among all.
        precision: fp32, bf16 or fp16 (resolved).
    """

    def __init__(self, model: MemoryModel, config: Config, world: World, precision: str) -> None:
        super().__init__(model, config, world, precision)
        self._schedules: dict[tuple[int, int], SegmentSchedule] = {}

    def schedule(self, lanes: int, segments: int) -> SegmentSchedule:
        """The schedule of a rollout of that many lanes and segments."""
        size = lanes, segments
        if size not in self._schedules:
            self._schedules[size] = schedule_of(self.config, self.model.config, *size)
        return self._schedules[size]

    def rollout_backward(self, rollout: Rollout, carry: Carry, counted_tokens: float, seed: int) -> RolloutResult:
        """Accumulates this process's part of one rollout's gradients and reduces them over all replicas.

        Args:
            rollout: The lanes of the segment group; of what this process does not train, tokens may be missing but for
                the segment before each piece and the last one.
            carry: Their state before it.
            counted_tokens: Valid targets of all lanes of all processes, or the sum of their weights (`counted_tokens`).
            seed: Seed of the rollout's random numbers; groups of lanes and segments have the streams that they have
                on one process.
        """
        axis, count = self.world.mesh.segment, rollout.num_segments
        groups = self.lane_groups(rollout, carry, seed)
        schedule = self.schedule(len(rollout.tokens), count)
        channels = Channels(
            axis, self.world.mesh.segment_back, self.world.device, carry.memory.dtype, "segment rank", ring=True
        )
        apart = family_of(self.model.config).decoder_apart
        pieces = [
            RolloutPiece(
                self,
                group.rollout,
                group.carry,
                schedule.span(axis.rank, number),
                self._accumulate,
                denominator=self._denominator(counted_tokens),
                seed=group.seed,
                buffer=replay_buffer(self.config, self.world),
                group=self.config.training.segments_per_decoder_batch if apart else None,
            )
            for number, group in enumerate(groups)
        ]
        with self._accumulation():
            after = train_pieces(
                schedule, axis.rank, pieces, [group.carry.memory for group in groups], channels, self.at_segment
            )
        self.replay_buffer_bytes = sum(piece.buffer.peak_bytes for piece in pieces)
        losses = torch.stack([piece.segment_losses for piece in pieces]).sum(0)
        squares = torch.stack([piece.squared_norms for piece in pieces]).sum(0)
        figures = axis.sum(torch.cat([losses, squares.to(losses.dtype)]))
        # Every memory is on one process: the sum with the others' zeros is that memory.
        memory = torch.zeros_like(carry.memory)
        for number, last in after.items():
            memory[groups[number].start : groups[number].stop] = last
        axis.sum(memory)
        return self._unscaled(
            RolloutResult(figures[:count], rollout.lengths.sum(0), figures[count:].sqrt(), rollout.carry(memory))
        )

    def own_segments(self, groups: list[LaneGroup], turn: int) -> list[range]:
        """As in `Engine`: by turns, each group's pieces in their order."""
        rank = self.world.mesh.segment.rank
        lanes, count = groups[-1].stop, groups[0].rollout.num_segments
        pieces = self.schedule(lanes, count).pieces
        here = (pieces.piece(rank, number) == turn for number in range(len(groups)))
        return [pieces.span(turn, count) if own else range(0) for own in here]

    def at_own_pace(self) -> contextlib.AbstractContextManager[None]:
        """As in `Engine`: under ZeRO-3 parameters are gathered before."""
        return self._gathered()

    def _spans(self, lanes: int) -> list[tuple[int, int]]:
        return groups_of(self.config, lanes)

    def _accumulate(self, objective: torch.Tensor, _: int) -> None:
        # The reduction comes after the rollout: within a task, others would wait for what this process has not sent.
        self._back_propagate(objective, boundary=False)
