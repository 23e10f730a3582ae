# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents have the length and depth that is asked for, their answers are where they say, and a seed names them.

Covers: data_pipeline/tasks/filler.py
"""

import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import UserError
from data_pipeline.tasks import TASKS, Texts, make_document, parse_tasks, solved
from data_pipeline.tasks.filler import last_blank, repeated
from data_pipeline.tokenizer import Tokenizer, train_bpe
from data_pipeline.tokenizer_choice import make_tokenizer
from tests.books import book_text


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts()


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make_tokenizer("bytes") if request.param == "bytes" else train_bpe([book_text(40_000)], 600)


@pytest.mark.parametrize("name", TASKS)
def test_documents_fill_their_length_and_mark_their_answers(name: str, texts: Texts, tokenizer: Tokenizer) -> None:
    task = parse_tasks(name)[0]
    for length in (700, 5000):
        document = make_document(task, texts, length, 0.5, 0, 3, "test", lambda text: len(tokenizer.encode(text)))
        tokens = len(tokenizer.encode(document.text))
        assert tokens <= length, "never longer"
        assert tokens >= length - 30 - length // 1000, "no further word fits, and a word here is short"
        assert document.answers and document.text.endswith(document.answer(document.answers[-1]))
        assert solved(task, document)
        for answer in document.answers:
            assert document.text[answer.start] == " " and document.question(answer).endswith(("?", ":"))


@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 1])
def test_the_first_fact_stands_at_the_depth_and_no_fact_before_it(depth: float, texts: Texts) -> None:
    task = parse_tasks("needle:keys=4")[0]
    for number in range(5):
        document = make_document(task, texts, 4000, depth, 0, number, "test", len)
        places = [found.start() for found in re.finditer(r"The code of", document.text)]
        question = document.answers[0].question
        filler = question - 4 * len("The code of Anna is 1234567.")
        assert len(places) == 4 and places == sorted(places)
        assert abs(places[0] / filler - depth) < 0.02, "within a word, and the names' lengths"


def test_facts_of_the_same_number_stand_in_different_places_of_other_filler(texts: Texts) -> None:
    task = parse_tasks("needle:digits=1")[0]
    made = [make_document(task, texts, 300, None, 0, number, "test", len) for number in range(40)]
    depths = [document.depth for document in made]
    assert min(depths) < 0.2 and max(depths) > 0.8 and len({document.text for document in made}) == 40
    again = make_document(task, texts, 300, None, 0, 11, "test", len)
    assert again == made[11], "whatever was made before it"
    for seed, use in ((1, "test"), (0, "other")):
        assert make_document(task, texts, 300, None, seed, 11, use, len).text != made[11].text


def test_without_filler_a_document_is_what_the_task_says() -> None:
    document = make_document(parse_tasks("copy")[0], None, 0, 0.5, 0, 0, "test", len)
    assert re.fullmatch(r"Copy this: ([a-h] [a-h] [a-h] [a-h]\.) The copy: \1", document.text)


def test_a_length_that_does_not_hold_the_task_is_refused(texts: Texts) -> None:
    with pytest.raises(UserError, match=r"passkey: a document needs \d+ tokens, but --lengths has 40: give more, or 0"):
        make_document(parse_tasks("passkey")[0], texts, 40, 0, 0, 0, "test", len)


def test_filler_that_says_something_else_is_not_used(tmp_path: Path) -> None:
    """Of a text that answers the question wrongly in half of its places, excerpts of the other half are taken."""
    task = parse_tasks("recall:pairs=1:keys=1")[0]
    (tmp_path / "half.txt").write_text("Note: a=3. " * 40 + "word " * 88)
    half = Texts([tmp_path / "half.txt"])
    for number in range(10):
        assert solved(task, make_document(task, half, 150, 1, 0, number, "test", len))
    (tmp_path / "all.txt").write_text("Note: a=3. " * 40)
    with pytest.raises(UserError, match="holds sentences of the task itself: name another text with --text"):
        make_document(task, Texts([tmp_path / "all.txt"]), 150, 1, 0, 0, "test", len)


def test_streams_are_whole_words_and_go_round(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two\nthree  four\n")
    stream = Texts([tmp_path / "text.txt"]).stream(np.random.default_rng(3))
    long = stream(400)
    assert len(long) > 390 and set(long.split()) == {"one", "two", "three", "four"}
    for characters in range(60):
        assert len(stream(characters)) <= characters and long.startswith(stream(characters))
    assert repeated("ab cd.")(8) == "ab cd." and repeated("ab cd.")(9) == "ab cd. ab" and repeated("ab cd.")(1) == ""
    assert last_blank("a b" + "c" * 10_000, 9_000) == 1 and last_blank("abc", 3) == 0


@pytest.mark.parametrize("content", ["", "word", " \n"])
def test_a_text_of_no_words_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "text.txt").write_text(content)
    with pytest.raises(UserError, match=r"text.txt: holds no two words"):
        Texts([tmp_path / "text.txt"])
