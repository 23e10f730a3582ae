# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The language model alone, with all of a document in its own context: what transformers' own model says.

Tolerances: float64 1e-12, float32 1e-5, of log-likelihoods of some nats; the two differ in the order of sums at most.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.tasks import Texts, parse_tasks
from data_pipeline.tasks.prompts import Prompt
from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.inference import drawing, without_memory
from memformer.inference.task_report import Grid, evaluate_task, heat_map, table
from memformer.inference.without_memory import answer_without_memory, context_of
from tests.memformer.examples import small_model
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, START, config_of, make, plain_of

BOS = 3
LENGTHS = (5, 40, 17, 58)
"""Tokens before the answers; the backbones have 64 positions."""


def model_of(kind: str = "llama", memory: str = "associative", dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """Its memory is away from the zeros that it starts with, so that reading it would be seen."""
    config = config_of(kind, memory, segment_length=4, bos_token_id=BOS, **more)
    return make(config, dtype, moved=0.1).eval().requires_grad_(False)


def prompts() -> list[Prompt]:
    return [
        Prompt((np.arange(length + 6) * 7 + length) % START, ((length, length + 3), (length + 4, length + 6)))
        for length in LENGTHS
    ]


@torch.no_grad()
def expected(model: Any, prompt: Prompt) -> list[tuple[bool, float]]:
    """Whether each answer is right, and its log-likelihood, by transformers' own model on the same tokens."""
    tokens = torch.from_numpy(prompt.tokens.astype(np.int64))
    inputs = torch.cat([torch.tensor([BOS]), tokens[:-1]])[None]
    logits = plain_of(model)(input_ids=inputs, use_cache=False).logits[0]
    likely, masked = logits.log_softmax(-1), logits.clone()
    masked[:, START] = float("-inf")
    best = masked.argmax(-1)
    return [
        (bool((best[a:b] == tokens[a:b]).all()), float(likely[torch.arange(a, b), tokens[a:b]].sum()))
        for a, b in prompt.answers
    ]


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("memory", ["associative", "slots", "tokens"])
def test_it_is_transformers_own_model(kind: str, memory: str) -> None:
    model = model_of(kind, memory)
    found = answer_without_memory(model, prompts())
    for prompt, said in zip(prompts(), found, strict=True):
        assert said is not None
        for each, (right, likely) in zip(said, expected(model, prompt), strict=True):
            assert each.right == right and each.log_likelihood == pytest.approx(likely, abs=1e-12)


def test_in_float32_too() -> None:
    model = model_of("qwen3", "associative", torch.float32)
    for prompt, said in zip(prompts(), answer_without_memory(model, prompts()), strict=True):
        assert said is not None
        for each, (_, likely) in zip(said, expected(model, prompt), strict=True):
            assert each.log_likelihood == pytest.approx(likely, abs=1e-5)


def test_right_is_what_it_would_write() -> None:
    """Answers made of its own most likely tokens are right; one that ends otherwise is not."""
    model = model_of()
    tokens = [int(token) for token in prompts()[1].tokens[:30]]
    for _ in range(3):
        inputs = torch.tensor([[BOS, *tokens]])
        logits = plain_of(model)(input_ids=inputs, use_cache=False).logits[0, -1]
        logits[START] = float("-inf")
        tokens.append(int(logits.argmax()))
    right = answer_without_memory(model, [Prompt(np.array(tokens), ((30, 33),))])[0]
    assert right is not None and right[0].right and list(right[0].tokens) == tokens[30:]
    tokens[-1] = (tokens[-1] + 1) % START
    wrong = answer_without_memory(model, [Prompt(np.array(tokens), ((30, 33),))])[0]
    assert wrong is not None and not wrong[0].right


def test_logits_are_made_in_parts_with_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    whole = answer_without_memory(model, prompts())
    monkeypatch.setattr(without_memory, "MOST_LOGITS", 2 * START)
    sizes: list[int] = []
    model.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    parts = answer_without_memory(model, prompts())
    assert max(sizes) == 1 and len(sizes) == 5 * len(LENGTHS)
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours is not None and theirs is not None
        for each, other in zip(ours, theirs, strict=True):
            assert each.tokens == other.tokens and each.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-12)


def test_a_document_that_is_longer_than_the_context_has_no_answers() -> None:
    model = model_of()
    assert context_of(model) == 64
    fits, longer = (Prompt(np.zeros(70, dtype=np.int64), ((end - 2, end),)) for end in (64, 65))
    found = answer_without_memory(model, [longer, fits])
    assert found[0] is None and found[1] is not None


def test_a_sliding_window_is_the_context() -> None:
    config = config_of("mistral", "slots", segment_length=4)
    config = dataclasses.replace(config, backbone=config.backbone | {"sliding_window": 20})
    assert context_of(make(config)) == 20


def test_a_model_that_is_nothing_without_its_memory_has_no_such_mode() -> None:
    assert context_of(small_model(segment_length=4)) is None


@pytest.mark.parametrize("memory", ["associative", "tokens"])
def test_the_report_has_it_where_the_document_fits(memory: str) -> None:
    config = config_of("llama", memory, segment_length=16, vocab_size=257, start_token_id=256)
    model = make(dataclasses.replace(config, backbone=config.backbone | {"max_position_embeddings": 100})).eval()
    task, records = parse_tasks("recall:pairs=1")[0], list[dict[str, Any]]()
    grid = Grid([0, 120], [0.0, 1.0], documents=3)
    result = evaluate_task(model, make_tokenizer("bytes"), task, Texts(), grid, dump=records.append)
    assert result["context"] == 100 and MEMORIES[memory]
    near, far = result["cells"][0]["without_memory"], result["cells"][1]["without_memory"]
    assert near["right"] == sum(each["without_memory_right"] for each in records[:3]) and near["log_likelihood"] < 0
    assert far is None and "without_memory" not in records[3]
    lines = table(result)
    assert lines[1].split()[-5:-1] == ["memory", "reset", "without", "memory"]
    assert "longer than 100" in lines[3] and "longer than 100" not in lines[2]
    assert lines[-1] == "without memory: the language model alone, which reads 100 tokens at once and no more"
    if drawing.available():
        panels = heat_map(result).axes
        assert [axes.get_title(loc="left") or axes.get_title() for axes in panels[:3]][2] == "the language model alone"
        shown = np.asarray(panels[2].images[0].get_array())
        assert np.isnan(shown[:, 1]).all() and shown[0, 0] == near["accuracy"]
