# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer plan` against what a simulated GPU allocates in a step, at most: within 5 %.

Seen: 0.2 % at ZeRO 1 and 3 (0 and 2 have the same formulas), 1 % with layers that are recomputed and with tensor
parallelism. What 1.3B holds whole is in docs/results/simulated-step.md.

Covers: memformer/planning/memory.py
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.simulated_gpu import library
from tests import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library.missing() is not None, reason=str(library.missing())),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, float]]]:
    """Bytes: planned and allocated, by case and moment."""
    out = tmp_path_factory.mktemp("memory") / "memory.json"
    words = [sys.executable, "-m", "tests.simulated_gpu.memory", str(out)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    read: dict[str, dict[str, dict[str, float]]] = json.loads(out.read_text())
    return read


@pytest.mark.parametrize("name", ["zero1", "zero3", "recomputed", "tensor"])
def test_the_fullest_moment_is_as_planned(name: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
    """The rollout within 5 %; the reduction, which takes the gradients in their order, and is not full, within 10 %."""
    planned, allocated = found["planned"][name], found["allocated"][name]
    assert planned["rollout"] == pytest.approx(allocated["rollout"], rel=0.05)
    assert planned["rollout"] == max(planned.values())
    if "reduction" in allocated:
        assert 0.98 < planned["reduction"] / allocated["reduction"] < 1.1


def test_the_first_stage_of_a_pipeline_allocates_no_more_than_planned(
    found: dict[str, dict[str, dict[str, float]]],
) -> None:
    """The plan has all graphs that a stage ever holds meet what its first pass has under way, which not all of them do:
    two segments here, of two groups of lanes; with three of four they do, and 2 % more is allocated than planned."""
    planned, allocated = (found[of]["pipeline"]["rollout"] for of in ("planned", "allocated"))
    assert 0.95 < planned / allocated < 1.25
