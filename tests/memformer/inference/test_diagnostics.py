# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The look into the memory while training: its figures, and that it leaves the model as it was.

Shapes: B lanes, K slots, D width.
"""

from collections.abc import Iterator

import pytest
import torch

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream
from memformer import Memformer
from memformer.inference.diagnostics import inspected_memory, memory_diagnostics
from memformer.replay import Carry
from tests.books import small_dataset
from tests.memformer.examples import random_memory, random_tokens, small_model


class Broken(Exception):
    """What breaks a look into the memory off."""


@pytest.fixture
def model() -> Memformer:
    """In training mode, with dropout: whether it is active can be seen."""
    made = small_model(dropout=0.5)
    assert made.training
    return made


def carry_of(model: Memformer, lanes: int) -> Carry:
    length = torch.full((lanes,), 6)
    return Carry(random_memory(model, lanes), random_tokens(lanes, 6), length, ragged=False)


def broken(*arguments: object, **keywords: object) -> None:
    raise Broken


def test_figures_are_those_of_the_slots_kept(model: Memformer) -> None:
    """Against means taken by hand; idle lanes do not count."""
    carry = carry_of(model, 3)
    carry.length[2] = 0
    found = memory_diagnostics(model, carry)
    assert model.training and found == memory_diagnostics(model, carry), "no dropout inside"
    names = ["slot_norm", "slot_cosine", "self_weight", "kept_share", "overwritten_share"]
    assert list(found) == names
    slots = carry.memory[:2].float()
    assert found["slot_norm"] == pytest.approx(1, abs=1e-6)
    cosine_BKK = slots @ slots.transpose(1, 2)
    different = ~torch.eye(slots.shape[1], dtype=torch.bool)
    assert found["slot_cosine"] == pytest.approx(float(cosine_BKK[:, different].mean()), abs=1e-6)
    assert 0 < found["self_weight"] < 1


def test_diagnostics_that_fail_leave_the_model_in_training_mode(
    model: Memformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "slots_kept", broken)
    with pytest.raises(Broken):
        memory_diagnostics(model, carry_of(model, 2))
    assert all(module.training for module in model.modules())


def test_an_inspection_that_fails_leaves_the_model_in_training_mode(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = DocumentIndex.load(small_dataset(tmp_path_factory.mktemp("books"), characters=4_500) / "train")
    tokenizer = index.tokenizer
    model = small_model(vocab_size=tokenizer.vocab_size, start_token_id=tokenizer.start_token_id, dropout=0.5)
    monkeypatch.setattr("memformer.inference.inspection.MemoryInspector.read", broken)

    def two(stream: SegmentStream) -> Iterator[SegmentBatch]:
        yield next(stream)
        yield next(stream)

    with (
        SegmentStream(index, num_lanes=1, segment_length=32, num_segments=1, epochs=1) as stream,
        pytest.raises(Broken),
    ):
        inspected_memory(model, two(stream), tokenizer)
    assert all(module.training for module in model.modules())
