# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The report of tasks: cells, counts, intervals, baselines, the table and the heat map.

Covers: data_pipeline/tasks/documents.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.tasks import Texts, parse_tasks
from data_pipeline.tasks.prompts import Grid
from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.inference import drawing
from memformer.inference.perplexity import MODES
from memformer.inference.task_report import evaluate_task, heat_map, interval, short, table
from tests.memformer.examples import small_model

BYTES = make_tokenizer("bytes")


def reported(words: str, lanes: int = 8, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    model = small_model(segment_length=16, vocab_size=257, start_token_id=256).eval()
    settings = {"lengths": [0, 120], "depths": [0.0, 1.0], "documents": 5} | changes
    records: list[dict[str, Any]] = []
    grid = Grid(**settings, lanes=lanes)
    return evaluate_task(model, BYTES, parse_tasks(words)[0], Texts(), grid, dump=records.append), records


def test_a_report_has_a_cell_for_each_length_and_depth() -> None:
    result, records = reported("recall:queries=2")
    assert result["task"] == "recall:queries=2" and result["chance"] == 0.1
    assert [(cell["length"], cell["depth"]) for cell in result["cells"]] == [(0, 0), (120, 0), (120, 1)]
    for cell in result["cells"]:
        assert cell["documents"] == 5 and cell["questions"] == 10 and cell["solver"] == 1.0
        for mode in MODES:
            mine = [
                each[f"{mode}_right"]
                for each in records
                if (each["length"], each["depth"]) == (cell["length"], cell["depth"])
            ]
            assert cell[mode]["right"] == sum(mine) and cell[mode]["accuracy"] == sum(mine) / 10
            assert cell[mode]["low"] <= cell[mode]["accuracy"] <= cell[mode]["high"]
            assert cell[mode]["log_likelihood"] < 0
    assert len(records) == 30 and len({each["document"] for each in records}) == 15
    for each in records:
        assert each["prompt"].endswith(each["question"]) and each["answer"] not in each["question"]
    assert json.loads(json.dumps(result)) == result


def test_side_by_side_gives_the_numbers_of_alone() -> None:
    """Documents, answers and counts are equal; likelihoods to the rounding of float64."""
    one, alone = reported("copy:symbols=3:length=2", lanes=1)
    many, beside = reported("copy:symbols=3:length=2", lanes=4)
    assert alone == beside
    for cell, other in zip(one["cells"], many["cells"], strict=True):
        for mode in MODES:
            assert cell[mode].pop("log_likelihood") == pytest.approx(other[mode].pop("log_likelihood"), abs=1e-11)
    assert one == many


def test_the_guess_is_counted_over_the_same_questions() -> None:
    result, _ = reported("recall:values=2:pairs=1:keys=1", lengths=[0], documents=200)
    assert 0.36 < result["cells"][0]["guess"] < 0.64, "four standard deviations about one half"


def test_own_questions_are_asked_once_each_and_have_no_solver(tmp_path: Path) -> None:
    record = {"context": "It is blue.", "question": "Which colour?", "answer": "blue"}
    (tmp_path / "own.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record | {"answer": "red"}) + "\n")
    result, records = reported(str(tmp_path / "own.jsonl"))
    assert [cell["documents"] for cell in result["cells"]] == [2, 2, 2] and result["cells"][0]["solver"] is None
    assert [each["answer"] for each in records] == ["blue", "red"] * 3


def test_intervals_are_wilson_s() -> None:
    """Figures of Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, asked, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert interval(right, asked) == pytest.approx((low, high), abs=5e-5)
    assert interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert interval(20, 20)[1] == 1


def test_the_table_has_a_row_a_cell() -> None:
    result, _ = reported("copy")
    lines = table(result)
    assert lines[0] == "copy: share of right answers, 95 % interval; chance 0.000244"
    assert len(lines) == 2 + len(result["cells"])
    assert "no filler" in lines[2] and lines[3].split()[:3] == ["120", "0.00", "5"]


def test_the_heat_map_has_lengths_by_depths_of_both_modes() -> None:
    if not drawing.available():
        pytest.skip("needs matplotlib")
    result, _ = reported("copy", lengths=[0, 120, 200])
    with_memory, reset, _ = heat_map(result).axes
    for axes, mode in ((with_memory, "with_memory"), (reset, "memory_reset")):
        shown = np.asarray(axes.images[0].get_array())
        assert shown.shape == (2, 3) and np.isnan(shown[1, 0]), "without filler there is one depth"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "120", "200"]
        for cell in result["cells"]:
            row, column = [0.0, 1.0].index(cell["depth"]), [0, 120, 200].index(cell["length"])
            assert shown[row, column] == cell[mode]["accuracy"]


def test_lengths_are_shown_as_they_are_given() -> None:
    assert [short(length) for length in (160, 1000, 1500, 1600, 4096, 1_000_000)] == [
        *("160", "1k", "1.5k", "1.6k", "4096", "1M")
    ]
