# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Several data sets read as one: shares by weight, every token once an epoch, weights that change at a resume.

Covers: data_pipeline/blend.py, data_pipeline/opening.py
"""

import itertools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import Blend, DocumentIndex, LanePlan, SegmentStream, UserError, build_dataset, open_data
from data_pipeline.document_order import Source
from tests.data_pipeline.test_segment_stream import assert_same

SHAPE = {"num_lanes": 4, "segment_length": 32, "num_segments": 3, "seed": 1}


@pytest.fixture(scope="module")
def second(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("second") / "set"
    build_dataset([corpus / "lines.jsonl"], out, format="mds")
    return out


def plan_of(lengths: list[list[int]], weights: list[float], **others: object) -> LanePlan:
    flat = [length for part in lengths for length in part]
    sources = [Source(len(part), weight) for part, weight in zip(lengths, weights, strict=True)]
    return LanePlan(flat, num_lanes=3, segment_length=4, sources=sources, **others)  # type: ignore[arg-type]


def tokens_by_source(plan: LanePlan, rollouts: int) -> np.ndarray:
    read = np.zeros(len(plan.sources), np.int64)
    for _ in range(rollouts):
        rollout = plan.next_rollout(2)
        assert rollout is not None
        for document, length in zip(rollout.documents.ravel().tolist(), rollout.lengths.ravel().tolist(), strict=True):
            read[plan.queue.source_of(document)] += length
    return read


@settings(max_examples=25)
@given(
    weights=st.lists(st.floats(0.05, 5), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_shares_follow_the_weights_and_epochs_stay_exact(weights: list[float], seed: int, data: st.DataObject) -> None:
    lengths = [data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=6)) for _ in weights]
    plan = plan_of(lengths, weights, seed=seed)
    read: dict[tuple[int, int], int] = defaultdict(int)
    by_source = np.zeros(len(weights))
    for _ in range(60):
        rollout = plan.next_rollout(2)
        assert rollout is not None and rollout.lengths.min() > 0
        for lane, segment in np.ndindex(rollout.documents.shape):
            document, epoch = int(rollout.documents[lane, segment]), int(rollout.epochs[lane, segment])
            assert read[epoch, document] == rollout.starts[lane, segment]
            read[epoch, document] += int(rollout.lengths[lane, segment])
            by_source[plan.queue.source_of(document)] += rollout.lengths[lane, segment]
    # A source is never further from its share than what is under way and one document of each source.
    slack = 30 * (3 + len(weights))
    share = np.array(weights) / sum(weights)
    assert (np.abs(by_source - share * by_source.sum()) <= slack).all()
    flat = [length for part in lengths for length in part]
    assert sum(tokens != flat[document] for (_, document), tokens in read.items()) <= plan.num_lanes
    epochs_read = defaultdict(set)
    for epoch, document in read:
        epochs_read[document].add(epoch)
    for epochs in epochs_read.values():
        assert epochs == set(range(max(epochs) + 1))


def test_a_finite_epoch_reads_every_source_to_its_end() -> None:
    plan = plan_of([[7, 9], [30, 2, 5]], [1, 10], epochs=2)
    read = np.zeros(5, np.int64)
    while (rollout := plan.next_rollout(2)) is not None:
        np.add.at(read, rollout.documents[rollout.lengths > 0], rollout.lengths[rollout.lengths > 0])
    assert read.tolist() == [14, 18, 60, 4, 10]


def test_weights_may_change_at_a_resume_and_only_the_future_changes() -> None:
    lengths = [[5, 9, 14], [8, 3], [4]]
    before, after = plan_of(lengths, [1, 1, 0]), plan_of(lengths, [1, 4, 5])
    assert tokens_by_source(before, 200)[2] == 0
    state = json.loads(json.dumps(before.state_dict()))
    kept = plan_of(lengths, [1, 1, 0])
    kept.load_state_dict(state)
    after.load_state_dict(state)
    assert after.state.pieces.tolist() == kept.state.pieces.tolist() and after.state.step == 200
    read = tokens_by_source(after, 400)
    assert np.abs(read / read.sum() - [0.1, 0.4, 0.5]).max() < 0.02
    straight, resumed = tokens_by_source(before, 50), tokens_by_source(kept, 50)
    assert straight.tolist() == resumed.tolist() and before.state_dict() == kept.state_dict()


def test_weights_that_leave_nothing_are_refused() -> None:
    for weights, complaint in (
        ([0.0, 0.0], "every data set of weight above 0 is empty"),
        ([1.0, -1.0], "the weights of the data sets are 1, -1"),
        ([1.0, float("nan")], "nan; give numbers"),
    ):
        with pytest.raises(UserError, match=complaint):
            plan_of([[3], [4]], weights)
    with pytest.raises(UserError, match="damaged"):
        plan_of([[3], [4]], [1, 1]).load_state_dict(
            {**plan_of([[3, 4]], [1]).state_dict(), "fingerprint": plan_of([[3], [4]], [1, 1]).fingerprint}
        )


def test_a_blend_streams_tar_and_mds_together_and_resumes(dataset: Path, second: Path) -> None:
    def blend(weight: float = 3.0) -> Blend:
        opened = open_data([(str(dataset), 1.0), (str(second), weight)])
        assert isinstance(opened, Blend)
        return opened

    parts = [DocumentIndex.load(dataset), DocumentIndex.load(second)]
    assert len(blend()) == len(parts[0]) + len(parts[1]) and blend().fingerprint == blend(7).fingerprint
    assert blend().name(len(parts[0]) + 2) == parts[1].name(2)
    with SegmentStream(blend(), **SHAPE) as stream:
        batches = list(itertools.islice(stream, 20))
        with SegmentStream(blend(), **SHAPE) as other:
            first = list(itertools.islice(other, 8))
            state = other.state_dict()
        with SegmentStream(blend(), **SHAPE) as other:
            other.load_state_dict(state)
            for expected, found in zip(batches, first + list(itertools.islice(other, 12)), strict=True):
                assert_same(expected, found)
        with SegmentStream(blend(0.5), **SHAPE) as other:
            other.load_state_dict(state)
            next(other)
    for batch in batches:
        for lane, segment in np.argwhere(batch.lengths > 0).tolist():
            document, start = int(batch.documents[lane, segment]), int(batch.starts[lane, segment])
            part = int(document >= len(parts[0]))
            own = SegmentStream(parts[part], **SHAPE)._store
            length = int(batch.lengths[lane, segment])
            tokens = own.read(document - part * len(parts[0]), start, length)
            assert np.array_equal(batch.tokens[lane, segment, :length], tokens)


def test_data_sets_that_do_not_go_together_are_named(dataset: Path, corpus: Path, tmp_path: Path) -> None:
    build_dataset([corpus / "lines.jsonl"], tmp_path / "other", tokenizer="train-bpe:300")
    with pytest.raises(UserError, match="different tokenizers; build both with the same"):
        open_data([(str(dataset), 1), (str(tmp_path / "other"), 1)])
    with pytest.raises(UserError, match="named twice"):
        open_data([(str(dataset), 1), (str(dataset), 2)])
    with pytest.raises(UserError, match="empty list"):
        open_data([])


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=10).filter(any),
    cut=st.integers(1, 40),
    lanes=st.integers(1, 6),
    stops=st.lists(st.integers(0, 4), max_size=3),
)
def test_cut_documents_are_read_once_piece_by_piece(lengths: list[int], cut: int, lanes: int, stops: list[int]) -> None:
    def fresh(count: int) -> LanePlan:
        return LanePlan(
            lengths, num_lanes=count, segment_length=7, epochs=1, order="longest_first", max_document_tokens=cut
        )

    read = {document: set[int]() for document in range(len(lengths))}
    plan = fresh(lanes)
    for number, rollouts in enumerate([*stops, 10_000]):
        for _ in range(rollouts):
            rollout = plan.next_rollout(2)
            if rollout is None:
                break
            for lane, segment in np.argwhere(rollout.lengths > 0).tolist():
                start, length = int(rollout.starts[lane, segment]), int(rollout.lengths[lane, segment])
                tokens = set(range(start, start + length))
                seen = read[int(rollout.documents[lane, segment])]
                assert not tokens & seen and rollout.resets[lane, segment] == (start % cut == 0)
                assert start // cut == (start + length - 1) // cut
                seen |= tokens
        state = plan.state_dict()
        plan = fresh(lanes + number % 2)
        plan.load_state_dict(json.loads(json.dumps(state)))
    assert {document: len(tokens) for document, tokens in read.items()} == dict(enumerate(lengths))
    with pytest.raises(UserError, match="max_document_tokens is 0"):
        LanePlan(lengths, num_lanes=lanes, segment_length=7, order="longest_first").load_state_dict(
            {**plan.state_dict(), "fingerprint": plan.fingerprint}
        )


def test_cutting_keeps_lanes_busy() -> None:
    lengths = np.array([100_000, *[2_000] * 50])

    def busy(cut: int | None) -> float:
        plan = LanePlan(
            lengths, num_lanes=16, segment_length=128, epochs=1, order="longest_first", max_document_tokens=cut
        )
        shares = []
        while (rollout := plan.next_rollout(4)) is not None:
            shares.append((rollout.lengths > 0).mean())
        return float(np.mean(shares))

    assert busy(None) < 0.2 and busy(int(lengths.sum()) // 64) > 0.8
