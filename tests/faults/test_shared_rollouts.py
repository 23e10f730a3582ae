# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Processes that share rollouts: one is killed, the run goes on with as many, and then with no rollout shared.

Covers: memformer/engine/segment_engine.py
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from memformer.checkpoints.exporting import export
from memformer.run.directory import RunDirectory
from tests.books import small_dataset
from tests.faults.lives import assert_every_token_once, audit_of, events_of, finish, metrics_of, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS, SHARED = 10, 7


def settings(segment: int, last: int) -> dict[str, Any]:
    """With the masks of dropout of one group of lanes, whoever has it: they are the same on any number of ranks."""
    return {
        "model": {"dropout": 0.1},
        "data": {"num_segments": {0: 2, 5: 3}},
        "training": {"max_steps": last, "lanes_per_micro_batch": 1, "diagnostics_interval": 2, "eval_interval": 5},
        "parallel": {"segment": segment, "zero_stage": 2},
        "guards": {"checksum_interval": 1},
    }


def test_a_killed_run_goes_on_bit_equal_and_then_on_other_ranks_to_rounding(tmp_path: Path) -> None:
    small_dataset(tmp_path, characters=3_000)
    assert finish(start(tmp_path, "peace", settings(2, STEPS))) == [0, 0]
    killed = start(tmp_path, "run", settings(2, STEPS))
    run, peace = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "peace")
    wait_for(lambda: run.metrics.exists() and len(metrics_of(run)) >= 4, killed)
    assert killed[1].pid is not None
    os.kill(killed[1].pid, signal.SIGKILL)
    finish(killed, seconds=0.5)
    assert finish(start(tmp_path, "run", settings(2, SHARED))) == [0, 0]
    expected = metrics_of(peace)
    learning_rates = [row.pop("learning_rate") for row in expected]
    found = metrics_of(run)
    assert [row.pop("learning_rate") for row in found] == learning_rates[:SHARED]
    assert found == expected[:SHARED]
    assert finish(start(tmp_path, "run", settings(1, STEPS))) == [0, 0]
    changes = events_of(run, "resume")[-1]["changes"]
    assert "segment 2 -> 1" in changes and not any("parallel" in change for change in changes)
    # float32: what differs is the order of summation, seen to 1e-6.
    for row, other in zip(metrics_of(run)[SHARED:], expected[SHARED:], strict=True):
        for name in ("loss", "grad_norm", "memory_gradient_norms"):
            assert row[name] == pytest.approx(other[name], rel=1e-4), name
    assert_every_token_once(run)
    drop = [{name: value for name, value in row.items() if name != "rank"} for row in audit_of(run)]
    assert drop == [{name: value for name, value in row.items() if name != "rank"} for row in audit_of(peace)]
    assert export(run.root, tmp_path / "model")["largest_loss_difference"] < 1e-5
