# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What is looked at while training, against plain loops over lanes and slots, and against the inspected document.

Covers: memformer/models/evaluation_mode.py
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream
from data_pipeline.tokenizer import ByteTokenizer
from memformer import Memformer
from memformer.engine.frozen import freeze
from memformer.inference.diagnostics import memory_diagnostics
from memformer.inference.inspection import KEPT, OVERWRITTEN, inspect_tokens
from memformer.inference.pictures import available, pictures
from memformer.inference.recall import RecallInspector
from memformer.replay import Carry, Segment
from memformer.training.evaluation import INSPECTED_HORIZON, inspected_memory
from tests.books import small_dataset
from tests.memformer.examples import random_memory, random_tokens, small_model
from tests.memformer.models.backbone.examples import START, config_of, make

LANES, LENGTH = 4, 6


def example_carry(model: torch.nn.Module, lengths: list[int]) -> Carry:
    return Carry(random_memory(model, LANES), random_tokens(LANES, LENGTH), torch.tensor(lengths))  # type: ignore[arg-type]


def test_figures_are_those_of_a_plain_loop_over_the_lanes_that_read() -> None:
    model = small_model(memory_temperature=0.05).train()
    carry = example_carry(model, [LENGTH, 0, 3, LENGTH])
    found = memory_diagnostics(model, carry)
    assert model.training, "the mode is put back"
    rows: dict[str, list[float]] = {name: [] for name in found}
    for lane in (0, 2, 3):
        part = carry.lanes(lane, lane + 1)
        segment = Segment(part.tokens, part.length, part.tokens, part.length, torch.tensor([False]))
        own, left = (each[0] for each in model.eval().self_weights(segment, part.memory)[:2])
        memory = part.memory[0]
        pairs = [(i, j) for i in range(len(memory)) for j in range(len(memory)) if i != j]
        rows["slot_norm"].append(float(torch.stack([slot.norm() for slot in memory]).mean()))
        cosines = [torch.nn.functional.cosine_similarity(memory[i], memory[j], dim=0) for i, j in pairs]
        rows["slot_cosine"].append(float(torch.stack(cosines).mean()))
        rows["self_weight"].append(float(own.mean()))
        rows["retention"].append(float(left.mean()))
        rows["kept_share"].append(sum(float(each) > KEPT for each in left) / len(left))
        rows["overwritten_share"].append(sum(float(each) < OVERWRITTEN for each in left) / len(left))
    for name, values in rows.items():
        assert found[name] == pytest.approx(sum(values) / 3, abs=1e-6), name


def test_sums_of_several_processes_are_one_mean() -> None:
    """`total` adds what others found: here, another process with the same lanes changes no mean."""
    model = small_model()
    carry = example_carry(model, [LENGTH, 0, 3, LENGTH])
    alone = memory_diagnostics(model, carry)
    assert memory_diagnostics(model, carry, lambda sums: 2 * sums) == pytest.approx(alone)


def test_figures_of_a_model_whose_frozen_weights_are_in_16_bits() -> None:
    """As a run that trains the memory alone under bf16 has it: autocast reads what is stored in two precisions."""
    model = small_model(torch.float32)
    carry = example_carry(model, [LENGTH, 0, 3, LENGTH])
    carry = dataclasses.replace(carry, memory=carry.memory.float())
    plain = memory_diagnostics(model, carry)
    freeze(model, "memory", "bf16")
    found = memory_diagnostics(model, carry, autocast=torch.autocast("cpu", torch.bfloat16))
    assert found == pytest.approx(plain, abs=2e-2), "bfloat16 has 8 bits"


def test_nothing_to_look_at() -> None:
    bare = small_model(num_memory_slots=0)
    empty = Carry(torch.zeros(LANES, 0, 16, dtype=torch.float64), random_tokens(LANES, LENGTH), torch.ones(LANES))
    assert memory_diagnostics(bare, empty) == {}
    assert inspected_memory(bare, [], ByteTokenizer()) is None
    model = small_model()
    idle = memory_diagnostics(model, example_carry(model, [0, 0, 0, 0]))
    assert set(idle.values()) == {0.0}, "no lane reads: no division by nought"


def batch_of(tokens: list[int], reset: bool) -> SegmentBatch:
    """A segment of one lane; no tokens: the lane idles."""
    padded = np.zeros((1, 1, LENGTH), np.int32)
    padded[0, 0, : len(tokens)] = tokens
    place = np.zeros((1, 1), np.int64)
    return SegmentBatch(
        step=0,
        first_lane=0,
        documents=place,
        epochs=place,
        starts=place,
        lengths=np.array([[len(tokens)]], np.int32),
        resets=np.array([[reset]]),
        carry_from=np.array([-1]),
        valid_tokens=len(tokens),
        tokens=padded,
    )


@pytest.mark.parametrize("after", [batch_of([1, 2, 3], reset=True), batch_of([], reset=False)])
def test_the_first_document_alone_is_inspected(after: SegmentBatch) -> None:
    """Up to where the lane takes another document, or idles."""
    model = small_model(torch.float32).train()
    document = random_tokens(LENGTH + 4).tolist()
    batches = [batch_of(document[:LENGTH], True), batch_of(document[LENGTH:], False), after, batch_of([5], False)]
    found = inspected_memory(model, batches, ByteTokenizer())
    assert model.training, "the mode is put back"
    pieces = [np.array(document)]
    expected = inspect_tokens(model.eval(), ByteTokenizer(), pieces, horizon=INSPECTED_HORIZON, segment_length=LENGTH)
    assert found == expected
    assert found is not None and found["document"]["tokens"] == len(document)


@pytest.mark.parametrize(("memory", "drawn"), [("armt", {"recall"}), ("tokens", set())])
def test_a_memory_without_slots_is_inspected_as_the_command_does(memory: str, drawn: set[str]) -> None:
    model = make(config_of(memory=memory, segment_length=LENGTH), moved=0.3).train()
    document = (random_tokens(2 * LENGTH) % START).tolist()
    batches = [batch_of(document[:LENGTH], True), batch_of(document[LENGTH:], False)]
    found = inspected_memory(model, batches, ByteTokenizer())
    assert model.training and found is not None
    inspector = RecallInspector(model.eval(), len(document), horizon=INSPECTED_HORIZON, segment_length=LENGTH)
    inspector.read(np.array(document))
    assert found == inspector.report()
    if available():
        assert set(pictures(found)) == drawn


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


def test_diagnostics_that_fail_leave_the_model_in_training_mode(
    model: Memformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "self_weights", broken)
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
