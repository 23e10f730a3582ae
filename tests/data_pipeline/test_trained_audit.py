# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A real training run on two processes, killed and resumed: its audit is what `memformer data trace` says."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests.data_pipeline.test_elastic import REPOSITORY, audit


def rows_of(capsys: Any, data: Path, *options: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    shape = "--lanes 4 --segment-length 16 --num-segments 2 --world-size 2 --seed 3".split()
    assert main(["data", "trace", str(data), *shape, *map(str, options)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
@pytest.mark.distributed
def test_trace_is_the_audit_of_a_killed_and_resumed_training_run(dataset: Path, tmp_path: Path, capsys: Any) -> None:
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
    command = [sys.executable, "-m", "launch.cli", "launch", "local", str(tmp_path / "config.yaml")]
    command += ["--nproc", "2"]
    first = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = run / "checkpoints" / "step-00000003" / "state.json"
    deadline = time.monotonic() + 150
    while not state.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state.exists() and first.poll() is None, "it is killed in the midst of its steps"
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=30)
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=200, capture_output=True)
    delivered = audit(run / "audit", range(1, steps + 1))
    assert delivered == rows_of(capsys, dataset, "--steps", steps)
    later = rows_of(capsys, dataset, "--steps", steps - 3, "--state-in", state.parent)
    assert later == [row for row in delivered if row["step"] > 3]
