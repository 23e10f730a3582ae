# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A schedule of segments a rollout: what it says, and a stream that follows it gives every token once.

Covers: data_pipeline/stream.py, data_pipeline/stream_settings.py
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream, UserError
from data_pipeline.segment_schedule import SegmentSchedule
from launch.cli import main
from tests.data_pipeline.test_segment_stream import assert_same

SHAPE: dict[str, Any] = {"num_lanes": 5, "segment_length": 64}
SCHEDULE = {0: 1, 2: 3, 3: 1, 7: 2}


def test_what_a_schedule_says() -> None:
    schedule = SegmentSchedule.of({"3": 1, 0: 1, 7: "2", 2: 3})
    assert schedule == SegmentSchedule.of(SCHEDULE)
    assert [schedule.at(done) for done in range(9)] == [1, 1, 3, 1, 1, 1, 1, 2, 2]
    assert [schedule.until_change(done) for done in range(8)] == [2, 1, 1, 4, 3, 2, 1, None]
    assert [schedule.total(steps) for steps in (0, 1, 2, 3, 4, 7, 9)] == [0, 1, 2, 5, 6, 9, 13]
    assert schedule.most == 3
    assert schedule.words() == "1, from step 3 on 3, from step 4 on 1, from step 8 on 2"
    fixed = SegmentSchedule.of(4)
    assert (fixed.most, fixed.at(0), fixed.at(10**6), fixed.until_change(5), fixed.words()) == (4, 4, 4, None, "4")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "is 0: give 1 to 1,000,000 segments"),
        (99999999999, "is 99999999999: give 1 to 1,000,000 segments, from step 0"),
        ({0: 1, 5: 0}, "give 1 to 1,000,000 segments"),
        ({-1: 1, 0: 1}, "from step 0 or a later one"),
        ({1: 2}, "is {1: 2}: does not say with how many segments to begin, add 0: 1 to it"),
        ({}, "does not say with how many segments to begin"),
        ({0: 1, "0": 2}, "names a step twice"),
        ("many", "is 'many': give a number of segments, or by the steps done before"),
        (2.5, "is 2.5: give a number"),
        (True, "give a number"),
        ([1, 2], "give a number"),
        (None, "is null: give a number"),
        ({0: 1, 10: None}, "is {0: 1, 10: null}: give a number"),
    ],
)
def test_what_is_none_is_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        SegmentSchedule.of(value)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_every_token_once_and_resumed_at_every_step(dataset: Path, prefetch: int) -> None:
    """Across each change; on any number of ranks; T is what the schedule says, but for the end of the epoch."""
    index = DocumentIndex.load(dataset)
    every = {"num_segments": SCHEDULE, "epochs": 1, "prefetch": prefetch} | SHAPE
    stream = SegmentStream(index, **every)
    batches: list[SegmentBatch] = []
    states = [stream.state_dict()]
    for batch in stream:
        batches.append(batch)
        states.append(stream.state_dict())
    assert len(batches) > 10
    assert [batch.tokens.shape[1] for batch in batches] == [stream.settings.segments.at(n) for n in range(len(batches))]
    found = {(document, start) for batch in batches for document, start in _pieces(batch)}
    assert len(found) == sum(len(list(_pieces(batch))) for batch in batches)
    assert sum(batch.valid_tokens for batch in batches) == index.num_tokens
    for done in (1, 2, 3, 6, 7, 9):
        resumed = SegmentStream(index, **every)
        resumed.load_state_dict(states[done])
        for first, second in itertools.islice(zip(resumed, batches[done:], strict=False), 3):
            assert_same(first, second)
        resumed.close()
    ranks = [SegmentStream(index, **every, rank=rank, world_size=2) for rank in range(2)]
    for parts, whole in zip(zip(*ranks, strict=True), batches, strict=True):
        assert np.array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)


def _pieces(batch: SegmentBatch) -> list[tuple[int, int]]:
    lanes, segments = np.nonzero(batch.lengths)
    return list(zip(batch.documents[lanes, segments].tolist(), batch.starts[lanes, segments].tolist(), strict=True))


def test_a_schedule_of_one_number_is_that_number(dataset: Path) -> None:
    plain = SegmentStream(dataset, num_segments=3, epochs=1, **SHAPE)
    for first, second in zip(plain, SegmentStream(dataset, num_segments={0: 3}, epochs=1, **SHAPE), strict=True):
        assert_same(first, second)


def test_settings_name_what_is_wrong(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"num_segments is \{1: 2\}: does not say"):
        SegmentStream(dataset, num_segments={1: 2}, **SHAPE)


def test_a_trace_follows_it(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "trace", str(dataset), "--lanes", "5", "--segment-length", "64", "--steps", "9"]
    assert main([*command, "--num-segments", "{0: 1, 2: 3, 3: 1, 7: 2}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    counts = {step: len({row["segment"] for row in rows if row["step"] == step}) for step in range(1, 10)}
    assert list(counts.values()) == [1, 1, 3, 1, 1, 1, 1, 2, 2]
    assert main([*command, "--num-segments", "{1: 3}"]) == 2
    assert "--num-segments is {1: 3}; give 1 or more, or {0: 1, 1000: 2}" in capsys.readouterr().err
