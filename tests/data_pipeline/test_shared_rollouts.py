# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Ranks that have the same lanes and train different segments of them: each reads its own, and what it must know.

Covers: data_pipeline/stretch.py, data_pipeline/stream.py, data_pipeline/reading.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline import DocumentIndex, SegmentStream
from data_pipeline.opening import open_store
from data_pipeline.reading import known_segments
from tests.data_pipeline.test_weighted_streams import build

Trained = Callable[[int], NDArray[np.bool_]]
RANKS, SHAPE = 3, {"num_lanes": 4, "segment_length": 16, "seed": 3, "epochs": 2}


def share(rank: int, ranks: int) -> Trained:
    """Rank r has piece r of the first two lanes' rollouts, and the next one of the others'."""

    def trained(segments: int) -> NDArray[np.bool_]:
        found = np.zeros((4, segments), dtype=bool)
        for lane in range(4):
            piece = (rank + lane // 2) % ranks
            found[lane, piece * segments // ranks : (piece + 1) * segments // ranks] = True
        return found

    return trained


class Counting:
    """A store that counts the tokens it is asked for."""

    look_ahead = 0

    def __init__(self, store: Any) -> None:
        self.store, self.tokens = store, 0

    def read_runs(self, runs: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        self.tokens += int(runs[:, 2].sum())
        self.store.read_runs(runs, tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.mark.parametrize("num_segments", [8, {0: 3, 2: 5, 40: 7}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_ranks_read_what_one_reads(dataset: Path, tmp_path: Path, num_segments: Any, weighted: bool) -> None:
    path = build(tmp_path, 4) if weighted else dataset
    whole = SegmentStream(path, num_segments=num_segments, **SHAPE)
    streams = [SegmentStream(path, num_segments=num_segments, trained=share(r, RANKS), **SHAPE) for r in range(RANKS)]
    for all_of_it, *parts in zip(whole, *streams, strict=True):
        count = all_of_it.lengths.shape[1]
        for rank, part in enumerate(parts):
            trained = share(rank, RANKS)(count)
            known = known_segments(trained)[..., None]
            for name in ("tokens", "loss_weights"):
                complete = getattr(all_of_it, name)
                if complete is not None:
                    assert np.array_equal(getattr(part, name), np.where(known, complete, 0))
            for name in ("documents", "starts", "lengths", "resets", "epochs", "carry_from"):
                assert np.array_equal(getattr(part, name), getattr(all_of_it, name))
            assert part.valid_tokens == all_of_it.valid_tokens
            assert part.trained is not None and np.array_equal(part.trained, trained)
        # Exact: multiples of 1/32,768.
        assert sum(part.counted for part in parts) == all_of_it.counted
        assert weighted or all_of_it.counted == all_of_it.valid_tokens
    assert all(stream.state_dict() == whole.state_dict() for stream in streams)


def test_a_rank_reads_little_beside_its_own_segments(dataset: Path) -> None:
    index, shape = DocumentIndex.load(dataset), SHAPE | {"num_segments": 48, "prefetch": 0}
    read = []
    for trained in (None, *(share(rank, 12) for rank in range(12))):
        store = Counting(open_store(index))
        list(SegmentStream(index, store=store, trained=trained, **shape))
        read.append(store.tokens)
    most = (48 // 12 + 3) / 48  # the segment before its own, the first and the last
    assert max(read[1:]) <= 1.1 * most * read[0], "documents end here and there: the shares are not quite equal"
