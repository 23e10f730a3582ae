# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Answers to tasks: against the whole model on each document alone, against greedy generation, in both families.

Tolerance in float64 1e-11: the same products, summed in another order where documents are read side by side.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline import UserError
from data_pipeline.tasks import Texts, make_document, parse_tasks
from data_pipeline.tasks.prompts import Prompt, prompt_of
from data_pipeline.tokenizer import Tokenizer, train_bpe
from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.inference import tasks
from memformer.inference.generation import generate
from memformer.inference.perplexity import MODES
from memformer.inference.tasks import answer_questions
from memformer.replay import Carry, Rollout
from tests.books import book_text
from tests.data_pipeline.test_hf_tokenizer import byte_level, llama, write
from tests.memformer.examples import START, small_model
from tests.memformer.models.backbone.examples import config_of, make

LENGTH = 4
MODELS = ("memformer", "no slots", "associative", "tokens")


def model_of(name: str) -> Any:
    if name in ("memformer", "no slots"):
        slots = 3 if name == "memformer" else 0
        return small_model(segment_length=LENGTH, num_memory_slots=slots).eval().requires_grad_(False)
    return make(config_of("llama", name, segment_length=LENGTH, bos_token_id=3), moved=0.1).eval().requires_grad_(False)


def prompts_of(model: Any) -> list[Prompt]:
    """Documents of uneven lengths whose answers are what the model would write, or that with its last token changed."""
    made = []
    for number, length in enumerate((5, 9, 4, 17, 1)):
        words = (np.arange(length) * 7 + number) % START
        answer = list(generate(model, words.tolist(), 3, temperature=0))
        if number % 2:
            answer[-1] = (answer[-1] + 1) % START
        made.append(Prompt(np.array([*words, *answer, 1, 2, 5]), ((length, length + 3), (length + 4, length + 6))))
    return made


def scored(model: Any, prompt: Prompt, reset: bool, length: int = LENGTH) -> list[float]:
    """The answers' log-likelihoods by the losses of all tokens of the document alone, every segment by all layers."""
    tokens = torch.from_numpy(prompt.tokens.astype(np.int64))
    segments = -(-len(tokens) // length)
    padded = torch.zeros(1, segments * length, dtype=torch.int64)
    padded[0, : len(tokens)] = tokens
    lengths = (len(tokens) - torch.arange(segments) * length).clamp(max=length)[None]
    resets = torch.arange(segments)[None] == 0
    rollout = Rollout.of(padded.view(1, segments, length), lengths, resets)
    initial = model.initial_memory(1).clone()
    carry, memory, losses = Carry.empty(initial, length), initial, []
    for t in range(segments):
        found, memory = model.losses(rollout.segment(t, carry), initial if reset else memory)
        losses.append(found[0])
    flat = torch.cat(losses)
    return [-float(flat[first:end].sum()) for first, end in prompt.answers]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_likelihoods_are_those_of_the_whole_model_on_each_document_alone(name: str) -> None:
    """Side by side or alone; and with the memory reset, which is another figure where there is a memory."""
    model = model_of(name)
    prompts = prompts_of(model)
    expected = {mode: [scored(model, each, mode == "memory_reset") for each in prompts] for mode in MODES}
    assert (expected["with_memory"] == expected["memory_reset"]) == (name == "no slots")
    told = 0

    def count(tokens: int) -> None:
        nonlocal told
        told += tokens

    for lanes in (1, 2, 8):
        told = 0
        found = answer_questions(model, prompts, lanes, progress=count)
        for mode in MODES:
            likely = [[each.log_likelihood for each in said] for said in found[mode]]
            for mine, theirs in zip(likely, expected[mode], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-11)
        read = sum(min(len(each.tokens), -(-each.answers[-1][1] // LENGTH) * LENGTH) for each in prompts)
        assert told >= read, "every token up to the last answer"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lanes", [1, 8])
def test_an_answer_is_right_if_greedy_generation_would_write_it(name: str, lanes: int) -> None:
    model = model_of(name)
    prompts = prompts_of(model)
    found = answer_questions(model, prompts, lanes)["with_memory"]
    for number, (prompt, said) in enumerate(zip(prompts, found, strict=True)):
        for (first, end), each in zip(prompt.answers, said, strict=True):
            written = list(generate(model, prompt.tokens[:first].tolist(), end - first, temperature=0))
            assert each.right == (written == prompt.tokens[first:end].tolist())
            assert list(each.tokens) == written[: len(each.tokens)]
        assert said[0].right == (number % 2 == 0)
        assert len(said[0].tokens) == 3


def test_a_large_vocabulary_is_asked_lane_by_lane_with_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("memformer")
    expected = answer_questions(model, prompts_of(model))
    monkeypatch.setattr(tasks, "MOST_LOGITS", 1)
    found = answer_questions(model, prompts_of(model))
    for mode in MODES:
        assert [[each.tokens for each in said] for said in found[mode]] == [
            [each.tokens for each in said] for said in expected[mode]
        ]


def test_the_model_comes_back_in_the_mode_that_it_was_in() -> None:
    model = small_model(segment_length=LENGTH, dropout=0.5).train()
    first, second = (answer_questions(model, prompts_of(small_model(segment_length=LENGTH).eval())) for _ in range(2))
    assert first == second and model.training


def test_a_model_without_a_length_or_logits_is_refused() -> None:
    with pytest.raises(UserError, match="names no segment_length"):
        answer_questions(small_model(), [])

    class Other:
        config = small_model(segment_length=LENGTH).config

    with pytest.raises(UserError, match="tasks are not built for family memformer: its models have no logits"):
        answer_questions(Other(), [])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte_level", "llama"])
def test_an_answer_s_tokens_are_those_of_its_text(kind: str, tmp_path: Path) -> None:
    """Words that are not ASCII before it, several answers, tokenizers that put a blank before a document."""
    tokenizer: Tokenizer
    if kind == "bytes":
        tokenizer = make_tokenizer("bytes")
    elif kind == "bpe":
        tokenizer = train_bpe([book_text(40_000)], 600)
    else:
        tokenizer = make_tokenizer(f"hf:{write(tmp_path, llama() if kind == 'llama' else byte_level(prefix=True))}")
    (tmp_path / "own.jsonl").write_text(json.dumps({"context": "Zoë sah 书.", "question": "Was?", "answer": "Zoë 书"}))
    for words in (str(tmp_path / "own.jsonl"), "recall:queries=3", "needle:kind=word"):
        document = make_document(parse_tasks(words)[0], Texts(), 300, 0.5, 0, 0, "test", len)
        prompt = prompt_of(document, tokenizer)
        assert tokenizer.decode(prompt.tokens.tolist()) == document.text
        for (first, end), answer in zip(prompt.answers, document.answers, strict=True):
            said = [tokenizer.token_bytes(token) for token in prompt.tokens[first:end].tolist()]
            right = document.answer(answer).encode()
            assert b"".join(said).lstrip() == right
            assert right.startswith(b"".join(said[:-1]).lstrip()), "no token more"
            assert not b"".join(said[1:]).endswith(b" " + right), "nor before it"
