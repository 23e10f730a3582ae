# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Streams over real shards: the right tokens, the same for any world size, exact resumes, no thread left behind.

Covers: data_pipeline/stream.py
"""

import gc
import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream, ShardStore, UserError, trace_rows

SHAPE = {"num_lanes": 5, "segment_length": 64, "num_segments": 3}
FIELDS = ("tokens", "lengths", "resets", "documents", "epochs", "starts", "carry_from")


def assert_same(first: SegmentBatch, second: SegmentBatch) -> None:
    assert (first.step, first.valid_tokens) == (second.step, second.valid_tokens)
    for name in FIELDS:
        a, b = getattr(first, name), getattr(second, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name


def joined(batches: tuple[SegmentBatch, ...]) -> SegmentBatch:
    arrays = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in FIELDS}
    first = batches[0]
    return SegmentBatch(step=first.step, first_lane=first.first_lane, valid_tokens=first.valid_tokens, **arrays)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "segment-stream"]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("order", ["shuffled", "longest_first"])
def test_one_epoch_gives_every_document_back(dataset: Path, prefetch: int, order: str, no_threads_left: None) -> None:
    index = DocumentIndex.load(dataset)
    store = ShardStore(index)
    pieces: dict[int, list[NDArray[Any]]] = {document: [] for document in range(len(index))}
    total = 0
    for batch in SegmentStream(dataset, **SHAPE, epochs=1, order=order, prefetch=prefetch):
        assert batch.tokens.dtype == np.int32 and batch.tokens.shape == (5, 3, 64)
        assert batch.lengths.dtype == np.int32 and batch.resets.dtype == np.bool_
        assert {getattr(batch, name).dtype for name in ("documents", "epochs", "starts")} == {np.dtype(np.int64)}
        assert batch.valid_tokens == batch.lengths.sum() > 0
        positions = np.arange(64)
        assert not batch.tokens[positions[None, None, :] >= batch.lengths[:, :, None]].any()
        for lane, segment in np.argwhere(batch.lengths > 0):
            document, length = batch.documents[lane, segment], batch.lengths[lane, segment]
            assert batch.starts[lane, segment] == sum(map(len, pieces[document]))
            pieces[document].append(batch.tokens[lane, segment, :length])
        total += batch.valid_tokens
    assert total == index.num_tokens
    for document, found in pieces.items():
        assert np.array_equal(np.concatenate(found), store.read(document, 0, int(index.lengths[document])))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_ranks_together_read_the_same_for_any_world_size(dataset: Path, world_size: int) -> None:
    index = DocumentIndex.load(dataset)
    whole = SegmentStream(index, **SHAPE, epochs=2, seed=3)
    ranks = [SegmentStream(index, **SHAPE, epochs=2, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    rollouts = 0
    for batch, *parts in itertools.zip_longest(whole, *ranks):
        assert_same(batch, joined(tuple(parts)))
        assert [part.first_lane for part in parts] == [stream.lanes.start for stream in ranks]
        assert len({json.dumps(stream.state_dict()) for stream in [whole, *ranks]}) == 1
        rows = [row for rank, part in enumerate(parts) for row in trace_rows(part, rank)]
        assert [{**row, "rank": 0} for row in rows] == list(trace_rows(batch, 0))
        rollouts += 1
    assert rollouts > 10


@pytest.mark.parametrize("prefetch", [0, 3])
def test_the_state_is_that_of_the_last_batch_delivered(dataset: Path, prefetch: int) -> None:
    def stream(rank: int = 0, world_size: int = 1) -> SegmentStream:
        return SegmentStream(dataset, **SHAPE, seed=1, prefetch=prefetch, rank=rank, world_size=world_size)

    with stream() as straight:
        states, batches = [straight.state_dict()], []
        for batch in itertools.islice(straight, 25):
            batches.append(batch)
            states.append(json.loads(json.dumps(straight.state_dict())))
    for stop in (0, 1, 7, 24):
        assert states[stop]["step"] == stop
        assert states[stop]["tokens"] == sum(batch.valid_tokens for batch in batches[:stop])
        with stream() as resumed, stream(0, 2) as left, stream(1, 2) as right:
            for each in (resumed, left, right):
                each.load_state_dict(states[stop])
                assert each.state_dict() == states[stop]
            for expected in batches[stop:]:
                assert_same(expected, next(resumed))
                assert_same(expected, joined((next(left), next(right))))


def test_loading_a_state_turns_a_running_stream_back(dataset: Path) -> None:
    with SegmentStream(dataset, **SHAPE) as stream:
        start = stream.state_dict()
        first = [next(stream) for _ in range(4)]
        stream.load_state_dict(start)
        for expected in first:
            assert_same(expected, next(stream))


def test_another_number_of_lanes_keeps_the_carries_known(dataset: Path) -> None:
    with SegmentStream(dataset, **SHAPE) as wide:
        next(wide)
        saved = wide.state_dict()
    with SegmentStream(dataset, **{**SHAPE, "num_lanes": 3}) as narrow:
        narrow.load_state_dict(saved)
        sources, rows = narrow.carry_sources.tolist(), narrow.carry_rows.tolist()
        assert len(sources) == len(rows) and rows == list(range(len(rows)))
        assert set(sources[3:]) <= {3, 4} and len(sources) > 3
        taken = [row for batch in itertools.islice(narrow, 60) for row in batch.carry_from.tolist() if row >= 0]
        assert taken == rows[3:] and narrow.carry_rows.tolist() == [0, 1, 2]


def test_a_stream_that_starts_over_counts_on(dataset: Path) -> None:
    """Whatever it has delivered: the batches are a fresh stream's under later numbers, and no carry is known."""
    with SegmentStream(dataset, **SHAPE) as stream, SegmentStream(dataset, **SHAPE) as fresh:
        next(stream)
        stream.start_over(40)
        assert stream.carry_sources.tolist() == [-1] * SHAPE["num_lanes"]
        for number in range(3):
            found, expected = next(stream), next(fresh)
            assert_same(found, replace(expected, step=40 + number))
        assert stream.state_dict() == {**fresh.state_dict(), "step": 43}


def test_an_ended_stream_stays_ended_and_a_closed_one_too(dataset: Path, no_threads_left: None) -> None:
    stream = SegmentStream(dataset, **SHAPE, epochs=1)
    assert len(list(stream)) > 2 and list(stream) == []
    endless = SegmentStream(dataset, **SHAPE)
    next(endless)
    endless.close()
    with pytest.raises(StopIteration):
        next(endless)
    endless.close()


def test_dropping_a_stream_ends_its_thread(dataset: Path, no_threads_left: None) -> None:
    next(SegmentStream(dataset, **SHAPE))


def test_a_damaged_shard_surfaces_where_the_batch_is_asked_for(
    dataset: Path, tmp_path: Path, no_threads_left: None
) -> None:
    broken = shutil.copytree(dataset, tmp_path / "broken")
    shard = broken / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    stream = SegmentStream(broken, **SHAPE, epochs=1)
    for _ in range(2):
        with pytest.raises(UserError, match=r"shard-000001\.tar is damaged: .* truncated"):
            list(stream)


def test_the_interpreter_ends_with_a_stream_open(dataset: Path) -> None:
    code = (
        "import sys; from data_pipeline import SegmentStream\n"
        "stream = SegmentStream(sys.argv[1], num_lanes=2, segment_length=8, num_segments=2, prefetch=3)\n"
        "print(next(stream).valid_tokens)"
    )
    done = subprocess.run([sys.executable, "-c", code, dataset], capture_output=True, text=True, timeout=30, check=True)
    assert int(done.stdout) > 0 and done.stderr == ""


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, data_pipeline; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "webdataset", "tokenizers", "tiktoken"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_lanes": 1, "world_size": 2}, "num_lanes is 1; give 2 or more"),
        ({"num_segments": 0}, "num_segments is 0"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"segment_length": 0}, "segment_length is 0"),
    ],
)
def test_bad_settings_name_the_setting(dataset: Path, change: dict[str, int], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SegmentStream(dataset, **{**SHAPE, **change})


def test_trace_rows_have_exactly_the_published_keys(dataset: Path) -> None:
    with SegmentStream(dataset, **SHAPE, rank=1, world_size=2) as stream:
        batch = next(stream)
    rows = list(trace_rows(batch, rank=1))
    assert len(rows) == int((batch.lengths > 0).sum())
    keys = ["step", "rank", "lane", "segment", "epoch", "document", "start", "length", "reset"]
    assert all(list(row) == keys for row in rows)
    assert (rows[0]["step"], rows[0]["rank"], rows[0]["lane"], rows[0]["reset"]) == (1, 1, 3, True)
    json.dumps(rows)
