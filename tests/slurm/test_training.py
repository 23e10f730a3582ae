# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer launch slurm` on a real cluster: whatever happens to a run, it ends as if nothing had."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.commands import run_ranks
from tests.held import hold, release
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.runs import (
    LIFE_SECONDS,
    STEPS,
    assert_every_token_once,
    assert_same_run,
    job_log,
    last_step,
    launch,
    memformer,
    rank_process,
    records,
    restarts,
    wait_for_end,
    wait_for_step,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def reference(config: Path) -> Path:
    """A run of two processes of this machine that nothing interrupted."""
    run = config.parent / "reference"
    run_ranks(str(config), "--run_dir", str(run), count=2, log=config.parent / "log")
    return run


def test_two_nodes_lose_a_rank_and_finish(cluster: Cluster, config: Path) -> None:
    """Two processes on each; the one that is killed leaves a sibling on its node, which must not stay behind."""
    run = config.parent / "four"
    hold(run, 12)
    job = launch(cluster, config, run, "--preflight", tasks=2)
    wait_for_step(run, 12)
    os.kill(rank_process(job, 3), signal.SIGKILL)
    wait_until(lambda: restarts(cluster, job) == 1, 90, "requeued after the death of a rank")
    assert "rank-00003 on node2 ended first, with exit code 137" in job_log(run)
    release(run)
    wait_for_end(cluster, job, run)
    assert restarts(cluster, job) == 1
    rows = records(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert_every_token_once(run)
    assert "4 of 4 ranks answered, on node1, node2" in job_log(run)
    assert "all-reduce: 4 ranks agree" in job_log(run)
    status = json.loads(memformer(cluster, "status", str(run), "--json").splitlines()[-1])
    assert (status["state"], status["step"], status["nodes"]) == ("finished", STEPS, ["node1", "node2"])
    last_life = max((run / "logs/exit-codes").iterdir(), key=lambda folder: folder.stat().st_mtime)
    codes = sorted(last_life.iterdir())
    assert [code.name for code in codes] == [f"rank-{rank:05d}" for rank in range(4)]
    assert [code.read_text().split()[:2] for code in codes] == [["0", f"node{1 + rank // 2}"] for rank in range(4)]
    said = memformer(cluster, "launch", "slurm", str(config), "--nodes", "2", "--run_dir", str(run))
    assert "nothing to do" in said, "a finished run is not submitted again"
    again = cluster.client("sbatch", "--parsable", str(run / "submit.sbatch")).strip()
    cluster.wait_for(again, "COMPLETED", seconds=30)
    assert "has finished: nothing to do" in (run / f"logs/slurm-{again}.out").read_text()
    outcomes = [record.get("outcome") for record in records(run / "jobs.jsonl")]
    assert outcomes == [None, "failed", None, "finished"], "the last one was not even started"


def test_warned_preempted_and_without_a_node_or_the_controller(cluster: Cluster, config: Path, reference: Path) -> None:
    """Four lives of one job: a time-out warning, a preemption, the death of a node, the controller away at the end."""
    run = config.parent / "interrupted"
    hold(run, 5)
    job = launch(cluster, config, run)

    wait_for_step(run, 5)
    cluster.client("scancel", "--signal=USR1", job)  # what --signal=USR1@300 sends before the time limit
    wait_until(lambda: restarts(cluster, job) == 1, 90, "requeued after the warning")
    saved = [event["step"] for event in records(run / "events.jsonl") if event["event"] == "preemption"]
    assert saved == [5]

    hold(run, 12)
    wait_for_step(run, 12)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    other = cluster.client(*urgent, "--wrap=sleep 2").strip()
    cluster.wait_for(other, "COMPLETED", seconds=90)
    assert last_step(run) < STEPS
    wait_until(lambda: restarts(cluster, job) >= 2, 90, "requeued after the preemption")
    assert len([event for event in records(run / "events.jsonl") if event["event"] == "preemption"]) >= 2

    held = last_step(run) + 3  # it may have been preempted again since
    hold(run, held)
    wait_for_step(run, held)
    lost, before = cluster.job(job)["BatchHost"], restarts(cluster, job)
    cluster.kill(lost)
    wait_until(lambda: restarts(cluster, job) == before + 1, 90, "requeued after the death of a node")

    hold(run, held + 12)  # past the next checkpoint
    wait_for_step(run, held + 12)
    cluster.stop_controller()
    release(run)
    wait_until(lambda: last_step(run) == STEPS, LIFE_SECONDS, "the run ends while the controller is away")
    wait_until(lambda: "done: the run has finished" in job_log(run), 60, "the job notices")
    cluster.start_controller()
    wait_for_end(cluster, job, run)
    assert_same_run(run, reference)
    ends = [record["outcome"] for record in records(run / "jobs.jsonl") if record["event"] == "end"]
    # Slurm may start the preempted job before the urgent one, and preempt it again.
    assert ends == [*["stopped"] * (len(ends) - 1), "finished"]
    starts = [record["nodes"].split() for record in records(run / "jobs.jsonl") if record["event"] == "start"]
    assert len(starts) == len(ends) + 1, "the life that lost its node could write nothing more"
    assert lost in starts[-2] and lost not in starts[-1], "it goes on with another node in its place"


def test_what_fails_at_once_is_not_requeued_for_ever(cluster: Cluster, config: Path) -> None:
    run = config.parent / "hopeless"
    job = launch(cluster, config, run, "--python", "/bin/false", "--max-failures", "2")
    cluster.wait_for(job, "FAILED", seconds=90)
    assert restarts(cluster, job) == 1
    assert "not requeued: 2 lives in a row ended without progress since checkpoint none" in job_log(run)
    assert "rank-0000" in job_log(run) and "exit code 1" in job_log(run)
    job = cluster.client("sbatch", "--parsable", str(run / "submit.sbatch")).strip()
    cluster.wait_for(job, "FAILED", seconds=60)
    assert "giving up" in job_log(run), "not even when it is submitted again, until someone has looked"


def test_bad_usage_is_not_tried_again(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Data that vanished between submission and start: every rank refuses, with one line."""
    run = tmp_path / "run"
    job = launch(cluster, config, run, "--nodes", "1", "--tasks-per-node", "1", "--data.path", str(tmp_path / "gone"))
    cluster.wait_for(job, "FAILED", seconds=LIFE_SECONDS)
    assert restarts(cluster, job) == 0
    assert "code 2" in job_log(run)
    assert f"{tmp_path}/gone" in (run / "logs/rank-00000.log").read_text()


def test_a_run_has_one_job_at_a_time_and_a_cancelled_one_stays_cancelled(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    hold(run, 3)
    job = launch(cluster, config, run)
    wait_for_step(run, 3)
    words = ["launch", "slurm", str(config), "--nodes", "2", "--run_dir", str(run)]
    memformer(cluster, *words, code=2)
    cluster.stop_controller()
    memformer(cluster, *words, code=1)
    cluster.start_controller()
    assert json.loads((run / "submission.json").read_text())["jobs"] == [job], "not while Slurm does not answer"
    cluster.client("scancel", job)
    cluster.wait_for(job, "CANCELLED", seconds=60)
    wait_until(lambda: "Slurm is ending this job itself" in job_log(run), 30, "the script has noticed")
    status = json.loads(memformer(cluster, "status", str(run), "--json").splitlines()[-1])
    assert (status["state"], status["restarts"]) == ("stopped", 0)
    assert [event["event"] for event in records(run / "events.jsonl")][-1] == "preemption", "it has saved"
    memformer(cluster, *words, "--sbatch-line=--hold")
    assert json.loads((run / "submission.json").read_text())["jobs"] != [job]
