# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Training runs on the cluster: a configuration that takes seconds, and what must hold of every finished run."""

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from memformer.run.directory import TIMING_FIELDS
from memformer.run.jsonl import records
from tests.books import TINY_MODEL
from tests.held import held_python
from tests.slurm.cluster import Cluster, wait_until

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
LIFE_SECONDS = 150  # a start of four processes on two busy cores, and all steps


def write_config(path: Path, data: Path, steps: int = STEPS) -> Path:
    """A tiny model on a few pages of the books."""
    settings = {
        "run_dir": str(path.parent / "run"),
        "device": "cpu",
        "tensorboard": False,
        "model": TINY_MODEL,
        "data": {"path": str(data), "num_lanes": 4, "segment_length": 32, "num_segments": 2, "audit": True},
        "training": {"max_steps": steps, "eval_interval": 0, "diagnostics_interval": 10},
        "optimizer": {"warmup_steps": 5, "learning_rate": 3e-3},
        "checkpoint": {"interval": 10},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def memformer(cluster: Cluster, *words: str, code: int = 0) -> str:
    """Runs a command of the project as a user of the cluster; returns what it said on stdout. Runs that it submits can
    be held (tests/held.py).

    Raises:
        AssertionError: It ended with another code.
    """
    done = subprocess.run(
        [held_python(cluster.root), "-m", "launch.cli", *words],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, f"memformer {' '.join(words)} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def launch(cluster: Cluster, config: Path, run: Path, *options: str, tasks: int = 1) -> str:
    """Submits a run of 2 nodes, with so many processes on each; returns the job's id."""
    resources = ["--nodes", "2", "--tasks-per-node", str(tasks)]
    memformer(cluster, "launch", "slurm", str(config), *resources, "--run_dir", str(run), *options)
    jobs = json.loads((run / "submission.json").read_text())["jobs"]
    return str(jobs[0])


def wait_for_step(run: Path, step: int, seconds: float = LIFE_SECONDS) -> None:
    """Waits until a run has trained a step."""

    def reached() -> bool:
        rows = records(run / "metrics.jsonl")
        return bool(rows) and rows[-1]["step"] >= step

    wait_until(reached, seconds, f"{run} reaches step {step}; its job said: {job_log(run)}", poll=0.1)


def last_step(run: Path) -> int:
    """The step that a run has reached."""
    return int(records(run / "metrics.jsonl")[-1]["step"])


def job_log(run: Path) -> str:
    """What the job itself said, for failures' messages."""
    return "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted((run / "logs").glob("slurm-*.out")))


def wait_for_end(cluster: Cluster, job: str, run: Path, seconds: float = LIFE_SECONDS) -> None:
    """Waits until a job has ended for good, and holds it to having finished its run."""
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", seconds=seconds)
    assert cluster.state(job) == "COMPLETED", job_log(run)
    assert records(run / "events.jsonl")[-1]["event"] == "end"


def restarts(cluster: Cluster, job: str) -> int:
    """How often the job was started again."""
    return int(cluster.job(job)["Restarts"])


def rank_process(job: str, rank: int) -> int:
    """The process id, on this machine, of a rank's Python."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    for process in filter(str.isdigit, os.listdir("/proc")):
        folder = Path("/proc", process)
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = set((folder / "environ").read_bytes().split(b"\0"))
            if b"train" in words and wanted <= variables and "python" in (folder / "exe").readlink().name:
                return int(process)
        except OSError:
            continue  # it has just ended
    raise AssertionError(f"no process of rank {rank} of job {job}")


def assert_same_run(run: Path, reference: Path) -> None:
    """Every step once, and every figure of it as in a run that nothing interrupted; so is what was read."""

    def figures(path: Path) -> list[dict[str, Any]]:
        rows = records(path / "metrics.jsonl")
        return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]

    assert [row["step"] for row in figures(run)] == list(range(1, STEPS + 1))
    assert figures(run) == figures(reference)
    ranks = sorted(path.name for path in (reference / "audit").iterdir())
    assert len(ranks) == 2
    for name in ranks:
        assert (run / "audit" / name).read_text() == (reference / "audit" / name).read_text()
    assert_every_token_once(run)


def assert_every_token_once(run: Path) -> None:
    """Each document of each epoch is read from its beginning, without a gap or a token twice."""
    pieces: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for file in (run / "audit").iterdir():
        for row in records(file):
            if row["length"]:
                pieces[row["epoch"], row["document"]].append((row["start"], row["length"]))
    assert pieces
    for document, parts in pieces.items():
        expected = min(parts)[0]
        for start, length in sorted(parts):
            assert start == expected, f"document {document}: token {expected} is followed by {start}"
            expected = start + length
    assert (
        sum(length for parts in pieces.values() for _, length in parts) == records(run / "metrics.jsonl")[-1]["tokens"]
    )
