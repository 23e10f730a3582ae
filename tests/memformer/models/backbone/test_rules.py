# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Slots and tokens against references that are written here from the papers, one number at a time or by other code."""

import dataclasses
import math

import pytest
import torch

from memformer.models.backbone.memory import LayerOutput
from memformer.models.backbone.slots import SlotMemory, SlotReader
from memformer.models.configuration import FORGETTING, Forgetting
from memformer.models.construction import Construction
from memformer.replay import Segment
from tests.memformer.models.backbone.examples import START, config_of, make, plain_of

LANES, LENGTH, WIDTH, HEADS, SLOTS = 2, 5, 16, 2, 3
PART = WIDTH // HEADS


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's output, and slots of length 1."""
    torch.manual_seed(1)
    x, memory = torch.randn(LANES, LENGTH, WIDTH), torch.randn(LANES, SLOTS, WIDTH)
    return x.double(), memory.double() / memory.double().square().sum(-1, keepdim=True).sqrt()


def normed(x: torch.Tensor) -> torch.Tensor:
    """A layer norm that has learned nothing."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("forgetting", FORGETTING)
@torch.no_grad()
def test_slots_are_written_as_the_paper_says(forgetting: Forgetting) -> None:
    """Of the tokens that are scored and there; each slot sees itself and them, head by head."""
    config = config_of(memory="slots")
    config = dataclasses.replace(config, memory=dataclasses.replace(config.memory, forgetting=forgetting))
    torch.manual_seed(0)
    kind = SlotMemory(config, 0.1, Construction()).double()
    x, memory = inputs()
    mask = torch.arange(4) < torch.tensor([[4], [2]])  # of the last four of the five
    output = LayerOutput(x, memory, slice(1, 5), mask)
    written = kind.after((config.num_layers + 1) // 2 - 1, output)  # half-way up, and nowhere else
    elsewhere = [kind.after(layer, output) for layer in range(config.num_layers)]
    assert written is not None and sum(each is not None for each in elsewhere) == 1
    to_query, to_key, to_value = (getattr(kind.writer.write, name).weight for name in ("query", "key", "value"))
    start, x = kind.start.rows, normed(x)[:, 1:]
    for lane in range(LANES):
        for number, slot in enumerate(memory[lane]):
            following = torch.zeros(WIDTH).double()
            tokens = [token for token, there in zip(x[lane], mask[lane], strict=True) if there]
            for head in range(HEADS):
                part = slice(head * PART, (head + 1) * PART)
                asked, own = (to_query @ slot * 4)[part], (to_key @ slot * 4)[part]  # 4: the root of the width
                logits = [asked @ own, *(asked @ (to_key @ token)[part] for token in tokens)]
                powers = [math.exp(float(each) / math.sqrt(PART) / 0.25) for each in logits]
                shares = [each / sum(powers) for each in powers]
                following[part] = shares[0] * slot[part]
                for share, token in zip(shares[1:], tokens, strict=True):
                    following[part] += share * (to_value @ token / 4)[part]
                added = {"off": 0.0, "written": 1 - shares[0], "paper": 1.0}[forgetting]
                following[part] += added * start[number, part]
            expected = following / following.square().sum().sqrt()
            assert torch.allclose(written[lane, number], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_slots_are_read_by_every_token_over_every_slot() -> None:
    torch.manual_seed(0)
    reader = SlotReader(config_of(memory="slots")).double()
    x, memory = inputs()
    assert torch.equal(reader(x, memory), torch.zeros_like(x))  # before anything is learned
    weights = reader.read.attention
    weights.output.weight.normal_()
    found, x = reader(x, memory), normed(x)
    for lane in range(LANES):
        for place, token in enumerate(x[lane]):
            heads = torch.zeros(WIDTH).double()
            for head in range(HEADS):
                part = slice(head * PART, (head + 1) * PART)
                asked = (weights.query.weight @ token)[part]
                powers = [
                    math.exp(float(asked @ (weights.key.weight @ slot * 4)[part]) / math.sqrt(PART))
                    for slot in memory[lane]
                ]
                for power, slot in zip(powers, memory[lane], strict=True):
                    heads[part] += power / sum(powers) * (weights.value.weight @ slot * 4)[part]
            assert torch.allclose(found[lane, place], weights.output.weight @ heads, rtol=0, atol=1e-12)


@torch.no_grad()
def test_tokens_are_what_transformers_makes_of_them_as_embeddings() -> None:
    """In front of the segment and behind it; the outputs behind, normed, are the next memory."""
    model = make(config_of(memory="tokens", overlap=0, segment_bos=True), moved=0.2).eval()
    plain = plain_of(model)
    tokens = torch.randint(0, START, (LANES, LENGTH), generator=torch.Generator().manual_seed(2))
    full, never = torch.full((LANES,), LENGTH), torch.zeros(LANES, dtype=torch.bool)
    memory = inputs()[1]
    logits, written = model.logits(Segment(tokens, full, tokens, full, never, False, False), memory)
    seen = torch.cat([torch.full((LANES, 1), START), tokens[:, :-1]], 1)
    embeddings = torch.cat([memory, plain.get_input_embeddings()(seen), memory], 1)
    outputs: list[torch.Tensor] = []
    plain.model.layers[-1].register_forward_hook(lambda layer, given, output: outputs.append(output))
    expected = plain(inputs_embeds=embeddings, use_cache=False).logits[:, SLOTS:-SLOTS]
    norm = model.memory.norm
    assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
    assert torch.allclose(written, normed(outputs[0][:, -SLOTS:]) * norm.weight + norm.bias, rtol=0, atol=1e-12)
