# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The section `evaluation`: how tasks are named, and what is refused before anything is read.

Covers: memformer/config/section.py
"""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline import UserError
from memformer.config.evaluation import EvaluationConfig
from memformer.config.schema import load_config, parse_config
from memformer.config.section import Section

MINIMAL: dict[str, Any] = {"run_dir": "runs/a", "data": {"path": "data/books"}}


def test_a_length_may_be_one_or_several_and_comes_back_as_it_was(tmp_path: Path) -> None:
    assert issubclass(EvaluationConfig, Section)
    (tmp_path / "own.jsonl").write_text('{"context": "", "question": "Why?", "answer": "so"}\n')
    tasks = ["passkey:digits=1", "needle", str(tmp_path / "own.jsonl")]
    (tmp_path / "run.yaml").write_text(
        f"run_dir: runs/a\ndata:\n  path: data\nevaluation:\n  tasks: [{', '.join(tasks)}]\n  length: 160\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert (config.evaluation.tasks, config.evaluation.length) == (tasks, [160])
    (tmp_path / "again.yaml").write_text(config.as_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    several = load_config(
        tmp_path / "run.yaml", ["--evaluation.length", "[1600, 160]", "--evaluation.depths", "[1, 0]"]
    )
    assert (several.evaluation.length, several.evaluation.depths) == ([160, 1600], [0, 1])
    short = load_config(tmp_path / "run.yaml", ["--evaluation.length", "[4k, 160]"])
    assert short.evaluation.length == [160, 4000]


def test_nothing_is_asked_unless_it_is_named() -> None:
    assert parse_config(MINIMAL, "run.yaml").evaluation.tasks == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ["nothing"]}, "evaluation.tasks: there is no task 'nothing': choose from passkey"),
        ({"tasks": ["copy:size=3"]}, "evaluation.tasks: copy has no setting 'size=3': give symbols="),
        ({"tasks": ["passkey:digits=99"]}, "evaluation.tasks: passkey:digits is 99: give 1 to 32"),
        ({"tasks": ["copy", "copy"]}, "evaluation.tasks: names copy twice: leave one out"),
        ({"tasks": ["none.jsonl"]}, "evaluation.tasks: task none.jsonl: cannot be read"),
        ({"tasks": "copy"}, "evaluation.tasks: is 'copy': write a list"),
        ({"interval": 0}, "evaluation.interval: is 0: input should be greater than or equal to 1"),
        ({"length": -1}, "evaluation.length: is -1: input should be greater than or equal to 0"),
        ({"length": "4q"}, "evaluation.length: has '4q': give tokens, such as 500, 4k or 1M, and commas between"),
        ({"length": []}, "evaluation.length: is []: list should have at least 1 item"),
        ({"length": [1, 1]}, "evaluation.length: is [1, 1]: one comes twice, leave it out"),
        ({"depths": [2]}, "evaluation.depths.0: is 2: input should be less than or equal to 1"),
        ({"documents": 0}, "evaluation.documents: is 0: input should be greater than or equal to 1"),
        ({"seed": -1}, "evaluation.seed: is -1: input should be greater than or equal to 0"),
        ({"lengths": 160}, "evaluation.lengths: unknown key, did you mean length?"),
    ],
)
def test_a_mistake_is_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(MINIMAL | {"evaluation": settings}, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {said}") and "\n" not in str(caught.value)
