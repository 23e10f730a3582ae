# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The benchmark of tasks at its smallest: the plain Transformer by the project's documents, and what the page says."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import task_evaluation
from benchmarks.published import PUBLISHED
from benchmarks.task_evaluation import NAMES, SETTINGS, page, settings_of
from memformer.config.schema import load_config


def test_a_case_is_measured_once_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--quick --steps 2 --documents 2 --models transformer --out {tmp_path / 'result'}".split()
    task_evaluation.main(words)
    values = json.loads((tmp_path / "result.json").read_text())
    (row,) = values["rows"]
    assert (row["task"], row["model"], row["seed"], row["steps"]) == ("passkey:digits=1", "transformer", 0, 2)
    assert [(cell["length"], cell["depth"]) for cell in row["cells"]] == [(160, 0), (160, 0.5), (1600, 0), (1600, 0.5)]
    assert all(cell["solver"] == 1 and cell["without_memory"] is None for cell in row["cells"])
    assert "| plain Transformer | 0 | 2 | " in (tmp_path / "result.md").read_text()
    capsys.readouterr()
    task_evaluation.main(words)
    assert "1 of 1 models are in" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == values["rows"]


@pytest.mark.parametrize("model", sorted({*SETTINGS} - {"pretrained"}))
def test_the_runs_are_of_the_quick_start_s_configuration(model: str, tmp_path: Path) -> None:
    settings = settings_of(model, seed=3, steps=None, data=tmp_path / "data")
    (tmp_path / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    config = load_config(tmp_path / "config.yaml", [])
    assert config.seed == 3 and config.data.segment_length == 32 and config.training.max_steps > 100


def shares(right: int | None) -> dict[str, Any] | None:
    return None if right is None else {"right": right, "accuracy": right / 4}


def row(seed: int, model: str, right: int) -> dict[str, Any]:
    cell = {"depth": 0.0, "questions": 4, "guess": 0.25, "solver": 1.0, "memory_reset": shares(0)}
    near = {**cell, "length": 160, "with_memory": shares(4), "without_memory": shares(1)}
    far = {**cell, "length": 1600, "with_memory": shares(right), "without_memory": None}
    return {"task": "t", "model": model, "seed": seed, "steps": 9, "chance": 0.1, "commit": "c", "cells": [near, far]}


def test_the_page_has_means_worst_seeds_baselines_and_what_was_published() -> None:
    rows = [row(0, "associative", 4), row(1, "associative", 3)]
    sizes = {"lengths": "160,1600", "depths": "0", "documents": 4}
    values = {"date": "d", "hardware": "h", "torch": "t", "commit": "c", "command": "x", "notes": "", "sizes": sizes}
    text = page({**values, "rows": rows})
    name = NAMES["associative"]
    assert (
        f"| {name} | 0, 1 | 9 | 1.00 | 0.88 (0.75) |" in text
        and f"| {name}, memory reset | 0, 1 | 9 | 0.00 | 0.00 |" in text
    )
    assert f"| {name}, without memory | 0, 1 | 9 | 0.25 | longer than its context |" in text
    assert "| *guess* |  |  | 0.250 | 0.250 |" in text and "| *solver* |  |  | 1.000 | 1.000 |" in text
    for each in PUBLISHED:
        assert each.source in text and all(len(line) == len(each.columns) + 1 for line in each.rows)
