# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The stories of every task: answers are what reading gives, are not had without the facts, and guessing is chance.

Covers: data_pipeline/tasks/task.py, data_pipeline/tasks/needles.py, data_pipeline/tasks/symbols.py,
data_pipeline/tasks/facts.py, data_pipeline/tasks/words.py
"""

import math
import re

import numpy as np
import pytest

from data_pipeline import UserError
from data_pipeline.tasks import TASKS, Task, make_document, parse_tasks
from data_pipeline.tasks.facts import THINGS, House
from data_pipeline.tasks.task import NAMES

SMALL = (
    *("passkey:digits=1", "needle:digits=1", "needle:digits=1:keys=3:queries=2", "needle:digits=1:keys=2:values=2"),
    *("needle:kind=word", "needle:kind=uuid", "variables:letters=1:hops=1:digits=1", "variables:chains=3:hops=2"),
    *("copy:symbols=2:length=3", "recall:pairs=3:keys=5:values=4:queries=3", "qa1:facts=2", "qa2", "qa3", "qa4"),
    *("qa4:facts=5", "qa5"),
)


def written(task: Task, number: int) -> tuple[str, list[tuple[str, str]]]:
    """A story without filler: the facts, and each question with its answer."""
    story = task.story(np.random.default_rng([7, number]), number)
    return " ".join(story.facts), [(each.text, each.answer) for each in story.questions if each.answer is not None]


@pytest.mark.parametrize("words", [*(name for name in TASKS if TASKS[name].placed), *SMALL])
def test_who_reads_is_always_right_and_who_has_not_read_never_knows(words: str) -> None:
    """Later questions are read with the earlier answers before them, as the document has them."""
    task = parse_tasks(words)[0]
    for number in range(40):
        text, questions = written(task, number)
        assert len(questions) == getattr(task, "queries", 1)
        for question, answer in questions:
            assert task.solve(f"{text} {question}", question) == answer
            assert task.solve(question, question) is None
            assert answer.endswith(".") and answer.count(".") == 1, "an answer has an end, so that all of it is written"
            text += f" {question} {answer}"


@pytest.mark.parametrize("words", SMALL)
def test_guessing_gets_chance(words: str) -> None:
    """The share of right guesses is within four standard deviations: one of 30,000 seeds would fail."""
    task, right, asked = parse_tasks(words)[0], 0, 0
    random = np.random.default_rng(1)
    for number in range(500):
        for question, answer in written(task, number)[1]:
            right += task.guess(random, question) == answer
            asked += 1
    chance = task.chance
    assert chance is not None
    assert abs(right / asked - chance) <= 4 * math.sqrt(chance * (1 - chance) / asked) + 1e-12


def test_no_task_is_without_its_baselines() -> None:
    """Solver and guess of every task are held to what they must be, in the tests above and, of words, below."""
    assert {words.partition(":")[0] for words in SMALL} | {"common", "frequent"} == set(TASKS)


def test_a_solver_sees_a_changed_fact() -> None:
    """It reads the text, not the story: another code in the text is another answer."""
    task = parse_tasks("needle:digits=4")[0]
    text, ((question, answer),) = written(task, 0)
    changed = text.replace(answer[0], str((int(answer[0]) + 1) % 10))
    assert task.solve(f"{changed} {question}", question) != answer


def test_settings_make_what_they_say() -> None:
    text, questions = written(parse_tasks("needle:keys=5:values=2:queries=3:digits=3")[0], 0)
    assert len(re.findall(r"A code of \w+ is \d{3}\.", text)) == 10 and len(questions) == 3
    assert all(re.fullmatch(r"\d{3}, \d{3}\.", answer) for _, answer in questions)
    text, ((question, answer),) = written(parse_tasks("variables:chains=2:hops=3:letters=2:digits=3")[0], 0)
    assert len(re.findall(r"Let [A-Z]{2} be (?:[A-Z]{2}|\d{3})\.", text)) == 8
    assert len(set(answer[:-1].split(", "))) == 4 and re.search(r"\d{3}", question)
    assert re.fullmatch(r"(?:[a-c] ){5}[a-c]\.", written(parse_tasks("copy:symbols=3:length=6")[0], 0)[1][0][1])
    assert written(parse_tasks("qa1:facts=9")[0], 0)[0].count(".") == 9


def test_a_thing_goes_with_who_holds_it() -> None:
    house = House()
    for fact in (
        ("Anna", "took", "coin"),
        ("Anna", "went to", "office"),
        ("Carl", "went to", "garden"),
        ("Anna", "went to", "cellar"),
        ("Anna", "dropped", "coin"),
        ("Anna", "went to", "garden"),
    ):
        house.tell(*fact)
    assert house.visited == {"coin": ["office", "cellar"], **{thing: [] for thing in THINGS if thing != "coin"}}
    assert not [fact for fact in house.possible() if fact[1:] == ("took", "coin")], "nobody is in the cellar"


@pytest.mark.parametrize("words", ["frequent", "common:words=3", "frequent:words=1", "common"])
def test_words_are_counted_over_the_whole_document(words: str) -> None:
    """By another way of counting; a document in which the last place is shared has no answer."""
    task = parse_tasks(words)[0]
    for number in range(5):
        document = make_document(task, None, 6000, 0, 0, number, "test", len)
        (answer,) = document.answers
        said = document.answer(answer)[:-1].split(", ")
        text = document.text[: answer.question].split()
        assert len(text) > 1000 and set(map(len, text)) == {4}
        counts = sorted(((text.count(word), word) for word in set(text)), reverse=True)
        most = [word for _, word in counts[: len(said)]]
        assert said == (most if words.startswith("frequent") else sorted(most))
        assert counts[len(said) - 1][0] > counts[len(said)][0]
        guess = task.guess(np.random.default_rng(number), "")
        assert guess.count(",") == document.answer(answer).count(",") and guess != document.answer(answer)
    question = document.question(answer)
    assert task.solve(f"baba baba bebe bebe {question}", question) is None
    with pytest.raises(UserError, match=r"too few for words to differ|needs \d+ tokens"):
        make_document(task, None, 40, 0, 0, 0, "test", len)
    with pytest.raises(UserError, match="nothing to count: leave 0 out of --lengths"):
        make_document(task, None, 0, 0, 0, 0, "test", len)


def test_no_name_begins_with_another() -> None:
    assert not [(one, other) for one in NAMES for other in NAMES if one != other and other.startswith(one)]
