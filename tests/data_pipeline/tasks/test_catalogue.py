# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How a user names tasks, lengths and depths, and what is said to a mistake: one line.

Covers: data_pipeline/tasks/questions.py
"""

import dataclasses
import json
from pathlib import Path

import pytest

from data_pipeline import UserError
from data_pipeline.tasks import TASKS, parse_depths, parse_lengths, parse_tasks
from data_pipeline.tasks.catalogue import described
from tests import ROOT


def test_a_label_names_the_task_again() -> None:
    tasks = parse_tasks("needle:digits=3:keys=4, passkey,recall:pairs=2:keys=3")
    assert [task.label for task in tasks] == ["needle:digits=3:keys=4", "passkey", "recall:pairs=2:keys=3"]
    assert parse_tasks(",".join(task.label for task in tasks)) == tasks
    assert parse_tasks("needle:digits=7")[0].label == "needle", "the default is not named"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("haystack", "there is no task 'haystack': choose from passkey, needle"),
        ("", "--tasks names none: give some of passkey"),
        ("needle:digit=3", "needle has no setting 'digit=3': give kind=..., digits=..."),
        ("needle:digits", "needle has no setting 'digits'"),
        ("needle:digits=many", "needle:digits is 'many': give a whole number"),
        ("needle:digits=0", "needle:digits is 0: give 1 to 32"),
        ("needle:kind=noun", "needle:kind is 'noun': choose number or word or uuid"),
        ("needle:queries=2", "needle:queries is 2, but keys is 1: give 1 or fewer"),
        ("recall:pairs=9", "recall:keys is 8, but pairs is 9: give 9 or more"),
        ("recall:queries=5", "recall:queries is 5, but pairs is 4"),
        ("variables:letters=1:chains=16", "variables:letters is 1, too few for 80 names"),
        ("variables:chains=8:digits=1", "variables:digits is 1, too few for 8 numbers"),
        ("copy,copy", "names copy twice: leave one out"),
        ("nowhere.jsonl", "task nowhere.jsonl: cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_tasks(words)
    assert said in str(caught.value)


def test_lengths_and_depths() -> None:
    assert parse_lengths("1M, 4k,0,160,1.5k") == [0, 160, 1500, 4000, 1_000_000]
    assert parse_depths("1,0,0.25") == [0, 0.25, 1]
    for words in ("long", "4kB", "-5", "", "1.5", "2000M", "1e3"):
        with pytest.raises(UserError, match="give tokens, such as 500, 4k or 1M"):
            parse_lengths(words)
    with pytest.raises(UserError, match="one comes twice"):
        parse_lengths("1k,1000")
    for words in ("deep", "1.01", "-0.1", "nan", ""):
        with pytest.raises(UserError, match="give shares from 0 to 1"):
            parse_depths(words)


def test_help_and_page_name_every_task_and_setting(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, kind in TASKS.items():
        assert f"  {name} " in described()
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for setting in dataclasses.fields(kind):
            assert f":{setting.name}={setting.default}" in described()
            assert f"`{setting.name}={setting.default}`" in row


RECORD = {"context": "The safe is blue.", "question": "Which colour has the safe?", "answer": "blue"}


def test_own_questions_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(RECORD) + "\n\n" + json.dumps(RECORD | {"context": "", "answer": " red\n"}) + "\n")
    task = parse_tasks(str(file))[0]
    assert task.label == str(file) and task.most == 2 and task.chance is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}\n{", 'line 1: needs a string under "context"'),
        (json.dumps(RECORD) + "\nnot json", "line 2: is not JSON"),
        ("[1]", 'line 1: needs a string under "context"'),
        (json.dumps(RECORD | {"question": 3}), 'line 1: needs a string under "question"'),
        (json.dumps(RECORD | {"answer": " "}), 'line 1: needs a string under "answer"'),
        ("\n", "holds no question"),
    ],
)
def test_a_wrong_line_of_own_questions_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse_tasks(str(file))
    assert f"task {file}" in str(caught.value) and said in str(caught.value)
    assert '{"context": "...", "question": "...", "answer": "..."}' in str(caught.value)
