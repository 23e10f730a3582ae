# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A model in its engine is asked tasks: as one process asks the whole model, however it is spread over processes.

Which answers are right is the same; likelihoods to 1e-5, float32's rounding in another order (seen: 2e-6). And held-out
documents are scored alike, with the decoder of three segments at once where the family has one apart.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline import SegmentStream
from data_pipeline.adopt import adopt
from data_pipeline.tasks import parse_tasks
from data_pipeline.tasks.prompts import Cell, Prompt
from memformer.inference.generation import generate
from memformer.inference.perplexity import MODES, Score, evaluate
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
GROUP = 3  # segments that the decoder takes at once where held-out documents are scored
LANES = 2  # that a replica reads side by side: of five documents one replica's last is one that the other has not


def apart(case: Case) -> bool:
    """Whether the decoder of several segments runs at once: not in pipelines, and not in backbones."""
    return case.pipeline == 1 and not case.backbone


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


def scored(model: Any, data: Path, axis: Axis, group: int) -> dict[str, Score]:
    """Held-out documents of uneven lengths, by the lanes of all processes."""
    shape: dict[str, Any] = {"num_lanes": 2 * LANES, "segment_length": LENGTH, "num_segments": group, "epochs": 1}
    with SegmentStream(data, rank=axis.rank, world_size=axis.size, **shape) as stream:
        return evaluate(model, stream, model.device, group=group, total=axis.sum)


def asked(world: World, cases: list[tuple[Case, list[Cell]]], data: Path) -> list[Any]:
    """Of each case what this process found, how many segments it read, and how held-out documents are scored."""
    found = []
    for case, cells in cases:
        engine = engine_of(world, case)
        segments: list[int] = []
        model = with_length(engine.model)
        results = ask_cells(model, cells, LANES, engine.world.mesh.data, segments.append)
        assert model.training
        scores = scored(model, data, engine.world.mesh.data, GROUP) if apart(case) else None
        found.append((results, len(segments), scores))
        engine.close()
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ids")
    ids = np.arange(700, dtype=np.int32) * 7 % 40
    ids[np.cumsum([90, 130, 5, 200, 40, 70, 164])] = 50
    np.save(root / "ids.npy", ids)
    adopt(root, vocab_size=51, eos=50)
    return root


@pytest.fixture(scope="module")
def ranks(data: Path) -> list[Any]:
    return run_distributed(asked, 2, [(case, cells_of(case)) for case in CASES], data)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_answers_are_those_of_one_process(number: int, ranks: list[Any]) -> None:
    case = CASES[number]
    (expected,) = ask_cells(whole(case), cells_of(case), LANES, Axis(), lambda tokens: None)
    assert 0 < expected["cells"][0]["with_memory"]["right"] < expected["cells"][0]["questions"] == 10
    assert len({read for _, read, _ in (rank[number] for rank in ranks)}) == 1, "as many segments on each"
    for (result,), *_ in (rank[number] for rank in ranks):
        for cell, other in zip(result["cells"], expected["cells"], strict=True):
            for mode in MODES:
                likely = cell[mode].pop("log_likelihood")
                assert likely == pytest.approx(other[mode]["log_likelihood"], abs=1e-5)
                assert cell[mode] == {name: each for name, each in other[mode].items() if name != "log_likelihood"}
            assert {name: each for name, each in cell.items() if name not in MODES} == {
                name: each for name, each in other.items() if name not in MODES
            }


@pytest.mark.parametrize("number", [n for n, case in enumerate(CASES) if apart(case)], ids=lambda n: str(CASES[n]))
def test_documents_are_scored_by_several_segments_at_once(number: int, ranks: list[Any], data: Path) -> None:
    """Each position's losses as of one process and one segment at a time, to 1e-5, float32's rounding."""
    expected = scored(whole(CASES[number]), data, Axis(), 1)
    for *_, found in (rank[number] for rank in ranks):
        for mode in MODES:
            assert torch.equal(found[mode].tokens, expected[mode].tokens) and found[mode].tokens.sum() > 600
            torch.testing.assert_close(found[mode].losses, expected[mode].losses, rtol=1e-5, atol=0)
