# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where a plan stands between two rollouts (`PlanState`), and what it gives out: a `Stretch` of rollouts.

Many rollouts planned and read at once cost little more than one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Waiting:
    """A piece read up to `offset` that waits for a lane; its carry is in row `row`."""

    piece: int
    epoch: int
    offset: int
    row: int


@dataclass(frozen=True)
class SourceState:
    """Where the queue of one source stands; `dealt` counts its tokens given out since the weights were set."""

    epoch: int = 0
    cursor: int = 0
    dealt: int = 0


@dataclass(frozen=True)
class PlanState:
    """Where a plan stands between two rollouts. The arrays, `[num_lanes]`, are not changed once they are in here.

    Lanes hold pieces: whole documents, unless `max_document_tokens` cuts them.
    """

    step: int
    tokens: int
    sources: tuple[SourceState, ...]
    pieces: NDArray[np.int64]
    epochs: NDArray[np.int64]
    offsets: NDArray[np.int64]
    waiting: tuple[Waiting, ...]
    skipped: tuple[int, ...]


@dataclass(frozen=True)
class Stretch:
    """Consecutive rollouts that were planned at once.

    Attributes:
        step: Number of the first.
        first_lane: As in `Reading`.
        columns: What `Reading` holds for each segment, by name, `[rollouts, B, T]`.
        carry_from: Of every rollout; with more than one, no carry changes hands.
        valid_tokens: Of each rollout.
        states: Where the plan stands before the first and after each.
        runs: int64 `[runs, 4]`, what is read in all of them, in as few pieces as possible: document, first token,
            tokens, place. Places count tokens in `[B, lane_tokens]`: segment after segment, S tokens each.
        lane_tokens: Room for the tokens of a lane.
    """

    step: int
    first_lane: int
    columns: Mapping[str, NDArray[Any]]
    carry_from: NDArray[np.int64]
    valid_tokens: list[int]
    states: list[PlanState]
    runs: NDArray[np.int64]
    lane_tokens: int

    def __len__(self) -> int:
        return len(self.valid_tokens)

    def block(self, lanes: slice) -> "Stretch":
        """The part for these lanes."""
        if lanes == slice(0, len(self.carry_from)):
            return self
        first = lanes.start * self.lane_tokens
        begin, end = np.searchsorted(self.runs[:, 3], [first, lanes.stop * self.lane_tokens])
        return replace(
            self,
            first_lane=self.first_lane + lanes.start,
            columns={name: column[:, lanes] for name, column in self.columns.items()},
            carry_from=self.carry_from[lanes],
            runs=self.runs[begin:end] - np.array([0, 0, 0, first]),
        )

    def only(self, known: NDArray[np.bool_], size: int) -> "Stretch":
        """The same, but reading some segments of each rollout alone, bool `[B, T]`, of `size` tokens each."""
        rollouts, lanes, segments = self.columns["lengths"].shape
        wanted = np.zeros((lanes, self.lane_tokens // size), dtype=bool)
        wanted[:, : rollouts * segments] = np.tile(known, (1, rollouts))
        places, ends = self.runs[:, 3], self.runs[:, 3] + self.runs[:, 2]
        first, last = places // size, (ends - 1) // size
        counts = last - first + 1
        run = np.repeat(np.arange(len(self.runs)), counts)
        segment = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts) + first[run]
        read = wanted.reshape(-1)[segment]
        run, segment = run[read], segment[read]
        # Neighbours in one run stay together.
        starts = np.flatnonzero(np.append(True, (np.diff(run) > 0) | (np.diff(segment) > 1))[: len(run)])
        stops = np.append(starts, len(run))[1:] - 1
        start = np.maximum(places[run[starts]], segment[starts] * size)
        stop = np.minimum(ends[run[starts]], (segment[stops] + 1) * size)
        document, token = self.runs[run[starts], 0], self.runs[run[starts], 1]
        runs = np.stack([document, token + start - places[run[starts]], stop - start, start], axis=1)
        return replace(self, runs=runs)

    def fields(self, number: int) -> dict[str, Any]:
        """The arguments of `Reading` for one of the rollouts, counted from 0."""
        return {
            "step": self.step + number,
            "first_lane": self.first_lane,
            "carry_from": self.carry_from,
            "valid_tokens": self.valid_tokens[number],
            **{name: column[number] for name, column in self.columns.items()},
        }
