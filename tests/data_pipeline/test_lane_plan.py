# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The plan: every token once, in order, in one lane at a time, whatever is stopped, resumed or re-sized.

Covers: data_pipeline/document_order.py, data_pipeline/plan.py, data_pipeline/reading.py, data_pipeline/stretch.py
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import LanePlan, Reading, UserError, lanes_of

EpochDocument = tuple[int, int]


@dataclass
class Reader:
    """Follows a run: what was read, and whose carry each row holds, moved about as a trainer would."""

    lengths: list[int]
    positions: dict[EpochDocument, int] = field(default_factory=lambda: defaultdict(int))
    carries: dict[int, tuple[int, int, int] | None] = field(default_factory=dict)
    steps: int = 0

    def follow(self, reading: Reading, segment_length: int) -> None:
        assert reading.step == self.steps and reading.first_lane == 0
        assert reading.valid_tokens == reading.lengths.sum()
        self.steps += 1
        num_lanes, num_segments = reading.documents.shape
        for lane, row in enumerate(reading.carry_from.tolist()):
            if row >= 0:
                self.carries[lane] = self.carries.pop(row)
        for lane in range(num_lanes):
            for segment in range(num_segments):
                document = int(reading.documents[lane, segment])
                epoch, start, length = (
                    int(a[lane, segment]) for a in (reading.epochs, reading.starts, reading.lengths)
                )
                if document < 0:
                    assert (epoch, start, length) == (0, 0, 0) and not reading.resets[lane, segment]
                    continue
                assert reading.resets[lane, segment] == (start == 0)
                if start > 0:
                    assert self.carries[lane] == (epoch, document, start), "the lane holds another document's memory"
                assert self.positions[epoch, document] == start
                assert length == min(segment_length, self.lengths[document] - start) > 0
                self.positions[epoch, document] = start + length
                self.carries[lane] = (epoch, document, start + length)

    def move(self, plan: LanePlan) -> None:
        sources = plan.carry_sources.tolist()
        moved = [row for row in sources if row >= 0]
        assert len(set(moved)) == len(moved) and -1 not in sources[plan.num_lanes :]
        self.carries = {row: self.carries.get(old) for row, old in enumerate(sources) if old >= 0}

    def check_complete(self, epochs: int) -> None:
        expected = {(e, d): n for e in range(epochs) for d, n in enumerate(self.lengths) if n}
        assert dict(self.positions) == expected


PHASES = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=6
)


@settings(max_examples=300)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    num_shards=st.integers(1, 5),
    seed=st.integers(0, 2**63),
    epochs=st.integers(1, 3),
    order=st.sampled_from(["shuffled", "longest_first", "sequential"]),
    phases=PHASES,
)
def test_every_token_once_across_stops_and_resizings(
    lengths: list[int], num_shards: int, seed: int, epochs: int, order: str, phases: list[tuple[int, int, int, int]]
) -> None:
    """Each phase is (lanes, segment length, segments, rollouts); the last one runs to the end of the epochs."""
    shards = [i % num_shards for i in range(len(lengths))]
    reader, saved = Reader(lengths), None
    for number, (num_lanes, segment_length, num_segments, rollouts) in enumerate(phases):
        plan = LanePlan(
            lengths, shards, num_lanes=num_lanes, segment_length=segment_length, seed=seed, epochs=epochs, order=order
        )
        if saved is not None:
            plan.load_state_dict(json.loads(saved))
            reader.move(plan)
        last = number == len(phases) - 1
        while last or rollouts > 0:
            rollouts -= 1
            rollout = plan.next_rollout(num_segments)
            if rollout is None:
                break
            reader.follow(rollout, segment_length)
        saved = json.dumps(plan.state_dict())
        assert plan.state.tokens == sum(reader.positions.values())
        assert plan.state.step == reader.steps
    reader.check_complete(epochs)


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=10),
    num_lanes=st.integers(1, 8),
    stops=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 100),
)
def test_resuming_changes_nothing_and_lanes_never_idle(
    lengths: list[int], num_lanes: int, stops: list[int], seed: int
) -> None:
    def fresh() -> LanePlan:
        return LanePlan(lengths, num_lanes=num_lanes, segment_length=8, seed=seed)

    straight, stopped = fresh(), fresh()
    for rollouts in [*stops, 3]:
        for _ in range(rollouts):
            expected, found = straight.next_rollout(3), stopped.next_rollout(3)
            assert expected is not None and found is not None
            for name in ("documents", "epochs", "starts", "lengths", "resets", "carry_from"):
                assert np.array_equal(getattr(expected, name), getattr(found, name)), name
            assert expected.lengths.min() > 0 and (expected.carry_from == -1).all()
        assert straight.state_dict() == stopped.state_dict()
        resumed = fresh()
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert resumed.state_dict() == stopped.state_dict()
        assert resumed.carry_sources.tolist() == list(range(num_lanes))
        stopped = resumed


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    num_lanes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4)),
    most=st.integers(1, 9),
    epochs=st.sampled_from([1, 2, None]),
    cut=st.sampled_from([None, 13]),
    data=st.data(),
)
def test_a_stretch_is_its_rollouts_one_by_one(
    lengths: list[int],
    num_lanes: tuple[int, int],
    shape: tuple[int, int],
    most: int,
    epochs: int | None,
    cut: int | None,
    data: st.DataObject,
) -> None:
    """Also what a block of lanes reads, in its runs, is what its segments say."""

    def fresh(lanes: int) -> LanePlan:
        return LanePlan(lengths, num_lanes=lanes, segment_length=shape[0], epochs=epochs, max_document_tokens=cut)

    before = fresh(num_lanes[0])
    before.next_rollout(3)
    many, single = fresh(num_lanes[1]), fresh(num_lanes[1])
    for plan in (many, single):
        plan.load_state_dict(before.state_dict())  # other lanes: documents may wait
    first = data.draw(st.integers(0, num_lanes[1] - 1))
    lanes = slice(first, data.draw(st.integers(first + 1, num_lanes[1])))
    for _ in range(6):
        stretch = many.next_stretch(shape[1], most)
        if stretch is None:
            assert single.next_rollout(shape[1]) is None
            break
        assert 1 <= len(stretch) <= most and len(stretch.states) == len(stretch) + 1
        block, planned = stretch.block(lanes), {}
        for number, state in enumerate(stretch.states[1:]):
            whole = single.next_rollout(shape[1])
            assert whole is not None
            expected, found = whole.block(lanes), Reading(**block.fields(number))
            for name, value in vars(expected).items():
                assert np.array_equal(value, getattr(found, name)), name
            assert single.state_dict() == many.state_dict(state)
            for lane, segment in np.argwhere(expected.lengths > 0).tolist():
                place = lane * stretch.lane_tokens + (number * shape[1] + segment) * shape[0]
                start, document = int(expected.starts[lane, segment]), int(expected.documents[lane, segment])
                for token in range(int(expected.lengths[lane, segment])):
                    planned[place + token] = (document, start + token)
        read = {
            place + token: (document, start + token)
            for document, start, tokens, place in block.runs.tolist()
            for token in range(tokens)
        }
        assert read == planned
        for document, start, _, place in block.runs.tolist():
            follows = place % stretch.lane_tokens > 0 and read.get(place - 1) == (document, start - 1)
            assert not follows or (cut is not None and start % cut == 0), "one run would do for two"


@given(st.integers(1, 40), st.data())
def test_blocks_of_lanes_are_contiguous_and_even(num_lanes: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, num_lanes))
    blocks = [lanes_of(rank, world_size, num_lanes) for rank in range(world_size)]
    assert [lane for block in blocks for lane in range(block.start, block.stop)] == list(range(num_lanes))
    sizes = {block.stop - block.start for block in blocks}
    assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer"):
        lanes_of(0, 3, 2)
    with pytest.raises(ValueError, match="world"):
        lanes_of(3, 3, 9)


def test_the_order_is_fixed_for_good() -> None:
    """Recorded once: runs resume only while the hash, the salt and the sorting stay as they are."""
    plan = LanePlan([5] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], num_lanes=1, segment_length=5, seed=7, block_window=2)
    assert plan.document_order(0).tolist() == [7, 6, 4, 5, 1, 0, 2, 3, 8, 9]
    assert plan.document_order(1).tolist() == [4, 9, 8, 5, 7, 6, 2, 3, 0, 1]


def test_orders() -> None:
    lengths = [3, 9, 0, 9, 1]

    def order(name: str, seed: int = 0) -> list[int]:
        return LanePlan(lengths, num_lanes=1, segment_length=4, order=name, seed=seed).document_order(0).tolist()

    assert order("sequential") == [0, 1, 3, 4]
    assert order("longest_first") == [1, 3, 0, 4]
    assert sorted(order("shuffled")) == [0, 1, 3, 4]
    assert len({tuple(order("shuffled", seed)) for seed in range(50)}) > 10


def test_documents_are_shuffled_within_windows_of_shards() -> None:
    shards = np.repeat(np.arange(8), 25)
    plan = LanePlan(np.full(200, 4), shards, num_lanes=1, segment_length=4, seed=1, block_window=2)
    seen = set()
    for epoch in range(3):
        windows = shards[plan.document_order(epoch)].reshape(4, 50)
        pairs = [frozenset(window.tolist()) for window in windows]
        assert all(len(pair) == 2 for pair in pairs)
        assert all((window[:25] != window[0]).any() for window in windows), "shards of a window are not mixed"
        seen.add(tuple(pairs))
    assert len(seen) == 3


def test_dropped_lanes_hand_their_document_and_carry_to_the_next_free_lane() -> None:
    wide = LanePlan([40, 40, 40, 40], num_lanes=4, segment_length=5, epochs=1, order="sequential")
    wide.next_rollout(2)
    narrow = LanePlan([40, 40, 40, 40], num_lanes=2, segment_length=5, epochs=1, order="sequential")
    narrow.load_state_dict(wide.state_dict())
    assert narrow.carry_sources.tolist() == [0, 1, 2, 3]
    rollouts = [narrow.next_rollout(4) for _ in range(4)]
    # 30 tokens are left of each document, 6 segments: the lanes idle for 2 segments, then take over rows 2 and 3.
    assert [rollout.carry_from.tolist() for rollout in rollouts] == [[-1, -1], [-1, -1], [2, 3], [-1, -1]]
    assert rollouts[1].documents[0].tolist() == [0, 0, -1, -1]
    assert rollouts[2].documents[:, 0].tolist() == [2, 3] and rollouts[2].starts[:, 0].tolist() == [10, 10]
    assert narrow.next_rollout(4) is None


def test_waiting_documents_go_before_the_queue() -> None:
    """A document that waits would otherwise wait until a lane happens to end exactly with a rollout."""
    wide = LanePlan([40] * 9, num_lanes=4, segment_length=5, order="sequential")
    wide.next_rollout(2)
    narrow = LanePlan([40] * 9, num_lanes=3, segment_length=5, order="sequential")
    narrow.load_state_dict(wide.state_dict())
    rollouts = [narrow.next_rollout(4) for _ in range(3)]
    # After 6 segments the three lanes are free: two take the next documents at once, the last is kept for row 3.
    assert [rollout.carry_from.tolist() for rollout in rollouts] == [[-1, -1, -1], [-1, -1, -1], [-1, -1, 3]]
    assert rollouts[1].documents[:, 2:].tolist() == [[4, 4], [5, 5], [-1, -1]]
    assert rollouts[2].documents[:, 0].tolist() == [4, 5, 3]


def test_the_state_of_1024_lanes_is_small() -> None:
    lengths = np.full(1_000_000, 3_000_000)
    plan = LanePlan(lengths, num_lanes=1024, segment_length=900_000)
    plan.next_rollout(2)
    state = json.dumps(plan.state_dict())
    assert len(state) <= 20_000
    assert all(isinstance(value, int | str | list) for value in json.loads(state).values())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_lanes": 0}, "num_lanes is 0"),
        ({"segment_length": -1}, "segment_length is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"order": "random"}, "choose shuffled, longest_first, sequential"),
        ({"lengths": [0, 0]}, "no token"),
    ],
)
def test_bad_settings_name_the_setting(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        LanePlan(**{"lengths": [4], "num_lanes": 1, "segment_length": 2, **change})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 9}, "version 9"),
        ({"fingerprint": "other"}, "not the one this run was reading"),
        ({"seed": 3}, "set it to 3"),
        ({"order": "sequential"}, "set it to sequential"),
        ({"lane_offsets": "1"}, "damaged"),
        ({"lane_pieces": "0 77"}, "damaged"),
        ({"lane_pieces": "0 x"}, "damaged"),
        ({"waiting": ["1 2"]}, "damaged"),
    ],
)
def test_states_that_do_not_fit_are_refused(change: dict[str, object], complaint: str) -> None:
    plan = LanePlan([9, 9], num_lanes=2, segment_length=2)
    with pytest.raises(UserError, match=complaint):
        plan.load_state_dict({**plan.state_dict(), **change})
