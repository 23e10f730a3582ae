# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Requests of lm-evaluation-harness, against the plain teacher-forced model and against greedy generation.

Tolerance in float64 1e-11: the same products, summed in another order where documents are read side by side.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline import UserError
from data_pipeline.tasks.prompts import Prompt
from data_pipeline.tokenizer import ByteLevelTokenizer, TokenIds, Tokenizer, train_bpe
from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.inference.generation import draw, generate, read_texts, reader_of
from tests.books import book_text
from tests.data_pipeline.test_hf_tokenizer import byte_level, llama, write
from tests.memformer.inference.test_tasks import LENGTH, MODELS, model_of, scored

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from memformer.inference.lm_eval_adapter import Generation, MemoryLM, prompt_of_pair

LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n"
LONG = "the quick brown fox jumps over the lazy dog"
"""Eleven segments, so that all but the last are read by the memory alone."""


class Letters(ByteLevelTokenizer):
    """30 ids, so that whatever a model of the examples writes is text."""

    def __init__(self) -> None:
        super().__init__("", [letter.encode() for letter in LETTERS])

    def encode(self, text: str) -> TokenIds:
        return np.array([LETTERS.index(letter) for letter in text], dtype=np.uint16)

    def safe_cut(self, text: str) -> int:
        return len(text)


TOKENIZER = Letters()


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def written(model: Any, text: str, count: int) -> str:
    """Greedy generation, alone."""
    return TOKENIZER.decode(generate(model, TOKENIZER.encode(text).tolist(), count, temperature=0))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_likelihoods_are_those_of_the_teacher_forced_model(name: str) -> None:
    """Contexts of no token, less than a segment and many segments, some with several continuations, in any order."""
    model = model_of(name)
    pairs = [(context, text) for text in (" fox", " a") for context in ("ab", LONG, "", LONG[:33])]
    pairs[3:3] = [(context, written(model, context, 5)) for context in (LONG, "")]
    pairs.append(("z" + LONG[1:], " fox"))  # another beginning, and the same segments from then on
    expected = [
        scored(model, Prompt(TOKENIZER.encode(context + text), ((len(context), len(context + text)),)), False)[0]
        for context, text in pairs
    ]
    greedy = [written(model, context, len(text)) == text for context, text in pairs]
    assert sum(greedy) == 2
    for lanes in (1, 4):
        found = MemoryLM(model, TOKENIZER, lanes).loglikelihood(asked("loglikelihood", *pairs))
        assert [value for value, _ in found] == pytest.approx(expected, abs=1e-11)
        assert [right for _, right in found] == greedy


@torch.no_grad()
def test_a_text_s_likelihood_is_that_of_all_its_tokens() -> None:
    for name in ("memformer", "associative"):
        model = model_of(name)
        texts = [LONG, "a", LONG[:9]]
        expected = [scored(model, Prompt(TOKENIZER.encode(text), ((0, len(text)),)), False)[0] for text in texts]
        for lanes in (1, 4):
            lm = MemoryLM(model, TOKENIZER, lanes)
            found = lm.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in texts)))
            assert found == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_read_many_segments_ago_counts_where_there_is_a_memory(name: str) -> None:
    changed = ("z" + LONG[1:], " fox")
    lm = MemoryLM(model_of(name), TOKENIZER)
    (first, _), (second, _) = lm.loglikelihood(asked("loglikelihood", (LONG, " fox"), changed))
    assert (abs(first - second) > 1e-9) == (name != "no slots")


def test_nothing_is_certain() -> None:
    found = MemoryLM(model_of("memformer"), TOKENIZER).loglikelihood(asked("loglikelihood", (LONG, ""), ("", "")))
    assert found == [(0.0, True), (0.0, True)]


def test_the_context_of_several_choices_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of("memformer"), []
    advance = model.advance

    def counted(segment: Any, memory: torch.Tensor) -> torch.Tensor:
        rows.append(len(memory))
        following: torch.Tensor = advance(segment, memory)
        return following

    monkeypatch.setattr(model, "advance", counted)
    pairs = [(LONG, text) for text in (" fox", " dog", " a", " mind")] + [("z" + LONG[1:], text) for text in ("a", "b")]
    MemoryLM(model, TOKENIZER, lanes=6).loglikelihood(asked("loglikelihood", *pairs))
    assert rows == [2] * (len(LONG) // LENGTH)


@pytest.mark.parametrize("name", ["memformer", "associative"])
def test_what_is_written_is_what_greedy_generation_writes(name: str) -> None:
    """Up to the first of the texts it is to end at, of contexts of any lengths, one of them twice."""
    model = model_of(name)
    contexts = [LONG, "", "hello", "hello"]
    plain = {context: written(model, context, 12) for context in contexts}
    stop = plain["hello"][5:7]
    for until in ([], [stop, "\n\n\n"], plain[LONG][8]):
        expected = []
        for context in contexts:
            places = [plain[context].find(each) for each in until]
            expected.append(plain[context][: min([place for place in places if place >= 0], default=12)])
        for lanes in (1, 4):
            kwargs = {"until": until, "max_gen_toks": 12, "do_sample": False, "num_beams": 1}
            lm = MemoryLM(model, TOKENIZER, lanes)
            assert lm.generate_until(asked("generate_until", *((each, kwargs) for each in contexts))) == expected
    assert any(len(text) < 12 for text in expected)


def test_what_is_drawn_does_not_depend_on_the_lanes() -> None:
    model = model_of("memformer")
    warm = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 0.9, "top_k": 20}
    requests = asked("generate_until", ("abc", warm), ("a", {**warm, "max_gen_toks": 3}), ("abc", warm), (LONG, warm))
    alone, beside = (MemoryLM(model, TOKENIZER, lanes, seed=5).generate_until(requests) for lanes in (1, 4))
    assert alone == beside and alone[0] != alone[2] and len(alone[1]) == 3
    reader = reader_of(model)  # the longest of its kind comes first, and draws with the first seed
    read_texts(reader, [TOKENIZER.encode(LONG).tolist()])
    expected = [row[0] for row in draw(reader, model.config.start_token_id, 12, temperature=0.9, top_k=20, seed=5)]
    assert alone[3] == TOKENIZER.decode(expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 4}, "has num_beams: 4, which is not built here: leave it out"),
        ({"until": [3]}, r"has until: \[3\]: give a text or a list of texts"),
        ({"max_gen_toks": -1}, "has max_gen_toks: -1: give 0 or more"),
        ({"max_new_tokens": "many"}, "generation_kwargs {.*invalid literal"),
        ({"do_sample": True, "temperature": -2}, "has temperature: -2.0: give 0 or more"),
        ({"do_sample": True, "top_k": -1}, "has top_k: -1: give 1 or more"),
        ({"do_sample": True, "top_p": 0}, "has top_p: 0.0: give more than 0"),
    ],
)
def test_a_wrong_setting_of_generation_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Generation.of(given)
    assert "\n" not in str(error.value)


def test_settings_of_generation_are_the_harness_s() -> None:
    assert Generation.of({"until": "\n"}) == Generation(("\n",), 256, 0.0, None, 1.0)
    assert Generation.of({"do_sample": False, "temperature": 0.7, "until": ["a", ""]}).temperature == 0
    assert Generation.of({"do_sample": True, "max_new_tokens": 7}) == Generation((), 7, 1.0, None, 1.0)


class Encoder(TemplateLM):  # type: ignore[misc]
    """The harness's own way to cut a context and its continuation."""

    eot_token_id = 0
    _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder = tokenizer

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.encoder.encode(string).tolist()


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte_level", "llama"])
def test_tokens_are_cut_where_the_harness_cuts_them(kind: str, tmp_path: Path) -> None:
    """Also with blanks at the context's end and words that are not ASCII."""
    tokenizer = tokenizer_of(kind, tmp_path)
    for context, text in (("What is it? The", " answer"), ("Zoë sah 书.", " Zoë 书"), ("a\n\n", "b"), ("Now: ", "yes")):
        prompt = prompt_of_pair(context, text, tokenizer)
        first, end = prompt.answers[0]
        found = (prompt.tokens[:first].tolist(), prompt.tokens[first:end].tolist())
        assert found == Encoder(tokenizer)._encode_pair(context, text)


def test_a_token_that_holds_the_end_of_the_context_is_scored() -> None:
    """The harness's own models would score nothing here: " the" is one token."""
    tokenizer = train_bpe([book_text(40_000)], 600)
    prompt = prompt_of_pair("is it th", "e", tokenizer)
    first, end = prompt.answers[0]
    assert tokenizer.decode(prompt.tokens[first:end].tolist()) == " the"
    assert Encoder(tokenizer)._encode_pair("is it th", "e")[1] == []


def test_a_text_that_a_tokenizer_does_not_give_back_is_refused(tmp_path: Path) -> None:
    content = byte_level()
    content["normalizer"] = {"type": "Lowercase"}
    tokenizer = make_tokenizer(f"hf:{write(tmp_path, content)}")
    assert prompt_of_pair("is it", " yes", tokenizer).answers
    with pytest.raises(UserError, match="tokenizer does not give ' YES' back"):
        prompt_of_pair("is it", " YES", tokenizer)


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    if kind == "bytes":
        return make_tokenizer("bytes")
    if kind == "bpe":
        return train_bpe([book_text(40_000)], 600)
    return make_tokenizer(f"hf:{write(folder, llama() if kind == 'llama' else byte_level(prefix=True))}")
