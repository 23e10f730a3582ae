# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The named points of a training run: which are reached, in which order, and what a callback is shown there."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.training import Callback, TrainingState, train
from memformer.training.callbacks import Callbacks
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import events_of, metrics_of, tiny_config

POINTS = [name for name, _ in inspect.getmembers(Callback, inspect.isfunction)]
STEPS = 3


class Recorder(Callback):
    """Notes every point with the number of steps done, and whether metrics.jsonl has the step's line by then."""

    def __init__(self, seen: list[Any], name: str = "") -> None:
        self.seen, self.name = seen, name

    def __getattribute__(self, point: str) -> Any:
        if point not in POINTS:
            return super().__getattribute__(point)

        def note(state: TrainingState, *details: Any) -> None:
            self.seen.append((self.name, point, state.progress.step, *map(type, details)))

        return note


def callback_of_the_page() -> Any:
    """The callback that docs/operations.md shows, without the run that it is shown with."""
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    definitions, call = example.rsplit("\ntrain(", 1)
    assert call.endswith("callbacks=[losses])\n")
    found: dict[str, Any] = {}
    exec(definitions, found)
    return found["losses"]


def points_of(world: World, root: str) -> list[Any]:
    """Every point of a run of three steps: the second is evaluated and saved, the last saved."""
    seen: list[Any] = []
    training = {"max_steps": STEPS, "eval_interval": 2, "eval_segments": 2}
    documented = callback_of_the_page()
    code = train(
        tiny_config(Path(root), "points", training=training),
        callbacks=[Recorder(seen, "first"), Recorder(seen, "second"), documented],
    )
    assert code == 0
    assert documented.found == [row["loss"] for row in metrics_of(RunDirectory(Path(root) / "points"))]
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Any]]]:
    root = tmp_path_factory.mktemp("points")
    small_dataset(root, characters=3_000)
    return root, run_distributed(points_of, 2, str(root))


STEP = ["before_step", "before_data", "before_rollout", "between_segments", "before_optimizer_step"]
DONE = ["after_step", "after_metrics"]
EVALUATION = ["during_evaluation"] * 3 + ["after_evaluation"]
SAVE = ["before_save", "after_save"]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_points_of_a_run_in_their_order(seen: tuple[Path, list[list[Any]]]) -> None:
    expected = [(point, 0) for point in STEP] + [(point, 1) for point in DONE]
    expected += [(point, 1) for point in STEP] + [(point, 2) for point in DONE + EVALUATION + SAVE]
    expected += [(point, 2) for point in STEP] + [(point, 3) for point in DONE + EVALUATION + SAVE]
    for rank in seen[1]:
        first = [(point, step) for name, point, step, *_ in rank if name == "first"]
        assert first == expected
        assert [row[0] for row in rank] == ["first", "second"] * (len(rank) // 2), "in the order given"
        assert {point for _, point, *_ in rank} == set(POINTS), "no point that nothing reaches"
    run = RunDirectory(seen[0] / "points")
    assert [row["step"] for row in metrics_of(run)] == [1, 2, 3]
    assert [event["step"] for event in events_of(run, "save")] == [2, 3]


@pytest.mark.slow
@pytest.mark.distributed
def test_details_of_a_point_are_of_the_kind_that_is_said(seen: tuple[Path, list[list[Any]]]) -> None:
    details = {point: tuple(kind.__name__ for kind in rest) for _, point, _, *rest in seen[1][0]}
    assert {point: kinds for point, kinds in details.items() if kinds} == {
        "after_metrics": ("dict",),
        "after_evaluation": ("dict",),
        "after_save": ("SaveReport",),
    }


@pytest.mark.parametrize("point", POINTS)
def test_several_callbacks_are_called_as_one(point: str) -> None:
    """`Callbacks` passes on every point there is, with its details; a point that was forgotten would do nothing."""
    seen: list[Any] = []

    def noting(name: str) -> Callback:
        callback = Callback()
        setattr(callback, point, lambda *arguments: seen.append((name, *arguments)))
        return callback

    reach: Callable[..., None] = getattr(Callbacks([noting("a"), noting("b")]), point)
    arguments = ["state", "details"][: len(inspect.signature(reach).parameters)]
    reach(*arguments)
    assert seen == [("a", *arguments), ("b", *arguments)]
    assert getattr(Callback(), point)(*arguments) is None
