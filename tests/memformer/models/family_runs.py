# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Short runs of a model of any family: what the tests of each of them have in common.

Tolerance between ZeRO stages and one process: 1e-4 nats after a few steps of AdamW in float32 (seen: under 1e-5; sums
run in another order).
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from memformer.config.schema import parse_config
from memformer.processes.group import World
from memformer.run import jsonl
from memformer.run.directory import TIMING_FIELDS
from memformer.training import train

STEPS, SAVED = 4, 2


def run_settings(root: Path, name: str, zero_stage: int, model: dict[str, Any]) -> dict[str, Any]:
    """A run as its YAML file has it: root/NAME, of the data in root/data."""
    return {
        "run_dir": str(root / name),
        "device": "cpu",
        "tensorboard": False,
        "model": model,
        "data": {"path": str(root / "data"), "num_lanes": 4, "segment_length": 16, "num_segments": 3},
        "training": {"max_steps": STEPS, "eval_interval": STEPS, "eval_segments": 4, "diagnostics_interval": 1},
        "optimizer": {"warmup_steps": 1, "epsilon": 1e-3},
        "parallel": {"zero_stage": zero_stage},
        "checkpoint": {"interval": SAVED},
    }


def compared(values: dict[str, Any], **training: Any) -> dict[str, Any]:
    """The settings of a run whose losses alone are looked at."""
    values["training"] = {"max_steps": STEPS - 1, "eval_interval": 0, "diagnostics_interval": 0} | training
    return values


def life(world: World, *runs: dict[str, Any]) -> list[int]:
    """What one process of some runs does, as `memformer train` does it."""
    return [train(parse_config(values, "test")) for values in runs]


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine's speed."""
    rows = jsonl.records(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


def assert_alike(one: Path, two: Path) -> None:
    """Two runs have the same losses, to rounding."""
    losses = [[row["loss"] for row in metrics(run)] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def break_off(run: Path, name: str) -> None:
    """Makes a copy of a finished run beside it that has saved no more than step SAVED."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS:08d}")


def assert_resumed(name: str, run: Path) -> None:
    """The copy went on from step SAVED, and is equal to the run to the last bit."""
    events = jsonl.records(run.parent / name / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resume"] == [SAVED]
    assert metrics(run.parent / name) == metrics(run)
