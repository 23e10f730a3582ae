# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks that a run is asked while it trains: when, to which end, and that nothing else of the run changes by them.

How they are asked at each topology is in tests/distributed/test_tasks.py.

Covers: data_pipeline/tasks/prompts.py, memformer/run/task_shares.py
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import UserError
from data_pipeline.tasks import parse_tasks
from data_pipeline.tasks.synthesis import synthesise
from launch.acceptance import open_data, open_data_if_here
from launch.cli import main
from launch.commands.status import describe
from launch.status import read_status
from memformer.checkpoints.exporting import export
from memformer.inference.perplexity import MODES
from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.run.task_shares import in_words, shares_of
from memformer.training import Callback, TrainingState, train
from tests.distributed.processes import run_distributed
from tests.faults.lives import events_of, metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TASK = "recall:pairs=1:keys=1:values=2"
STEPS = 22
ASKED = [10, 20, STEPS]
SETTINGS: dict[str, Any] = {"tasks": [TASK], "interval": 10, "length": [0, 120], "documents": 5}


def sections(asked: bool = True, **training: Any) -> dict[str, dict[str, Any]]:
    """A model with dropout, which an evaluation switches off and on again, learns to say one digit of two."""
    return {
        "model": {"dropout": 0.1},
        "data": {"num_segments": 3},
        "training": {"max_steps": STEPS, **training},
        "optimizer": {"learning_rate": 0.02, "epsilon": 1e-8},
        "checkpoint": {"interval": 11},
        "evaluation": SETTINGS if asked else {},
    }


class Breaks(Callback):
    """Ends the run in the middle, by an error that a save does not follow."""

    def after_metrics(self, state: TrainingState, metrics: dict[str, Any]) -> None:
        if state.progress.step == 15:
            raise RuntimeError("killed here")


class Asks(Callback):
    """Asks the run to stop, on this process alone, once so many segments of tasks have been read."""

    def __init__(self, rank: int) -> None:
        self.rank, self.segments = rank, 0

    def during_evaluation(self, state: TrainingState) -> None:
        self.segments += 1
        if self.segments == 3 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def lives(world: World, root: str) -> None:
    """One run that is not asked, one that is, and one that is asked, breaks off and goes on."""
    assert train(tiny_config(Path(root), "plain", **sections(asked=False))) == 0
    assert train(tiny_config(Path(root), "asked", **sections())) == 0
    with pytest.raises(RuntimeError, match="killed here"):
        train(tiny_config(Path(root), "resumed", **sections()), callbacks=[Breaks()])
    assert train(tiny_config(Path(root), "resumed", **sections())) == 0


def stopped(world: World, root: str) -> list[int]:
    """Exit code and segments read by a run that is asked to stop in the middle of its tasks, and the codes of the next
    life and of a run that is never asked them; with ZeRO 3, whose modules all processes must run alike.
    """
    callback = Asks(world.rank)
    more = {"max_steps": 11}, {"parallel": {"zero_stage": 3}}
    config = tiny_config(Path(root), "stopped", **(sections(**more[0]) | more[1]))
    plain = tiny_config(Path(root), "unasked", **(sections(asked=False, **more[0]) | more[1]))
    return [train(config, callbacks=[callback]), callback.segments, train(config), train(plain)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    synthesise(parse_tasks(TASK), root / "data", texts=None, lengths=[0], documents=60)
    run_distributed(lives, 1, str(root))
    return root


def test_the_run_itself_is_the_same_to_the_bit(root: Path) -> None:
    plain, asked = (metrics_of(RunDirectory(root / name)) for name in ("plain", "asked"))
    assert len(plain) == STEPS
    assert [{name: each for name, each in row.items() if name != "tasks"} for row in asked] == plain


def test_it_is_asked_at_every_interval_and_at_the_end_whatever_broke_it_off(root: Path) -> None:
    asked, resumed = (RunDirectory(root / name) for name in ("asked", "resumed"))
    assert [row["step"] for row in metrics_of(asked) if "tasks" in row] == ASKED
    assert [event["step"] for event in events_of(asked, "tasks")] == ASKED
    assert metrics_of(resumed) == metrics_of(asked)


def test_shares_are_those_of_the_documents_and_stand_in_the_status(root: Path) -> None:
    run = RunDirectory(root / "asked")
    event, row = events_of(run, "tasks")[-1], metrics_of(run)[-1]
    (result,) = event["results"]
    assert [(cell["length"], cell["depth"], cell["questions"]) for cell in result["cells"]] == [
        (0, 0, 5),
        (120, 0, 5),
        (120, 0.5, 5),
    ]
    assert row["tasks"] == shares_of(event["results"])
    for length, cells in (("0", result["cells"][:1]), ("120", result["cells"][1:])):
        for mode in MODES:
            share = sum(cell[mode]["right"] for cell in cells) / (5 * len(cells))
            assert row["tasks"][TASK][length][mode] == pytest.approx(share)
    assert 0 < row["tasks"][TASK]["0"]["with_memory"] < 1, "it has learnt to say a digit, and not yet which"
    status = read_status(run.root)
    assert status.tasks == {"step": STEPS, "shares": row["tasks"]}
    assert f"tasks       step {STEPS}: {in_words(row['tasks'])}" in describe(vars(status))
    assert any(f"step {STEPS} {in_words(row['tasks'])}" in line for line in describe(vars(status)))
    assert read_status(root / "plain").tasks is None


def test_evaluate_finds_the_same_of_the_export(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed, the same documents: counts are equal, likelihoods to the rounding of float32."""
    model = root / "model"
    export(RunDirectory(root / "asked").root, model)
    words = ["--tasks", TASK, "--lengths", "0,120", "--depths", "0,0.5", "--documents", "5", "--json"]
    assert main(["evaluate", str(model), *words, "--device", "cpu"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tasks"]
    (result,) = events_of(RunDirectory(root / "asked"), "tasks")[-1]["results"]
    for cell, own in zip(found["cells"], result["cells"], strict=True):
        for mode in MODES:
            assert own[mode].pop("log_likelihood") == pytest.approx(cell[mode].pop("log_likelihood"), abs=1e-4)
            assert own[mode] == cell[mode]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 9}, "evaluation.tasks: recall:pairs=1:keys=1:values=2: a document needs "),
        ({"tasks": ["common"], "length": 0}, "evaluation.tasks: common: without filler there is nothing to count"),
        ({"text": ["/nowhere"]}, "evaluation.text: source /nowhere: no such file or directory"),
        ({"text": ["{here}/word.txt"]}, "evaluation.text: {here}/word.txt: holds no two words to stand between"),
    ],
)
def test_documents_that_cannot_be_made_are_refused_before_anything_starts(
    settings: dict[str, Any], said: str, root: Path, tmp_path: Path
) -> None:
    """By what `train` and all launchers call first; no directory is made."""
    (tmp_path / "word.txt").write_text("alone")
    given = json.loads(json.dumps(settings).replace("{here}", str(tmp_path)))
    config = tiny_config(root, "refused", evaluation=SETTINGS | given)
    for refusing in (open_data, open_data_if_here):
        with pytest.raises(UserError) as caught:
            refusing(config)
        assert str(caught.value).startswith(said.replace("{here}", str(tmp_path)))
    assert not (root / "refused").exists()


def test_a_stop_in_the_middle_ends_it_on_all_processes_alike(root: Path) -> None:
    """One process alone is told to; both leave after the same segment, and nothing else of the run has changed."""
    assert run_distributed(stopped, 2, str(root)) == [[75, 9, 0, 0]] * 2, "eight segments between two looks"
    run = RunDirectory(root / "stopped")
    assert [event["step"] for event in events_of(run, "preemption")] == [10]
    assert [event["step"] for event in events_of(run, "tasks")] == [11], "what was broken off is not repeated"
    found = [{name: each for name, each in row.items() if name != "tasks"} for row in metrics_of(run)]
    assert found == metrics_of(RunDirectory(root / "unasked"))
