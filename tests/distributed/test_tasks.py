# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A model in its engine is asked tasks: as one process asks the whole model, however it is spread over processes.

Which answers are right is the same; likelihoods to 1e-5, float32's rounding in another order (seen: 2e-6).
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

from data_pipeline.tasks import parse_tasks
from data_pipeline.tasks.prompts import Cell, Prompt
from memformer.inference.generation import generate
from memformer.inference.perplexity import MODES
from memformer.inference.task_report import ask_cells
from memformer.processes.group import World
from memformer.processes.topology import Axis
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LENGTH, Case, engine_of, model_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CASES = [
    Case(1),
    Case(3),
    Case(3, data=1, tensor=2),
    Case(0, data=1, pipeline=2, pipeline_layers=(1, 3)),
    Case(1, data=1, pipeline=2, pipeline_layers=(3, 1), overlap=3),
    Case(3, backbone="matrices"),
    Case(1, data=1, tensor=2, backbone="slots"),
]
LANES = 2  # that a replica reads side by side: of five documents one replica's last is one that the other has not


def whole(case: Case) -> Any:
    return with_length(model_of(case).eval().requires_grad_(False))


def with_length(model: Any) -> Any:
    model.config = dataclasses.replace(model.config, segment_length=LENGTH)
    return model


def cells_of(case: Case) -> list[Cell]:
    """Documents of uneven lengths, whose answers are what the model would write, or in every other one are not."""
    model, (task,) = whole(case), parse_tasks("copy")
    prompts = []
    for number, length in enumerate((9, 40, 5, 17, 1)):
        words = (np.arange(length) * 7 + number) % 40
        answer = list(generate(model, words.tolist(), 3, temperature=0))
        answer[-1] = (answer[-1] + number % 2) % 40
        prompts.append(Prompt(np.array([*words, *answer, 1, 2]), ((length, length + 3), (length + 4, length + 5))))
    return [Cell(task, 0, 0.0, tuple(prompts)), Cell(task, 50, 0.5, tuple(prompts[:1]))]


def asked(world: World, cases: list[tuple[Case, list[Cell]]]) -> list[Any]:
    """Of each case what this process found, and how many segments it read."""
    found = []
    for case, cells in cases:
        engine = engine_of(world, case)
        segments: list[int] = []
        model = with_length(engine.model)
        results = ask_cells(model, cells, LANES, engine.world.mesh.data, segments.append)
        assert model.training
        found.append((results, len(segments)))
        engine.close()
    return found


@pytest.fixture(scope="module")
def ranks() -> list[Any]:
    return run_distributed(asked, 2, [(case, cells_of(case)) for case in CASES])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_answers_are_those_of_one_process(number: int, ranks: list[Any]) -> None:
    case = CASES[number]
    (expected,) = ask_cells(whole(case), cells_of(case), LANES, Axis(), lambda tokens: None)
    assert 0 < expected["cells"][0]["with_memory"]["right"] < expected["cells"][0]["questions"] == 10
    assert len({read for _, read in (rank[number] for rank in ranks)}) == 1, "as many segments on each"
    for (result,), _ in (rank[number] for rank in ranks):
        for cell, other in zip(result["cells"], expected["cells"], strict=True):
            for mode in MODES:
                likely = cell[mode].pop("log_likelihood")
                assert likely == pytest.approx(other[mode]["log_likelihood"], abs=1e-5)
                assert cell[mode] == {name: each for name, each in other[mode].items() if name != "log_likelihood"}
            assert {name: each for name, each in cell.items() if name not in MODES} == {
                name: each for name, each in other.items() if name not in MODES
            }
