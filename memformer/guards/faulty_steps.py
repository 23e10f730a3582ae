# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Steps that went wrong: where the first bad number is, how unusual a loss is, and what memories are kept."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from data_pipeline import SegmentBatch
from memformer.engine.base import Engine
from memformer.processes import group
from memformer.replay import Carry, Rollout
from memformer.replay.random_state import segment_seeds


@torch.no_grad()
def lane_losses(engine: Engine, rollout: Rollout, carry: Carry, seed: int) -> torch.Tensor:
    """Mean loss of each lane in each segment, [B, T] in nats a token (0 where nothing counts), by computing it again.

    Lanes are taken in the groups of the training step, with its random numbers. After a step that was left out the
    losses are therefore those of the step, to rounding, dropout included, whatever the topology; after one that was
    applied they are those of the weights that it made. Processes that share a rollout compute its segments by turns.

    Called by all processes together (ZeRO-3 gathers parameters).
    """
    groups, axis = engine.lane_groups(rollout, carry, seed), engine.world.mesh.segment
    memory, found_BT = carry.memory, torch.zeros(rollout.lengths.shape, device=carry.memory.device)
    with engine.at_own_pace():
        for turn in range(axis.size):
            after = torch.zeros_like(memory)
            for own, span in zip(groups, engine.own_segments(groups, turn), strict=True):
                lanes, left = slice(own.start, own.stop), memory[own.start : own.stop]
                with segment_seeds(own.seed, memory.device) as seed_stream:
                    for t in span:
                        each_BS, left = engine.token_losses(own, t, left, seed_stream)
                        segment = own.rollout.segment(t, own.carry)
                        counted_B = segment.counted
                        sums_B = segment.weighted(each_BS).sum(1)
                        found_BT[lanes, t] = (sums_B / torch.where(counted_B > 0, counted_B, 1)).float()
                if span:
                    after[lanes] = left
            memory = axis.sum(after)
    return axis.sum(found_BT)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a rollout something was found; ordered by segment, then lane.

    Attributes:
        segment: Of the rollout, from 0.
        lane: Of the global batch.
        rank: Process that owns the lane.
        document: Its number in the data set.
        start: Position of the segment's first target in the document.
        loss: Of the segment, nats a token.
    """

    segment: int
    lane: int
    rank: int
    document: int
    start: int
    loss: float

    def __str__(self) -> str:
        return (
            f"segment {self.segment} of lane {self.lane} (rank {self.rank}), document {self.document} from token "
            f"{self.start}, loss {self.loss:.4g}"
        )


def first_bad(losses: torch.Tensor, batch: SegmentBatch, rank: int) -> Place | None:
    """The first segment of any lane of any process whose loss is not finite; called by all of them."""
    bad = (~losses.isfinite()).nonzero().tolist()
    return _agreed([_place(losses, batch, rank, *each) for each in bad], lambda place: (place.segment, place.lane))


def worst(losses: torch.Tensor, batch: SegmentBatch, rank: int) -> Place | None:
    """The segment with the largest loss of all processes; called by all of them."""
    lane, segment = divmod(int(losses.argmax()), losses.shape[1])
    return _agreed([_place(losses, batch, rank, lane, segment)], lambda place: (-place.loss, place.segment))


def _place(losses: torch.Tensor, batch: SegmentBatch, rank: int, lane: int, segment: int) -> Place:
    document, start = int(batch.documents[lane, segment]), int(batch.starts[lane, segment])
    return Place(segment, batch.first_lane + lane, rank, document, start, float(losses[lane, segment]))


def _agreed(places: list[Place], order: Any) -> Place | None:
    own = min(places, key=order, default=None)
    found = [place for place in group.gather(own) if place is not None]
    return min(found, key=order, default=None)


def bad_parameter(names: Sequence[str]) -> str | None:
    """The first parameter whose gradient is not finite, with the process that has it; called by all of them.

    At stage 0 gradients are looked at after their reduction, when all processes have the same.
    """
    found = [(rank, each[0]) for rank, each in enumerate(group.gather(list(names))) if each]
    if not found:
        return None
    return f"{found[0][1]} (rank {found[0][0]})" if len(found) == 1 else f"{found[0][1]} ({len(found)} ranks)"


def healed_carry(engine: Engine, before: Carry, after: Carry, losses: torch.Tensor, policy: str) -> tuple[Carry, int]:
    """What lanes go on with after a step that was skipped.

    A lane is concerned if one of its losses, or its memory, is not finite. With `reset` it gets the initial memory;
    with `keep` the memory that it has, or the one from before the step, whichever is finite.

    Returns:
        The carry, and how many of this process's lanes were concerned.
    """
    finite_memory = after.memory.isfinite().flatten(1).all(dim=1)
    concerned = ~(finite_memory & losses.isfinite().all(dim=1))
    initial = engine.initial_memory(len(concerned)).to(after.memory.dtype)
    if policy == "reset":
        memory = torch.where(concerned[:, None, None], initial, after.memory)
    else:
        earlier = torch.where(before.memory.isfinite().flatten(1).all(dim=1)[:, None, None], before.memory, initial)
        memory = torch.where(finite_memory[:, None, None], after.memory, earlier.to(after.memory.dtype))
    return dataclasses.replace(after, memory=memory), int(concerned.sum())


def spike_score(recent: Sequence[float], loss: float, window: int) -> float:
    """How many standard deviations the loss lies above the mean of the last `window` losses.

    0 while fewer than half of them are known. A standard deviation under a thousandth of the mean counts as that
    much, so that a flat curve makes no spikes.
    """
    if len(recent) < max(4, window // 2) or not math.isfinite(loss):
        return 0.0
    mean = statistics.fmean(recent)
    return (loss - mean) / max(statistics.pstdev(recent), 1e-3 * abs(mean), 1e-12)
