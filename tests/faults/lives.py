# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tiny runs to be killed, damaged and moved, and what is counted afterwards."""

import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from memformer.config.schema import Config, parse_config
from memformer.processes.ports import free_port
from memformer.run import jsonl
from memformer.run.directory import TIMING_FIELDS, RunDirectory
from memformer.training.trainer import train
from tests.books import TINY_MODEL
from tests.distributed.processes import fork_server

PROCESSES = 2


def tiny_config(root: Path, name: str, **sections: dict[str, Any]) -> Config:
    """A run of a few thousand parameters on the data set in root/data; `sections` go over the defaults."""
    values: dict[str, Any] = {
        "run_dir": str(root / name),
        "device": "cpu",
        "tensorboard": False,
        "model": TINY_MODEL,
        "data": {
            "path": str(root / "data"),
            "num_lanes": 4,
            "segment_length": 32,
            "num_segments": 2,
            "audit": True,
        },
        "training": {"max_steps": 8, "eval_interval": 0, "diagnostics_interval": 0},
        "optimizer": {"warmup_steps": 2, "schedule": "constant", "epsilon": 1e-3},
        "checkpoint": {"interval": 2},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    return parse_config(values, name)


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine's speed."""
    rows = jsonl.records(run.metrics)
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


def events_of(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    """The events of one kind, in order."""
    rows = jsonl.records(run.events)
    return [row for row in rows if row["event"] == kind]


def audit_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Every segment that was trained on, in the order of steps."""
    rows = [row for path in run.audit.glob("rank-*.jsonl") for row in jsonl.records(path)]
    return sorted(rows, key=lambda row: (row["step"], row["segment"], row["lane"]))


def assert_every_token_once(run: RunDirectory) -> None:
    """Each reading of a document goes from its start without a gap or a repetition; nothing else was read."""
    at: dict[tuple[int, int], int] = defaultdict(int)
    tokens = 0
    for row in audit_of(run):
        key = (row["epoch"], row["document"])
        assert row["start"] == at[key], f"{row}: tokens {at[key]} .. were next"
        at[key] += row["length"]
        tokens += row["length"]
    assert tokens == metrics_of(run)[-1]["tokens"]


def start(
    root: Path,
    name: str,
    sections: dict[str, Any],
    resume: str = "auto",
    environment: Mapping[str, str] | None = None,
) -> list[BaseProcess]:
    """One life of a run, in two processes of its own that log to root/name-RANK.log."""
    port = free_port()
    context = fork_server()
    processes: list[BaseProcess] = [
        context.Process(target=_live, args=(rank, port, str(root), name, sections, resume, dict(environment or {})))
        for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    return processes


def _live(
    rank: int, port: int, root: str, name: str, sections: dict[str, Any], resume: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(PROCESSES), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with (Path(root) / f"{name}-{rank}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            code = train(tiny_config(Path(root), name, **sections), resume)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
    os._exit(code)


def wait_for(condition: Callable[[], bool], processes: list[BaseProcess], seconds: float = 120) -> None:
    """Waits until the condition holds.

    Raises:
        AssertionError: The time is up, or all processes have ended.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        alive = any(process.is_alive() for process in processes)
        assert time.monotonic() < deadline and (alive or condition()), "no progress"
        time.sleep(0.005)


def finish(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Waits for the processes and kills what is left; their exit codes, None for those that had to be killed."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes
