# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer launch submitit` on a cluster without accounting: train, preempt, resume, finish; failures; a sweep."""

import json
from pathlib import Path

import pytest

from tests.held import hold, release
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.runs import (
    LIFE_SECONDS,
    STEPS,
    assert_every_token_once,
    last_step,
    memformer,
    records,
    restarts,
    wait_for_end,
    wait_for_step,
    write_config,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


def submit(cluster: Cluster, *words: str, run: Path, code: int = 0) -> str:
    memformer(cluster, "launch", "submitit", *words, "--warning-seconds", "60", code=code)
    return str(json.loads((run / "submission.json").read_text())["jobs"][0])


def test_train_preempt_resume_finish(cluster: Cluster, config: Path) -> None:
    run = config.parent / "run"
    hold(run, 5)
    job = submit(cluster, str(config), "--nodes", "2", "--tasks-per-node", "1", run=run)
    wait_for_step(run, 5)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    other = cluster.client(*urgent, "--wrap=sleep 1").strip()
    cluster.wait_for(other, "COMPLETED", seconds=90)
    assert last_step(run) < STEPS
    wait_until(lambda: restarts(cluster, job) >= 1, 60, "requeued after the preemption")
    release(run)
    wait_for_end(cluster, job, run, seconds=LIFE_SECONDS)
    events = records(run / "events.jsonl")
    saved = [event["step"] for event in events if event["event"] == "preemption"]
    assert saved[0] in [event["step"] for event in events if event["event"] == "resume"]
    assert [row["step"] for row in records(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert_every_token_once(run)
    outcomes = [record["outcome"] for record in records(run / "jobs.jsonl") if record["event"] == "end"]
    assert outcomes[0] == "stopped" and outcomes[-1] == "finished"


def test_a_sweep_is_one_array_and_a_failure_is_noticed_without_accounting(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    """Two runs whose data vanish: each job of the array ends, and so does the waiting for them."""
    data = tmp_path / "data"
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(str(write_config(tmp_path / name / "config.yaml", data)))
    job = submit(cluster, *paths, "--wait", "--interval", "1", run=tmp_path / "a" / "run", code=1)
    assert job.endswith("_0")
    assert json.loads((tmp_path / "b/run/submission.json").read_text())["jobs"] == [job.replace("_0", "_1")]
    for name in ("a", "b"):
        (end,) = [record for record in records(tmp_path / name / "run/jobs.jsonl") if record["event"] == "end"]
        assert (end["outcome"], end["again"]) == ("failed", "no")
        assert "exit code 2" in end["detail"]
