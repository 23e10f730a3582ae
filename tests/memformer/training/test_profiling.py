# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Traced steps: what stands in the trace of a real run, that it changes nothing, and the line when memory runs out.

Covers: memformer/processes/spans.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import UserError
from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.run.traces import StepTimes, find_traces, read_trace
from memformer.training import Callback, TrainingState, train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import events_of, metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS, TRACED = 4, [2, 3]
SEGMENTS = 2


class Greedy(Callback):
    """Asks for more memory than there is, in a step's second segment."""

    def between_segments(self, state: TrainingState) -> None:
        if state.progress.step == 1:
            torch.empty(1 << 52, dtype=torch.uint8)


def lives(world: World, root: str) -> str:
    """Three runs: as usual, traced, and one whose memory runs out; what the last one says."""
    place, training = Path(root), {"max_steps": STEPS}
    assert train(tiny_config(place, "usual", training=training)) == 0
    profile: dict[str, Any] = {"steps": TRACED, "ranks": [1, 7]}  # there is no 7
    assert train(tiny_config(place, "traced", training=training, profile=profile)) == 0
    profile = {"steps": [2, 4], "ranks": [0, 1]}
    with pytest.raises(UserError) as error:
        train(tiny_config(place, "greedy", training=training, profile=profile), callbacks=[Greedy()])
    return str(error.value)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("profile")
    small_dataset(root, characters=3_000)
    return root, run_distributed(lives, 2, str(root))


def of(root: Path, run: str, name: str) -> StepTimes:
    (found,) = [path for path in find_traces(RunDirectory(root / run)) if path.name == name]
    return read_trace(found)


def test_a_traced_run_is_the_same_run(ran: tuple[Path, list[str]]) -> None:
    usual, traced = (metrics_of(RunDirectory(ran[0] / name)) for name in ("usual", "traced"))
    assert len(usual) == STEPS and traced == usual, "to the last bit"


def test_the_parts_of_a_step_are_counted_and_lie_within_it(ran: tuple[Path, list[str]]) -> None:
    """T - 1 segments in pass 1, T forward and backward, one reduction and one optimizer step; a save every second."""
    times = of(ran[0], "traced", "rank-00001.json.gz")
    assert times.steps == TRACED and times.busy_seconds is None
    calls = {name: part.calls for name, part in times.parts.items()}
    assert calls == {
        "data": 2,
        "pass 1": 2 * (SEGMENTS - 1),
        "segment forward": 2 * SEGMENTS,
        "segment backward": 2 * SEGMENTS,
        "reduction": 2,
        "optimizer": 2,
        "save": 1,
        "between the parts": 2,
    }
    assert sum(part.host_seconds for part in times.parts.values()) == pytest.approx(times.seconds, rel=1e-6)
    assert 0 < times.kinds["matrix products"] < times.seconds and times.kinds["communication"] > 0
    assert [path.name for path in find_traces(RunDirectory(ran[0] / "traced"))] == ["rank-00001.json.gz"]


def test_out_of_memory_is_one_line_and_leaves_its_trace(ran: tuple[Path, list[str]]) -> None:
    for rank, said in enumerate(ran[1]):
        assert said.startswith(
            f"out of memory at step 2, rank {rank} on cpu, segments of the rollout that were done: 1, asked for: "
            "4503599627370496 bytes; the plan expected "
        )
        assert said.rsplit(": ", 1)[1].startswith("try ") and "\n" not in said
    found = events_of(RunDirectory(ran[0] / "greedy"), "out_of_memory")
    assert sorted(event["rank"] for event in found) == [0, 1] and {event["step"] for event in found} == {2}
    assert of(ran[0], "greedy", "rank-00000.json.gz").parts["segment backward"].calls == 1
