# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Evaluation against a plain loop over whole documents, one at a time."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream, ShardStore, build_dataset
from memformer import Memformer, MemformerConfig
from memformer.inference.perplexity import BUCKETS, evaluate
from memformer.models.scoring import token_losses
from memformer.replay import Segment
from memformer.run.stop_requests import StepAbandoned
from tests.books import book_text, small_dataset

LENGTH = 32


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DocumentIndex:
    return DocumentIndex.load(small_dataset(tmp_path_factory.mktemp("books"), 4, 2_400) / "train")


@pytest.fixture(scope="module")
def model() -> Memformer:
    torch.manual_seed(0)
    config = MemformerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=16,
        num_heads=2,
        d_ff=32,
        num_memory_slots=3,
        vocab_size=257,
        start_token_id=256,
    )
    return Memformer(config).double()


@torch.no_grad()
def by_hand(model: Memformer, tokens: torch.Tensor, carry_memory: bool) -> list[float]:
    """Loss of every token of one document, segment by segment."""
    memory, losses = model.initial_memory(1), []
    context, context_length = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for start in range(0, len(tokens), LENGTH):
        part = tokens[start : start + LENGTH]
        target = torch.zeros(1, LENGTH, dtype=torch.int64)
        target[0, : len(part)] = part
        length = torch.tensor([len(part)])
        segment = Segment(context, context_length, target, length, torch.tensor([start == 0]))
        logits, next_memory = model.logits(segment, memory)
        memory = next_memory if carry_memory else model.initial_memory(1)
        losses += token_losses(logits, segment)[0, : len(part)].tolist()
        context, context_length = target, length
    return losses


@pytest.fixture(scope="module")
def alone(index: DocumentIndex, model: Memformer) -> dict[str, list[list[float]]]:
    """By mode, the loss of every token of each document, read by itself."""
    store = ShardStore(index)
    documents = [
        torch.from_numpy(np.array(store.read(d, 0, int(n)), dtype=np.int64)) for d, n in enumerate(index.lengths)
    ]
    assert len({len(document) for document in documents}) == len(documents) > 1
    return {
        mode: [by_hand(model, document, carried) for document in documents]
        for mode, carried in (("with_memory", True), ("memory_reset", False))
    }


@pytest.mark.parametrize(
    ("lanes", "segments", "group"), [(1, 1, 1), (3, 2, 1), (8, 5, 1), (1, 8, 8), (3, 5, 2), (8, 3, 16)]
)
def test_equals_reading_each_document_alone(
    index: DocumentIndex, model: Memformer, alone: dict[str, list[list[float]]], lanes: int, segments: int, group: int
) -> None:
    """Whatever the lanes, the segments a batch and how many are decoded at once; in sum and by position; idle lanes
    count nothing.
    """
    with SegmentStream(
        index, num_lanes=lanes, segment_length=LENGTH, num_segments=segments, epochs=1, order="longest_first"
    ) as stream:
        scores = evaluate(model, stream, torch.device("cpu"), group=group)
    for mode, documents in alone.items():
        expected = torch.zeros(2, BUCKETS, dtype=torch.float64)
        for losses in documents:
            for position, loss in enumerate(losses):
                number = position // LENGTH
                bucket = 0 if number == 0 else int(math.log2(number)) + 1
                expected[0, bucket] += loss
                expected[1, bucket] += 1
        torch.testing.assert_close(scores[mode].losses, expected[0], rtol=1e-10, atol=1e-9)
        assert torch.equal(scores[mode].tokens, expected[1])
        assert scores[mode].report()["tokens"] == index.num_tokens
    assert not torch.equal(scores["with_memory"].losses, scores["memory_reset"].losses)


@pytest.mark.parametrize("first", [1, 3 * LENGTH, 5 * LENGTH + 7])
def test_the_last_part_alone_is_scored_and_the_rest_is_read(
    index: DocumentIndex, model: Memformer, alone: dict[str, list[list[float]]], first: int
) -> None:
    """The losses of those targets as they are among all; and no decoder runs where no lane has one."""
    decoded = 0

    def count_calls(*_: object) -> None:
        nonlocal decoded
        decoded += 1

    hook = model.decoder[0].register_forward_hook(count_calls)
    with SegmentStream(
        index, num_lanes=len(index), segment_length=LENGTH, num_segments=2, epochs=1, order="longest_first"
    ) as stream:
        scores = evaluate(model, stream, torch.device("cpu"), from_token=first)
    hook.remove()
    for mode, documents in alone.items():
        last = [loss for losses in documents for loss in losses[first:]]
        assert scores[mode].report()["tokens"] == len(last) > 0
        assert float(scores[mode].losses.sum()) == pytest.approx(sum(last), rel=1e-10)
    segments = -(-int(index.lengths.max()) // LENGTH)
    assert decoded == 2 * (segments - first // LENGTH)


@pytest.mark.parametrize(("lanes", "first", "most"), [(1, 0, None), (3, 0, 7), (3, 2 * LENGTH + 5, None)])
def test_a_decoder_of_several_segments_gives_the_losses_of_one(
    index: DocumentIndex, model: Memformer, lanes: int, first: int, most: int | None
) -> None:
    """At each position, of ragged documents, to 1e-12 in float64; in G times fewer calls of the decoder."""
    found, calls = [], []
    for group in (1, 4):
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        hook = model.decoder[0].register_forward_hook(count)
        with SegmentStream(index, num_lanes=lanes, segment_length=LENGTH, num_segments=group, epochs=1) as stream:
            more: dict[str, Any] = {"from_token": first, "max_segments": most, "group": group}
            found.append(evaluate(model, stream, torch.device("cpu"), **more))
        hook.remove()
    for mode, score in found[0].items():
        torch.testing.assert_close(found[1][mode].losses, score.losses, rtol=1e-12, atol=0)
        assert torch.equal(found[1][mode].tokens, score.tokens)
        assert score.report()["tokens"] > LENGTH
    # Two modes, of each one call a group, of which the first of a batch and the last of all may be smaller.
    assert calls[0] / 4 <= calls[1] <= calls[0] / 4 + 4


def test_targets_count_by_their_weights(model: Memformer, tmp_path: Path) -> None:
    """Against the single losses of each document; positions where nothing counts are left out."""
    ranges = [[[40, 50, 1], [50, 60, 0.25]], [[0, 3, 0.5]], []]
    records = [{"text": book_text(150 - 20 * n), "loss_weights": each} for n, each in enumerate(ranges)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    build_dataset([tmp_path / "a.jsonl"], tmp_path / "set", loss_weights_key="loss_weights")
    index = DocumentIndex.load(tmp_path / "set")
    store = ShardStore(index)
    shape: dict[str, Any] = {"segment_length": LENGTH, "num_segments": 1, "epochs": 1}
    with SegmentStream(index, num_lanes=2, **shape) as stream:
        scores = evaluate(model, stream, torch.device("cpu"))
    with SegmentStream(index, num_lanes=2, **(shape | {"num_segments": 3})) as stream:
        for mode, other in evaluate(model, stream, torch.device("cpu"), group=3).items():
            torch.testing.assert_close(other.losses, scores[mode].losses, rtol=1e-12, atol=0)
            assert torch.equal(other.counted, scores[mode].counted)
    for mode, carried in (("with_memory", True), ("memory_reset", False)):
        expected = np.zeros((2, 2))  # loss and weight of the first two positions; none counts in those behind
        for document, each in enumerate(ranges):
            ids = np.array(store.read(document, 0, int(index.lengths[document])), dtype=np.int64)
            losses = by_hand(model, torch.from_numpy(ids), carried)
            sizes = [len(index.tokenizer.decode(ids[: at + 1].tolist())) for at in range(len(ids))]
            for place, loss in enumerate(losses):
                weight = sum(w for start, end, w in each if start <= sizes[place] - 1 < end)
                expected[:, place // LENGTH if weight else 0] += weight * loss, weight
        report = scores[mode].report()
        (loss, counted), (first, second) = expected.sum(1), report["by_position"]
        assert report["loss"] == pytest.approx(loss / counted, rel=1e-10)
        assert (report["counted_tokens"], report["tokens"]) == (counted, index.num_tokens)
        assert [first["loss"], second["loss"]] == pytest.approx(expected[0] / expected[1], rel=1e-10)
        assert first["counted_tokens"] + second["counted_tokens"] == counted == index.counted_tokens
    with SegmentStream(index, num_lanes=1, order="sequential", **shape) as stream:
        nothing = evaluate(model, stream, torch.device("cpu"), max_segments=1)["with_memory"].report()
    assert (nothing["loss"], nothing["perplexity"], nothing["counted_tokens"]) == (None, None, 0)
    assert nothing["tokens"] == LENGTH and nothing["by_position"] == []


def test_of_the_last_part_the_weights_count_alone(model: Memformer, tmp_path: Path) -> None:
    """Weights of what comes before it are left out of the loss and of what it is divided by."""
    record = {"text": "x" * 100, "loss_weights": [[0, 50, 1], [50, 60, 0.25]]}  # bytes: a character is a token
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    build_dataset([tmp_path / "a.jsonl"], tmp_path / "set", loss_weights_key="loss_weights")
    index = DocumentIndex.load(tmp_path / "set")
    tokens = torch.from_numpy(np.array(ShardStore(index).read(0, 0, 100), dtype=np.int64))
    with SegmentStream(index, num_lanes=1, segment_length=LENGTH, num_segments=2, epochs=1) as stream:
        scores = evaluate(model, stream, torch.device("cpu"), from_token=45)
    for mode, carried in (("with_memory", True), ("memory_reset", False)):
        losses = by_hand(model, tokens, carried)
        report = scores[mode].report()
        assert (report["counted_tokens"], report["tokens"]) == (5 + 10 / 4, 100 - 45)
        assert report["loss"] == pytest.approx((sum(losses[45:50]) + sum(losses[50:60]) / 4) / 7.5, rel=1e-10)


def test_report_names_positions(index: DocumentIndex, model: Memformer) -> None:
    with SegmentStream(index, num_lanes=2, segment_length=LENGTH, num_segments=1, epochs=1) as stream:
        report = evaluate(model, stream, torch.device("cpu"), max_segments=8)["with_memory"].report()
    assert [(row["from"], row["to"]) for row in report["by_position"]] == [(0, 32), (32, 64), (64, 128), (128, 256)]
    assert report["tokens"] == sum(row["tokens"] for row in report["by_position"]) == 2 * 8 * LENGTH
    assert report["perplexity"] == pytest.approx(math.exp(report["loss"]))
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_that_is_broken_off_leaves_the_model_in_its_mode(
    index: DocumentIndex, model: Memformer, training: bool
) -> None:
    """A run that is asked to stop ends its evaluation by an exception; one that goes on must still have dropout."""

    def breaking(stream: SegmentStream) -> Iterator[SegmentBatch]:
        yield next(stream)
        assert not model.training
        raise StepAbandoned

    model.train(training)
    stream = SegmentStream(index, num_lanes=1, segment_length=LENGTH, num_segments=1, epochs=1)
    with stream, pytest.raises(StepAbandoned):
        evaluate(model, breaking(stream), torch.device("cpu"))
    assert all(module.training == training for module in model.modules())
