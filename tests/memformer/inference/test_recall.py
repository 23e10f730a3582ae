# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What keys recall, against loops over a whole document that keep everything; float64, six digits as reports have them.

Covers: memformer/inference/document.py
"""

from typing import Any

import numpy as np
import pytest
import torch

from memformer.inference.recall import RecallInspector
from memformer.models.backbone import Backbone
from memformer.models.backbone.looking import look
from memformer.replay import Segment
from tests.memformer.models.backbone.examples import START, config_of, make

LENGTH, TOKENS, HORIZON = 6, 27, 2
DOCUMENT = np.random.default_rng(3).integers(0, START, TOKENS)


def model_of(memory: str) -> Backbone:
    return make(config_of(memory=memory, segment_length=LENGTH), moved=0.3).eval()


def report_of(model: Backbone, **options: Any) -> dict[str, Any]:
    inspector = RecallInspector(model, TOKENS, **options)
    for piece in np.split(DOCUMENT, [4, 5, 17]):
        inspector.read(piece)
    return inspector.report()


@torch.no_grad()
def every_write(model: Backbone) -> list[Any]:
    """Each segment's look, from the initial memory on; the first as a document begins."""
    memory, found, before = model.initial_memory(1), [], torch.zeros(1, LENGTH, dtype=torch.int64)
    known = torch.tensor([0])
    for start in range(0, TOKENS, LENGTH):
        piece = torch.from_numpy(DOCUMENT[start : start + LENGTH])
        target, length = torch.zeros(1, LENGTH, dtype=torch.int64), torch.tensor([len(piece)])
        target[0, : len(piece)] = piece
        looked = look(model, Segment(before, known, target, length, torch.tensor([start == 0])), memory)
        found.append((memory, looked))
        memory, before, known = looked.memory, target, length
    return found


@pytest.mark.parametrize("memory", ["associative", "armt"])
def test_values_are_read_again_by_their_keys(memory: str) -> None:
    model = model_of(memory)
    report, writes = report_of(model, horizon=HORIZON), every_write(model)
    assert report["document"] == {"tokens": TOKENS, "segment_length": LENGTH, "writes": len(writes)}
    recall = report["recall"]
    assert recall["distance"] == list(range(HORIZON + 1))
    for layer in range(len(model.config.memory_layers)):
        values = [value for _, each in writes for value in each.associations[layer].values[0]]
        count = len(values) // len(writes)
        for distance in range(HORIZON + 1):
            along = size = error = apart = own = 0.0
            for number in range(len(writes) - distance):
                written = writes[number][1].associations[layer]
                read = written.recall(written.keys, writes[number + distance][1].memory)
                mean = torch.stack(values[: count * (number + 1)]).mean(0)
                for one, value in zip(read[0], written.values[0], strict=True):
                    apart += float((one - mean) @ (value - mean))
                    own += float((value - mean) @ (value - mean))
                    along, size = along + float(one @ value), size + float(value @ value)
                    error += float((one - value) @ (one - value))
            assert recall["recall"][distance][layer] == pytest.approx(along / size, rel=1e-5)
            assert recall["error"][distance][layer] == pytest.approx((error / size) ** 0.5, rel=1e-5)
            assert recall["distinct"][distance][layer] == pytest.approx(apart / own, rel=1e-5)
        found = [each.associations[layer] for _, each in writes]
        reads = [each.recall(each.keys, before) for each, (before, _) in zip(found, writes, strict=True)]
        along = sum(float((read * each.values).sum()) for read, each in zip(reads, found, strict=True))
        size = sum(float(each.values.square().sum()) for each in found)
        assert recall["recall_before"][layer] == pytest.approx(along / size, rel=1e-5)
        norms = [float(each.memory[0, model.memory.writers[layer].rows, :16].norm()) for _, each in writes]
        assert [row[layer] for row in report["columns"]["norm"]] == pytest.approx(norms, rel=1e-5)
        assert report["figures"]["norm"][layer] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_a_rule_that_writes_its_values_whole_recalls_them_at_once() -> None:
    """With its gates open, the delta rule gives back the last that it wrote, and later less of it."""
    model = model_of("one layer")
    with torch.no_grad():
        for writer in model.memory.writers:
            writer.gate.bias.fill_(40.0)
            writer.gate.weight.zero_()
    written = every_write(model)[1][1].associations[0]
    last = written.recall(written.keys, every_write(model)[1][1].memory)[0, -1]
    torch.testing.assert_close(last, written.values[0, -1], rtol=1e-9, atol=1e-9)
    recall = report_of(model, horizon=1)["recall"]
    assert recall["recall"][0][0] > 0.9 and recall["error"][0][0] < recall["error"][1][0]


def test_tokens_have_norms_and_changes_alone() -> None:
    model = model_of("tokens")
    report, writes = report_of(model), every_write(model)
    assert report["recall"] is None and set(report["figures"]) == {"norm", "change"}
    with torch.no_grad():
        changes = [float((each.memory - before).norm() / each.memory.norm()) for before, each in writes]
    assert report["columns"]["change"] == pytest.approx(changes, rel=1e-5)
