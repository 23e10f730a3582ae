# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What lanes read in one rollout, as arrays: without the tokens (`Reading`) or with them (`SegmentBatch`).

Shape letters: B lanes (of the batch, or of one rank's block of it), T segments, S tokens a segment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a block of lanes reads in one rollout.

    Attributes:
        step: Number of the rollout, counted from 0 at the start of the run.
        first_lane: Global number of the block's first lane.
        documents: int64 `[B, T]`, document read in the segment; -1 where the lane is idle.
        epochs: int64 `[B, T]`, epoch that this reading of the document belongs to, from 0; 0 where idle.
        starts: int64 `[B, T]`, position in the document of the segment's first target token; 0 where idle.
        lengths: int32 `[B, T]`, target tokens in the segment, 1 to S; 0 where idle. Less than S only in the last
            segment of a document: the lane's next segment begins another one.
        resets: bool `[B, T]`, true where a document begins (its start is 0): the memory is the initial one, and the
            segment before is the start token alone.
        carry_from: int64 `[B]`, -1 where the lane goes on with its own carry (or resets); otherwise the carry row
            whose memory and previous segment the lane takes over before this rollout. Only a run that was resumed
            with another number of lanes has such rollouts; see `LanePlan`.
        valid_tokens: Target tokens in the rollout over all lanes of the global batch, not only of this block.
    """

    step: int
    first_lane: int
    documents: NDArray[np.int64]
    epochs: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    resets: NDArray[np.bool_]
    carry_from: NDArray[np.int64]
    valid_tokens: int

    def block(self, lanes: slice) -> "Reading":
        """The part for these lanes, given by their place in these arrays."""
        return Reading(
            step=self.step,
            first_lane=self.first_lane + lanes.start,
            documents=self.documents[lanes],
            epochs=self.epochs[lanes],
            starts=self.starts[lanes],
            lengths=self.lengths[lanes],
            resets=self.resets[lanes],
            carry_from=self.carry_from[lanes],
            valid_tokens=self.valid_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class SegmentBatch(Reading):
    """What lanes read, with its tokens.

    Attributes:
        tokens: int32 `[B, T, S]`, the target tokens: `lengths` of them in each segment, then 0.
        loss_weights: float32 `[B, T, S]`, how much each target counts in the loss, 0 to 1 in multiples of 1/32,768, and
            0 beyond the lengths; None where no data set has weights: every target counts 1.
        trained: bool `[B, T]`, the segments that this rank trains, where others have the same lanes; None: all. What is
            no `known_segments` of it has not been read: its tokens and weights are 0.
    """

    tokens: NDArray[np.int32]
    loss_weights: NDArray[np.float32] | None = None
    trained: NDArray[np.bool_] | None = None

    @property
    def counted(self) -> float:
        """Sum of the loss weights of the segments that this rank trains, float64; without weights, their targets."""
        each = self.lengths if self.loss_weights is None else self.loss_weights.sum(axis=2, dtype=np.float64)
        return float(each.sum() if self.trained is None else each[self.trained].sum())


def known_segments(trained: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The segments of which a rank needs the tokens, bool `[B, T]`, from those that it trains.

    Beside these: the one before each, which is its context; the last, which is the next rollout's context; and the
    first, which the diagnostics of a memory read.
    """
    known: NDArray[np.bool_] = trained.copy()
    known[:, :-1] |= trained[:, 1:]
    known[:, [0, -1]] = True
    return known


def lanes_of(rank: int, world_size: int, num_lanes: int) -> slice:
    """The lanes of a data-parallel rank: contiguous blocks in the order of the ranks, equal or one lane apart.

    Raises:
        ValueError: The rank is not in the world, or there are fewer lanes than ranks.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a world of {world_size}")
    if num_lanes < world_size:
        raise ValueError(f"num_lanes is {num_lanes}, fewer than the {world_size} ranks")
    share, extra = divmod(num_lanes, world_size)
    first = rank * share + min(rank, extra)
    return slice(first, first + share + (rank < extra))


def trace_rows(reading: Reading, rank: int) -> Iterator[dict[str, Any]]:
    """One JSON-serialisable row for each segment that is read, lane by lane; an idle segment has none.

    `step` is the number of the optimizer step that trains on the reading, counted from 1 as in `metrics.jsonl`;
    `lane` is the global lane. Tokens `start .. start + length` of the document are the segment's targets.
    """
    for lane, segment in np.argwhere(reading.lengths > 0).tolist():
        yield {
            "step": reading.step + 1,
            "rank": rank,
            "lane": reading.first_lane + lane,
            "segment": segment,
            "epoch": int(reading.epochs[lane, segment]),
            "document": int(reading.documents[lane, segment]),
            "start": int(reading.starts[lane, segment]),
            "length": int(reading.lengths[lane, segment]),
            "reset": bool(reading.resets[lane, segment]),
        }
