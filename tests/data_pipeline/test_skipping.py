# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Damaged documents that are skipped: by all ranks alike, from the batch before any wrong token, for good."""

import itertools
import json
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream, ShardStore, UserError
from data_pipeline.stream import Damage
from tests.data_pipeline.test_segment_stream import assert_same, joined

SHAPE = {"num_lanes": 6, "segment_length": 64, "num_segments": 2, "seed": 5}


@pytest.fixture
def broken(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "broken")


def flip(directory: Path, *documents: int) -> None:
    """Changes a bit in the last token of documents."""
    index = DocumentIndex.load(directory)
    for document in documents:
        shard = index.shard_path(int(index.shards[document]))
        content = bytearray(shard.read_bytes())
        content[int(index.offsets[document]) + 2 * int(index.lengths[document]) - 2] ^= 1
        shard.write_bytes(content)


class Ranks:
    """Streams of several ranks in threads, which agree through a barrier as processes do through a collective."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=30)
        self._found: dict[int, Damage] = {}

    def agreement(self, rank: int) -> Callable[[Damage], Damage]:
        def agree(found: Damage) -> Damage:
            self._found[rank] = found
            self._barrier.wait()
            together = {document: line for each in self._found.values() for document, line in each.items()}
            self._barrier.wait()
            return together

        return agree

    def run(self, directory: Path, batches: int, state: dict[str, Any] | None = None) -> list[list[Any]]:
        """[(batch, state after it)] of every rank."""
        results: dict[int, list[Any]] = {}

        def read(rank: int) -> None:
            agree = self.agreement(rank)
            with SegmentStream(
                directory, **SHAPE, rank=rank, world_size=self.size, on_damage="skip", agree=agree
            ) as stream:
                if state is not None:
                    stream.load_state_dict(state)
                results[rank] = [(batch, stream.state_dict()) for batch in itertools.islice(stream, batches)]

        threads = [threading.Thread(target=read, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[rank] for rank in range(self.size)]


def read_documents(batches: list[SegmentBatch]) -> dict[tuple[int, int], list[int]]:
    """Tokens by (epoch, document), in the order in which they were delivered."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for batch in batches:
        for lane, segment in np.argwhere(batch.lengths > 0).tolist():
            key = (int(batch.epochs[lane, segment]), int(batch.documents[lane, segment]))
            assert len(found[key]) == batch.starts[lane, segment]
            found[key] += batch.tokens[lane, segment, : batch.lengths[lane, segment]].tolist()
    return found


@pytest.mark.parametrize("prefetch", [0, 2])
def test_everything_but_the_damaged_documents_is_read(dataset: Path, broken: Path, prefetch: int) -> None:
    index, store = DocumentIndex.load(dataset), ShardStore(DocumentIndex.load(dataset))
    flip(broken, 1, 8)
    index.shard_path(0)
    skipped: list[Damage] = []
    with SegmentStream(
        broken, **SHAPE, epochs=2, prefetch=prefetch, on_damage="skip", on_skip=skipped.append
    ) as stream:
        found = read_documents(list(stream))
        assert stream.skipped_documents == (1, 8)
    assert sorted(document for each in skipped for document in each) == [1, 8]
    assert all(f"document {document} (" in line for each in skipped for document, line in each.items())
    whole = {document: store.read(document, 0, int(index.lengths[document])).tolist() for document in range(len(index))}
    for epoch, document in itertools.product(range(2), range(len(index))):
        read = found.get((epoch, document), [])
        if document in (1, 8):
            # What was read of a long document before its damaged chunk was reached is right.
            assert read == whole[document][: len(read)] and len(read) < len(whole[document])
            assert epoch == 0 or not read
        else:
            assert read == whole[document]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_comes_before_the_damage_is_delivered(dataset: Path, broken: Path, prefetch: int) -> None:
    """Although many rollouts are read at once."""
    with SegmentStream(dataset, **SHAPE) as sound:
        expected = list(itertools.islice(sound, 40))
    firsts = {d: n for n, batch in reversed(list(enumerate(expected))) for d in batch.documents.ravel().tolist()}
    last, first = max(firsts.items(), key=lambda item: item[1])
    assert first > 3
    flip(broken, last)
    with SegmentStream(broken, **SHAPE, prefetch=prefetch) as stream:
        for batch in expected[:first]:
            assert_same(batch, next(stream))
        state = stream.state_dict()
        with pytest.raises(UserError, match=f"document {last} "):
            next(stream)
        assert stream.state_dict() == state and state["step"] == first


def test_all_ranks_skip_alike_and_resume_on_another_world(broken: Path) -> None:
    flip(broken, 2, 4, 9)
    with SegmentStream(broken, **SHAPE, on_damage="skip") as single:
        expected = [(batch, single.state_dict()) for batch in itertools.islice(single, 30)]
    for size in (2, 3):
        ranks = Ranks(size).run(broken, 30)
        for (batch, state), *parts in zip(expected, *ranks, strict=True):
            assert_same(batch, joined(tuple(part for part, _ in parts)))
            assert all(each == state for _, each in parts)
    states = [state for _, state in expected]
    assert states[-1]["skipped"] == "2 4 9"
    first = next(number for number, state in enumerate(states) if state["skipped"])
    for stop in (0, first, 20):
        ranks = Ranks(3).run(broken, 30 - stop - 1, json.loads(json.dumps(states[stop])))
        for (batch, state), *parts in zip(expected[stop + 1 :], *ranks, strict=True):
            assert_same(batch, joined(tuple(part for part, _ in parts)))
            assert all(each == state for _, each in parts)


def test_a_missing_shard_costs_its_documents_and_nothing_else(broken: Path) -> None:
    index = DocumentIndex.load(broken)
    index.shard_path(1).unlink()
    with SegmentStream(broken, **SHAPE, epochs=1, on_damage="skip") as stream:
        found = read_documents(list(stream))
    lost = set(np.flatnonzero(index.shards == 1).tolist())
    assert {document for _, document in found} == set(range(len(index))) - lost


def test_a_document_that_is_damaged_between_two_runs_is_left_where_it_stands(broken: Path) -> None:
    index = DocumentIndex.load(broken)
    longest = int(index.lengths.argmax())
    with SegmentStream(broken, **SHAPE) as stream:
        while longest not in next(stream).documents[:, -1]:
            pass
        state = stream.state_dict()
    flip(broken, longest)
    with SegmentStream(broken, **SHAPE, on_damage="skip") as stream:
        stream.load_state_dict(state)
        assert all(longest not in next(stream).documents for _ in range(40))
    with SegmentStream(broken, **{**SHAPE, "num_lanes": 2}, on_damage="skip") as stream:
        stream.load_state_dict(state)  # it may wait for a lane here
        assert all(longest not in next(stream).documents for _ in range(60))


def test_stopping_is_the_default_and_a_wholly_damaged_set_ends(broken: Path) -> None:
    index = DocumentIndex.load(broken)
    flip(broken, *range(len(index)))
    with SegmentStream(broken, **SHAPE) as stream, pytest.raises(UserError, match="does not have its checksum"):
        next(stream)
    with (
        SegmentStream(broken, **SHAPE, on_damage="skip") as stream,
        pytest.raises(UserError, match="nothing is left to read: every document is damaged"),
    ):
        list(stream)
    with pytest.raises(UserError, match="choose stop or skip"):
        SegmentStream(broken, **SHAPE, on_damage="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs agree"):
        SegmentStream(broken, **SHAPE, world_size=2, on_damage="skip")


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(broken: Path) -> None:
    """With the shard mapped into memory, this kills the process."""
    index = DocumentIndex.load(broken)
    store = ShardStore(index)
    first, last = (int(np.flatnonzero(index.shards == 0)[place]) for place in (0, -1))
    store.read(first, 0, 1)
    with index.shard_path(0).open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match=rf"document {last} .* is cut off: the shard was truncated while it was in use"):
        store.read(last, 0, 1)
    with pytest.raises(UserError, match="is cut off"):
        for start in range(int(index.lengths[first])):
            store.read(first, start, 1)
