# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What is shown of a memory, against loops that write token by token and singular values; float64, 1e-9 relative.

Covers: memformer/models/looking.py
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from memformer.inference.diagnostics import memory_diagnostics
from memformer.models.backbone import Backbone
from memformer.models.backbone.associative import features
from memformer.models.backbone.looking import BackboneSlots, look
from memformer.models.looking import Looked
from memformer.replay import Carry, Segment
from tests.memformer.models.backbone.examples import MEMORIES, START, config_of, make

LANES, LENGTH = 3, 6
WIDTH = 16
READ = [LENGTH, 4, LENGTH]
"""Targets of each lane; the last one starts a document."""


def example(memory: str) -> tuple[Backbone, Segment, torch.Tensor]:
    """A model away from its zeros, a segment in the middle of documents, and the memory of the segment before it."""
    model = make(config_of(memory=memory), moved=0.3).eval()
    tokens = torch.randint(0, START, (2, LANES, LENGTH))
    full, flags = torch.full((LANES,), LENGTH), torch.tensor([False, False, True])
    first = Segment(tokens[0], full, tokens[0], full, torch.ones_like(flags))
    with torch.no_grad():
        memory_BKC = model.advance(first, model.initial_memory(LANES))
    return model, Segment(tokens[0], full, tokens[1], torch.tensor(READ), flags), memory_BKC


def value_of(looked: Looked, name: str, lane: int, layer: int | None = None) -> float:
    """A figure of one lane alone."""
    figure = looked.figures[name]
    at: Any = lane if layer is None else (lane, layer)
    ratio = float(figure.part[at]) / float(figure.whole[at] or 1)
    return math.sqrt(ratio) if figure.squares else ratio


def inputs_of(model: Backbone, segment: Segment, memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each module is given first, by its name."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
        for name, module in model.named_modules()
        if name.startswith("memory.") or name.count(".") == 1
    ]
    with torch.no_grad():
        model.run(segment, memory, len(model.stack))
    for handle in handles:
        handle.remove()
    return seen


def written(matrix: torch.Tensor, x: torch.Tensor, writer: Any, silent: bool) -> tuple[torch.Tensor, list[float]]:
    """One lane's matrix after its write tokens, one after another (armt: each beside the others), and the gates."""
    x, after, gates = writer.norm(x), matrix.clone(), []
    for token in x:
        key, value = features(writer.key(token)), writer.value(token) * (not silent)
        gates.append(float(torch.sigmoid(writer.gate(token))))
        if writer.normalised:
            found = key @ matrix
            change = gates[-1] * (value - found[:-1] / (found[-1] + 1e-5))
            after = after + torch.outer(key, torch.cat([change, (1 - found[-1:]).clamp(0, 1)]))
        else:
            after = after + torch.outer(key, gates[-1] * (value - key @ after))
    return after, gates


@pytest.mark.parametrize("memory", ["associative", "armt"])
@torch.no_grad()
def test_figures_of_matrices_are_those_of_a_loop_over_the_tokens(memory: str) -> None:
    model, segment, memory_BKC = example(memory)
    looked, seen = look(model, segment, memory_BKC), inputs_of(model, segment, memory_BKC)
    begun = torch.where(segment.reset[:, None, None], 0.0, memory_BKC)
    for layer, writer in enumerate(model.memory.writers):
        for lane in range(LANES):
            before, x = begun[lane, writer.rows], seen[f"memory.writers.{layer}.norm"][lane]
            (after, gates), (left, _) = (written(before, x, writer, silent) for silent in (False, True))
            whole = after
            before, after, left = (each[:, :WIDTH] for each in (before, after, left))
            sizes = torch.linalg.svdvals(after).square()
            expected = {
                "norm": float(sizes.sum().sqrt()),
                "rank": float(sizes.sum() ** 2 / sizes.square().sum()),
                "change": float((after - before).norm() / after.norm()),
                "gate": sum(gates) / len(gates),
                "retention": float(left.norm() / before.norm()) if lane < 2 else 0.0,
            }
            found = {name: value_of(looked, name, lane, layer) for name in expected}
            assert found == pytest.approx(expected, rel=1e-9)
            assert set(expected) | {"read"} == set(looked.figures)
            torch.testing.assert_close(looked.memory[lane, writer.rows], whole, rtol=0, atol=1e-12)
            written_now = looked.associations[layer]
            read = written_now.recall(written_now.keys, looked.memory)[lane]
            matrix = looked.memory[lane, writer.rows]
            plain = features(writer.key(writer.norm(x))) @ matrix
            if writer.normalised:
                plain = plain[:, :-1] / (plain[:, -1:] + 1e-5)
            torch.testing.assert_close(read, plain, rtol=0, atol=1e-12)
            torch.testing.assert_close(written_now.values[lane], writer.value(writer.norm(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["associative", "slots half-way"])
@torch.no_grad()
def test_what_a_layer_reads_is_set_beside_its_stream(memory: str) -> None:
    """At the targets alone: not at the overlap, not at write tokens, not beyond the end of a short lane."""
    model, segment, memory_BKC = example(memory)
    looked, seen = look(model, segment, memory_BKC), inputs_of(model, segment, memory_BKC)
    begun, number = model.begun(segment, memory_BKC), 0
    for place, layer in enumerate(model.stack):
        if layer.reader is None:
            continue
        x = seen[f"stack.{place}"]
        added = layer.reader(x, begun)
        end = x.shape[1] - model.config.memory.back
        for lane, count in enumerate(READ):
            at = slice(end - LENGTH, end - LENGTH + count)
            expected = float(added[lane, at].norm() / x[lane, at].norm())
            assert value_of(looked, "read", lane, number) == pytest.approx(expected, rel=1e-9)
        number += 1
    assert looked.figures["read"].part.shape == (LANES, number) and number > 1


@pytest.mark.parametrize("memory", ["slots", "slots half-way"])
@torch.no_grad()
def test_weights_and_retention_of_slots_are_those_of_a_loop(memory: str) -> None:
    """Head by head; `forgetting: written` pulls the overwritten share of a head towards where slots start."""
    model, segment, memory_BKC = example(memory)
    looked, seen = look(model, segment, memory_BKC), inputs_of(model, segment, memory_BKC)
    assert looked.slots is not None
    own, left, begun = looked.slots
    writer: Any = model.memory.writer
    heads = writer.write.num_heads
    part, forgetting = WIDTH // heads, model.config.memory.forgetting
    x = writer.norm(seen["memory.writer.norm"])
    for lane, count in enumerate(READ):
        for number, slot in enumerate(begun[lane]):
            weights, mixed = [], []
            for head in range(heads):
                at = slice(head * part, (head + 1) * part)
                asked = (writer.write.query(slot) * 4)[at]  # 4: the root of the width
                every = [writer.write.key(slot) * 4, *(writer.write.key(token) for token in x[lane, :count])]
                logits = torch.stack([asked @ key[at] for key in every]) / math.sqrt(part) / 0.25
                shares = logits.softmax(0)
                weights.append(float(shares[0]))
                values = writer.write.value(x[lane, :count])[:, at] / 4
                added = {"off": 0.0, "written": 1 - weights[-1], "paper": 1.0}[forgetting]
                mixed.append(shares[0] * slot[at] + shares[1:] @ values + added * model.memory.start.rows[number, at])
            length = float(torch.cat(mixed).norm())
            assert float(own[lane, number]) == pytest.approx(sum(weights) / heads, rel=1e-9)
            assert float(left[lane, number]) == pytest.approx(sum(weights) / heads / length, rel=1e-9)
            torch.testing.assert_close(looked.memory[lane, number], torch.cat(mixed) / length, rtol=0, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_looking_changes_nothing(memory: str) -> None:
    """The next memory is that of `advance` to the last bit, and no hook stays."""
    model, segment, memory_BKC = example(memory)
    plain = model.advance(segment, memory_BKC)
    assert torch.equal(look(model, segment, memory_BKC).memory, plain)
    assert not any(module._forward_hooks for module in model.modules())
    if model.config.memory.kind == "slots":
        one, mine = segment.lanes(0, 1), memory_BKC[:1]
        weights_HKL, _, following = BackboneSlots(model).write(one, mine)
        torch.testing.assert_close(following, plain[:1], rtol=0, atol=1e-12)
        torch.testing.assert_close(weights_HKL.sum(-1), torch.ones_like(weights_HKL[..., 0]), rtol=0, atol=1e-12)
        assert weights_HKL.shape[-1] == 1 + LENGTH


@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_weights_in_bfloat16_show_the_same_to_their_rounding(memory: str) -> None:
    """As `--dtype bf16` loads an export: eight bits of a number, so 10 % of a norm (seen: 2 %)."""
    model, segment, memory_BKC = example(memory)
    norm = look(model, segment, memory_BKC).figures["norm"].part
    rounded = look(model.bfloat16(), segment, memory_BKC.bfloat16())
    assert rounded.memory.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.figures["norm"].part.to(norm), norm, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("memory", ["associative", "slots", "tokens"])
@torch.no_grad()
def test_sums_of_two_processes_are_those_of_one(memory: str) -> None:
    """And a lane that reads nothing counts for nothing."""
    model, segment, memory_BKC = example(memory)
    segment = segment._replace(target_length=torch.tensor([LENGTH, 0, LENGTH]))
    carry = Carry(memory_BKC, segment.context, segment.context_length)

    def found(start: int, stop: int, total: Any = lambda sums: sums) -> Any:
        return memory_diagnostics(model, carry, total, (segment.lanes(start, stop), memory_BKC[start:stop]))

    sent: list[torch.Tensor] = []
    found(0, 2, lambda sums: sent.append(sums) or sums)
    together, alone = found(2, 3, lambda sums: sums + sent[0]), found(0, LANES)
    assert together.keys() == alone.keys() and len(alone) > 1
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-12)
    looked = look(model, segment, memory_BKC)
    if memory == "tokens":
        rows = [float(row.norm()) for lane in (0, 2) for row in looked.memory[lane]]
        assert alone["norm"] == pytest.approx(sum(rows) / len(rows))
        before = model.begun(segment, memory_BKC)[[0, 2]]
        after = looked.memory[[0, 2]]
        assert alone["change"] == pytest.approx(float((after - before).norm() / after.norm()))
    if memory == "slots":
        unit = F.normalize(model.begun(segment, memory_BKC)[[0, 2]], dim=-1)
        cosines = [float(one[i] @ one[j]) for one in unit for i in range(3) for j in range(3) if i != j]
        assert alone["slot_cosine"] == pytest.approx(sum(cosines) / len(cosines))
