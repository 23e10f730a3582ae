# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`StreamSettings`: the same stream by record, by names, and by a record that is changed; what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import SegmentStream, StreamSettings, UserError, open_data, trace_rows

SHAPE: dict[str, Any] = {"num_lanes": 4, "segment_length": 32, "num_segments": 2}


def told(stream: SegmentStream, batches: int = 5) -> str:
    with stream:
        return json.dumps([list(trace_rows(next(stream), 0)) for _ in range(batches)])


def test_a_record_names_and_both_give_the_same_stream(dataset: Path) -> None:
    settings = StreamSettings(**SHAPE, seed=3, order="sequential")
    expected = told(SegmentStream(dataset, **SHAPE, seed=3, order="sequential"))
    assert told(SegmentStream(dataset, settings)) == expected
    assert told(SegmentStream(dataset, StreamSettings(**SHAPE), seed=3, order="sequential")) == expected
    assert told(SegmentStream(dataset, settings, seed=4, order="shuffled")) != expected


def test_the_plan_is_the_same_for_any_rank(dataset: Path) -> None:
    index = open_data(dataset)
    settings = StreamSettings(**SHAPE, world_size=3, seed=5)
    plans = [dataclasses.replace(settings, rank=rank).plan(index) for rank in range(3)]
    states = [(plan.next_rollout(2), plan.state_dict())[1] for plan in plans]
    assert states[0] == states[1] == states[2]
    blocks = [dataclasses.replace(settings, rank=rank).lanes for rank in range(3)]
    assert [lane for block in blocks for lane in range(block.start, block.stop)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_segments": 0}, "num_segments is 0: give 1 to 1,000,000 segments"),
        ({"num_lanes": 1, "world_size": 2}, "num_lanes is 1; give 2 or more, one for each data-parallel rank"),
        ({"prefetch": -1}, "prefetch is -1; give 0 or more rollouts"),
        ({"on_damage": "hide"}, "on_damage is 'hide'; choose stop or skip"),
    ],
)
def test_a_setting_out_of_range_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        StreamSettings(**{**SHAPE, **change})


def test_what_only_a_program_can_get_wrong_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="needs agree"):
        StreamSettings(**SHAPE, world_size=2, on_damage="skip")
    with pytest.raises(ValueError, match="rank 2 is not in a world of 2"):
        StreamSettings(**SHAPE, world_size=2, rank=2)
    with pytest.raises(TypeError, match="lanes"):
        StreamSettings(**SHAPE, lanes=3)
