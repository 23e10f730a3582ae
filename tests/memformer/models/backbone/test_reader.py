# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Token by token the reader gives the logits of training, at every place, across segment borders, at constant memory.

Tolerance in float64 1e-12, in float32 1e-5: the same products in another order of sums, layer by layer.

Covers: memformer/models/segment_cache.py
"""

import dataclasses
from typing import Any

import pytest
import torch

from memformer.inference.generation import choose, generate
from memformer.models.backbone import Backbone, LoraConfig
from memformer.models.backbone.reader import BackboneReader
from memformer.models.segment_cache import Places, SegmentCache
from memformer.replay import Segment
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, START, config_of, make

LENGTH = 4


def teacher_forced(model: Backbone, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of each token [B, n, V] from those before it, computed segment by segment as in training."""
    carried, context, found = model.initial_memory(len(tokens)), tokens[:, :LENGTH], []
    full = torch.full((len(tokens),), LENGTH)
    for start in range(0, tokens.shape[1], LENGTH):
        part = tokens[:, start : start + LENGTH]
        target, length = torch.nn.functional.pad(part, (0, LENGTH - part.shape[1])), full.clone().fill_(part.shape[1])
        begins = torch.full_like(full, start == 0, dtype=torch.bool)
        logits, carried = model.logits(Segment(context, full, target, length, begins), carried)
        found.append(logits[:, : part.shape[1]])
        context = target
    return torch.cat(found, 1)


def stepwise(reader: Any, tokens: torch.Tensor) -> torch.Tensor:
    found = []
    for token in tokens.split(1, 1):
        found.append(reader.logits)
        reader.read(token)
    return torch.stack(found, 1)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("memory", MEMORIES)
def test_it_gives_the_logits_of_training_for_every_kind_of_model_and_memory(kind: str, memory: str) -> None:
    """Two documents side by side over four borders; in both precisions, with a start token of the backbone's own."""
    tokens = torch.arange(2 * 19).view(2, 19) * 7 % START
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        config = config_of(kind, memory, segment_length=LENGTH, bos_token_id=3)
        model = make(config, dtype, moved=0.1).eval()
        found, expected = stepwise(BackboneReader(model, 2), tokens), teacher_forced(model, tokens)
        assert torch.allclose(found, expected[..., : found.shape[-1]], atol=tolerance, rtol=0)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_read_and_score(memory: str, dtype: torch.dtype) -> None:
    """As an export in bf16 is loaded: close to the same weights in float32 (5 % of the largest logit: 8 bits, 3 layers)
    over four borders, with a memory of matrices in float32."""
    tokens = torch.arange(19)[None] * 7 % START
    half = make(config_of("llama", memory, segment_length=LENGTH), torch.float32, moved=0.1).eval().to(dtype)
    reader = BackboneReader(half)
    found, scored = stepwise(reader, tokens).float(), teacher_forced(half, tokens).float()
    expected = teacher_forced(half.float(), tokens).detach()
    least = 0.05 * float(expected.abs().max())
    for each in (found, scored):
        assert torch.allclose(each, expected[..., : each.shape[-1]], atol=least, rtol=0)
    matrices = half.config.memory.kind == "associative"
    assert reader._memory.dtype == (torch.float32 if matrices else dtype)


@pytest.mark.parametrize("changes", [{"overlap": 0}, {"overlap": 0, "segment_bos": False}, {"overlap": LENGTH}])
@pytest.mark.parametrize("memory", ["associative", "slots half-way", "tokens"])
def test_whatever_a_segment_sees_of_the_one_before(memory: str, changes: dict[str, Any]) -> None:
    model = make(config_of("llama", memory, segment_length=LENGTH, **changes), moved=0.1).eval()
    tokens = torch.arange(11)[None] * 7 % START
    assert torch.allclose(stepwise(BackboneReader(model), tokens), teacher_forced(model, tokens), atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_low_rank_adapters(kind: str) -> None:
    model = make(config_of(kind, "armt", segment_length=LENGTH, lora=LoraConfig(2, 4.0)), moved=0.1).eval()
    tokens = torch.arange(2 * 11).view(2, 11) * 7 % START
    assert torch.allclose(stepwise(BackboneReader(model, 2), tokens), teacher_forced(model, tokens), atol=1e-12)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_prompt_may_come_in_any_pieces(memory: str) -> None:
    """Whole segments are read as in training, the rest through the cache, also after logits were asked for."""
    model = make(config_of("gpt_neox", memory, segment_length=LENGTH), moved=0.1).eval()
    tokens = torch.arange(2 * 18).view(2, 18) * 5 % START
    expected = teacher_forced(model, torch.cat([tokens, tokens[:, :1]], 1))
    for pieces in ((18,), (3, 15), (1, 4, 2, 11), (4, 8, 6), (17, 1)):
        for asked in (False, True):
            reader = BackboneReader(model, 2)
            for piece in tokens.split(pieces, 1):
                if asked:
                    assert reader.logits is not None
                reader.read(piece)
            assert torch.allclose(reader.logits, expected[:, -1], atol=1e-12), (pieces, asked)


def test_a_text_is_continued_as_it_is_scored() -> None:
    """Greedily and drawn: each token is what `choose` takes from the teacher-forced logits, with the same numbers."""
    model = make(config_of("qwen3", "associative", segment_length=LENGTH), moved=1.0).eval()
    for temperature, top_k, top_p in ((0.0, None, 1.0), (0.9, 7, 0.8)):
        prompt = [3, 1, 4, 1, 5]
        made = list(generate(model, prompt, 15, temperature=temperature, top_k=top_k, top_p=top_p, seed=5))
        logits = teacher_forced(model, torch.tensor([prompt + made]))[0, len(prompt) :]
        logits[:, START] = float("-inf")
        source = torch.Generator().manual_seed(5)
        expected = [int(choose(row[None], temperature, top_k, top_p, source)) for row in logits]
        assert made == expected and len(set(made)) > 3


def held(value: Any) -> int:
    """Bytes of all tensors that a reader holds between two calls, wherever it has them; the model is not its own."""
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(held, value))
    return held(vars(value)) if isinstance(value, BackboneReader | SegmentCache | Places) else 0


@pytest.mark.parametrize("memory", ["associative", "slots", "tokens"])
def test_memory_and_work_are_the_same_in_the_thirtieth_segment(memory: str) -> None:
    """What it holds is what it held after one, to the byte; and no input runs through a layer twice."""
    model = make(config_of("llama", memory, segment_length=LENGTH), moved=0.1).eval()
    reader, ran = BackboneReader(model), []
    model.stack[0].register_forward_hook(lambda _, inputs, __: ran.append(inputs[0].shape[1]))
    alive = []
    for segment in range(30):
        ran.clear()
        for token in range(LENGTH):
            assert reader.logits.shape == (1, 31)
            reader.read(torch.tensor([[(token + segment) % START]]))
        alive.append(held(reader))
        assert sum(each.untyped_storage().nbytes() for each in reader.tensors()) <= alive[-1]
        if segment:
            config = model.config.memory
            assert sum(ran) == config.front + 1 + 2 + LENGTH - 1 + config.back
    assert len(set(alive[1:])) == 1


def test_ids_that_the_backbone_does_not_have() -> None:
    """The data's start token is one more than its own ids here; of a larger vocabulary only the data's are given."""
    config = config_of("mistral", segment_length=LENGTH, vocab_size=32, start_token_id=31, bos_token_id=2)
    for own in (31, 40):
        model = make(dataclasses.replace(config, backbone=config.backbone | {"vocab_size": own})).eval()
        reader = BackboneReader(model, 2)
        reader.read(torch.arange(18).view(2, 9))
        assert reader.logits.shape == (2, 32)
        assert bool(reader.logits[:, 31].isneginf().all()) == (own == 31)


def test_without_a_segment_length_it_is_refused() -> None:
    with pytest.raises(ValueError, match="segment_length is not in the model's configuration"):
        BackboneReader(make(config_of()))
