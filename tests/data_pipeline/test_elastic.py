# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Real processes, killed, that go on with other numbers of ranks and lanes: trace and audit agree line by line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, LanePlan
from launch.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


def start(folder: Path, data: Path, world_size: int, lanes: int, steps: int, **others: Any) -> list[int]:
    """Runs a rank a process; returns their exit codes. The last rank alone is killed, the others run to their end."""
    folder.mkdir(exist_ok=True)
    processes = []
    for rank in range(world_size):
        arguments = {"data": str(data), "folder": str(folder), "rank": rank, "world_size": world_size, "lanes": lanes}
        arguments |= {"steps": steps, "state": None, "kill_at": None, **others}
        command = [sys.executable, "-m", "tests.data_pipeline.stream_worker", json.dumps(arguments)]
        processes.append(subprocess.Popen(command, cwd=REPOSITORY))
    return [process.wait(timeout=60) for process in processes]


def audit(folder: Path, steps: range) -> list[Row]:
    """What the processes delivered in these steps, in the order of a trace."""
    rows = [json.loads(line) for path in folder.glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(
        (r for r in rows if r["step"] in steps), key=lambda r: (r["step"], r["rank"], r["lane"], r["segment"])
    )


def trace(
    capsys: pytest.CaptureFixture[str], data: Path, world_size: int, lanes: int, steps: int, *more: object
) -> list[Row]:
    shape = ["--segment-length", 32, "--num-segments", 3, "--seed", 11, "--world-size", world_size, "--lanes", lanes]
    capsys.readouterr()
    assert main(["data", "trace", str(data), *map(str, [*shape, "--steps", steps, *more])]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_trace_and_audit_agree_across_kills_worlds_and_lanes(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Killed in step 9, after the batch was read and before anything was saved: step 8 is the newest state.
    codes = start(tmp_path / "first", dataset, 2, 6, 9, kill_at=9)
    assert codes == [-signal.SIGKILL] * 2
    assert sorted(tmp_path.glob("first/state-*.json"))[-1].name == "state-8.json"
    state = tmp_path / "first" / "state-8.json"
    # Three ranks and fewer lanes, killed again; then one rank and more lanes.
    assert start(tmp_path / "second", dataset, 3, 4, 12, state=str(state), kill_at=18) == [-signal.SIGKILL] * 3
    later = tmp_path / "second" / "state-17.json"
    assert start(tmp_path / "third", dataset, 1, 7, 8, state=str(later)) == [0]

    delivered = audit(tmp_path / "first", range(1, 9))
    assert delivered == trace(capsys, dataset, 2, 6, 8)
    assert audit(tmp_path / "first", range(1, 10)) == trace(capsys, dataset, 2, 6, 9)
    second = audit(tmp_path / "second", range(9, 18))
    assert second == trace(capsys, dataset, 3, 4, 9, "--state-in", state)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "state.json").write_text(later.read_text())
    third = audit(tmp_path / "third", range(18, 26))
    assert third == trace(capsys, dataset, 1, 7, 8, "--state-in", checkpoint)

    # All that was trained on, counted: in every epoch each token once and in order.
    lengths = DocumentIndex.load(dataset).lengths.tolist()
    read: dict[tuple[int, int], int] = {}
    for row in sorted(delivered + second + third, key=lambda r: (r["step"], r["lane"], r["segment"])):
        key = (row["epoch"], row["document"])
        assert read.get(key, 0) == row["start"] and row["reset"] == (row["start"] == 0)
        read[key] = row["start"] + row["length"]
    assert sum(read.values()) > sum(lengths), "more than an epoch was read"
    whole = {key for key, tokens in read.items() if tokens == lengths[key[1]]}
    assert len(read) - len(whole) <= 7 and {document for epoch, document in read if epoch == 0} == set(
        range(len(lengths))
    )


def test_resuming_takes_the_same_time_early_and_late() -> None:
    """The millionth step is reached by its state; nothing of the stream is replayed."""
    lengths = np.full(20_000, 5_000)

    def fresh() -> LanePlan:
        return LanePlan(lengths, num_lanes=64, segment_length=512, seed=3)

    plan = fresh()
    for _ in range(10):
        plan.next_rollout(8)
    early = plan.state_dict()
    epochs = 1_000_000 * 8 * 64 * 512 // int(lengths.sum())
    late = {
        **early,
        "step": 1_000_000,
        "tokens": 1_000_000 * 8 * 64 * 512,
        "sources": [f"{epochs} 9000 0"],
        "lane_epochs": " ".join([str(epochs)] * 64),
    }
    seconds: dict[int, list[float]] = {10: [], 1_000_000: []}
    for _ in range(3):
        for state in (early, late):
            began = time.perf_counter()
            resumed = fresh()
            resumed.load_state_dict(state)
            rollout = resumed.next_rollout(8)
            seconds[state["step"]].append(time.perf_counter() - began)
            assert rollout is not None and rollout.step == state["step"]
    # The late one begins in an epoch whose order is made for it: the same work, as nothing is kept between plans.
    assert min(seconds[1_000_000]) < 3 * min(seconds[10]) + 0.02
    assert len(json.dumps(late)) < 4_000
