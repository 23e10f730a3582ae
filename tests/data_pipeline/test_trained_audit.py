# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A real training run, killed and resumed, also on other hardware: its audit is what `memformer data trace` says."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from memformer.run import jsonl
from tests.commands import end, run_ranks, start_ranks
from tests.data_pipeline.test_elastic import audit
from tests.held import hold, release


def rows_of(capsys: Any, data: Path, *options: object, lanes: int = 4, world: int = 2) -> list[dict[str, Any]]:
    capsys.readouterr()
    shape = f"--lanes {lanes} --segment-length 16 --num-segments 2 --world-size {world} --seed 3".split()
    assert main(["data", "trace", str(data), *shape, *map(str, options)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("lanes", "world"), [(4, 2), (6, 3), (2, 1)], ids=["same", "more", "fewer"])
def test_trace_is_the_audit_of_a_killed_and_resumed_training_run(
    dataset: Path, tmp_path: Path, capsys: Any, lanes: int, world: int
) -> None:
    """Two processes with four lanes are killed; `world` processes with `lanes` lanes go on."""
    run, steps = tmp_path / "run", 14
    settings = {
        "run_dir": str(run),
        "seed": 3,
        "device": "cpu",
        "tensorboard": False,
        "model": {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32},
        "data": {"path": str(dataset), "num_lanes": 4, "segment_length": 16, "num_segments": 2, "audit": True},
        "training": {"max_steps": steps, "eval_interval": 0},
        "optimizer": {"warmup_steps": 1},
        "checkpoint": {"interval": 3, "keep_last": 10},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    hold(run, 10)
    config = str(tmp_path / "config.yaml")
    first = start_ranks(config, count=2, log=tmp_path / "first", hold=True)
    state = run / "checkpoints" / "step-00000003" / "state.json"
    deadline = time.monotonic() + 150
    while not state.exists() and all(rank.is_alive() for rank in first) and time.monotonic() < deadline:
        time.sleep(0.01)
    there = state.exists() and all(rank.is_alive() for rank in first)
    end(first)
    assert there, "it is killed in the midst of its steps"
    release(run)
    run_ranks(config, "--data.num_lanes", str(lanes), count=world, log=tmp_path / "again")
    events = jsonl.records(run / "events.jsonl")
    resumed = next(event["step"] for event in events if event["event"] == "resume")
    delivered = audit(run / "audit", range(1, steps + 1))
    before = rows_of(capsys, dataset, "--steps", resumed)
    checkpoint = run / "checkpoints" / f"step-{resumed:08d}"
    after = rows_of(capsys, dataset, "--steps", steps - resumed, "--state-in", checkpoint, lanes=lanes, world=world)
    assert delivered == before + after
