# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer launch submitit` without a cluster: local processes, this process, what a task does with its rank.

Covers: launch/commands/launch_submitit.py, launch/submitit_job.py
"""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from launch import cli, slurm_client
from launch.commands.launch_submitit import slurm_parameters, submit_once, wait_for_slurm
from launch.slurm_options import SlurmOptions
from launch.submitit_job import TrainingFailed, TrainingJob, noted, rank_environment
from memformer.run import jsonl
from memformer.run.directory import RunDirectory
from memformer.run.lock import RunLock
from tests.books import small_dataset
from tests.held import held_python

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = {
        "run_dir": str(tmp_path / "run"),
        "device": "cpu",
        "tensorboard": False,
        "model": {**MODEL, "num_memory_slots": 4},
        "data": {"path": str(tmp_path / "data"), "num_lanes": 4, "segment_length": 32, "num_segments": 2},
        "training": {"max_steps": 4, "eval_interval": 0},
        "optimizer": {"warmup_steps": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "config.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "processes"), [("local", 2), ("debug", 1)])
def test_on_this_machine_it_trains_and_finishes(config: Path, tmp_path: Path, executor: str, processes: int) -> None:
    small_dataset(tmp_path)
    command = [held_python(tmp_path), "-m", "launch.cli", "launch", "submitit", str(config), "--executor", executor]
    done = subprocess.run(
        [*command, "--tasks-per-node", str(processes)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    events = jsonl.records(tmp_path / "run/events.jsonl")
    assert events[-1]["event"] == "end"
    assert [event["processes"] for event in events if event["event"] == "start"] == [processes]
    if executor == "debug":
        assert done.stdout == (tmp_path / "run/logs/rank-00000.log").read_text(), "rank 0's output is shown"
        assert "step 4/4" in done.stdout and not done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "debug"])
def test_a_failure_on_this_machine_is_told_and_ends_with_1(config: Path, tmp_path: Path, executor: str) -> None:
    small_dataset(tmp_path)
    command = [held_python(tmp_path), "-m", "launch.cli", "launch", "submitit", str(config), "--executor", executor]
    command += ["--device", "cuda"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert "rank 0 on" in done.stderr and "failed (exit code 2)" in done.stderr
    if executor == "debug":  # whose own executor ends in a debugger
        assert done.stderr.count("\n") == 1 and "memformer train: error:" in done.stdout
        assert "lives in a row" not in done.stderr, "one life is no row"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--executor", "local", "--nodes", "2"], "--nodes 2"),
        (["--executor", "local", "--tasks-per-node", "3"], "data.num_lanes is 4"),
        (["--training.max_stepz", "2"], "max_stepz"),
        (["{config}"], "is that of several runs"),
        (["--executor", "local"], "no data set at"),
        (["--executor", "debug"], "no data set at"),
    ],
)
def test_mistakes_are_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str, tmp_path: Path
) -> None:
    line = [word.format(config=config) for word in words]
    assert cli.main(["launch", "submitit", str(config), *line]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_directory_in_which_a_run_trains_is_left_alone(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    RunLock.take(RunDirectory(tmp_path / "run")).accept()
    before = sorted((tmp_path / "run").rglob("*"))
    assert cli.main(["launch", "submitit", str(config), "--executor", "local"]) == 2
    error = capsys.readouterr().err
    assert "is in use: process" in error and error.count("\n") == 1
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_what_a_job_cannot_note_does_not_end_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.jsonl").mkdir()
    with noted(tmp_path / "jobs.jsonl") as path:
        path.write_text("a line")
    assert f"{tmp_path}/jobs.jsonl: cannot be written (Is a directory)" in capsys.readouterr().out


def test_options_reach_slurm() -> None:
    options = SlurmOptions(
        memory="0", partition="gpu", reservation="r", sbatch_lines=("--switches=1", "--exclusive"), set_up=("module x",)
    )
    found = slurm_parameters(options, Path("/runs/a b"))
    assert found["partition"] == "gpu"
    further = {"mem": "0", "reservation": "r", "switches": "1", "exclusive": True, "requeue": True}
    assert found["additional_parameters"] == {**further, "kill-on-invalid-dep": "yes"}
    path, cores, *others = found["setup"]
    assert path == "export PYTHONSAFEPATH=1 PYTHONPATH='/runs/a b/code'" and others == ["module x"]
    assert cores.startswith("export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} ")


class FailedJobError(Exception):
    """As what submitit passes on the words of an sbatch that fails."""


def test_a_job_that_slurm_refuses_is_one_line() -> None:
    class Executor:
        def submit(self, function: object) -> str:
            raise FailedJobError("sbatch: error: invalid partition specified: gpu")

    with pytest.raises(slurm_client.SubmissionRefused, match=r"sbatch refused: .*invalid partition specified"):
        submit_once(Executor(), [object()], "name")


class FailedSubmissionError(Exception):
    """submitit's, which is known by its name."""


def test_what_slurm_may_have_taken_is_not_submitted_again_unless_it_is_known_to_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Executor:
        tries = 0

        def submit(self, function: object) -> str:
            self.tries += 1
            raise FailedSubmissionError("sbatch: error: Socket timed out on send/recv operation")

    monkeypatch.setattr(slurm_client, "PATIENCE_SECONDS", 0.0)
    for known, tries in ((True, slurm_client.ATTEMPTS), (False, 1)):
        monkeypatch.setattr(slurm_client, "cancel", lambda name, known=known: known)
        executor = Executor()
        with pytest.raises(UserError, match=r"did not answer .*timed out.* look with squeue --name=unique"):
            submit_once(executor, [None], "unique")
        assert executor.tries == tries


def test_jobs_are_waited_for_while_slurm_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Job:
        job_id = "7"

    answers = ["RUNNING", *[slurm_client.UNKNOWN] * 5, "FAILED", slurm_client.UNKNOWN, "FAILED", slurm_client.GONE]
    left = iter([*answers, slurm_client.GONE])
    monkeypatch.setattr(slurm_client, "states", lambda ids: {job: next(left) for job in ids})
    assert wait_for_slurm([Job], [tmp_path], 0.0) == 1
    assert next(left, None) is None, "not given up before it was known three times"
    assert "job 7 ended" in capsys.readouterr().err


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process as the only task of a job of submitit's debug executor; the run directory."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "debug")
    monkeypatch.setenv("SUBMITIT_DEBUG_JOB_ID", "DEBUG_7")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def outcomes(run: Path) -> list[Any]:
    records = jsonl.records(run / "jobs.jsonl")
    return [record.get("outcome", record["event"]) for record in records]


def test_a_rank_that_ends_well_finishes_the_job(task: Path) -> None:
    assert TrainingJob(["sh", "-c", "echo $RANK of $WORLD_SIZE"], task)() == "finished"
    assert (task / "logs/rank-00000.log").read_text() == "0 of 1\n"
    assert outcomes(task) == ["start", "finished"]
    assert not (task / "attempts").exists()


def test_failures_without_progress_are_counted_over_lives(task: Path) -> None:
    job = TrainingJob(["sh", "-c", "exit 3"], task, max_failures=2)
    for _ in range(2):
        with pytest.raises(TrainingFailed, match="exit code 3"):
            job()
    with pytest.raises(TrainingFailed, match="giving up"):
        job()
    (task / "checkpoints").mkdir()
    (task / "checkpoints/latest").write_text("step-00000010\n")
    with pytest.raises(TrainingFailed, match=r"see .*rank-00000\.log$"):
        job()


def test_a_warning_waits_for_the_save_before_the_requeue(task: Path) -> None:
    """As submitit's handler does it: `checkpoint` in the main thread, in the middle of the wait for the rank."""
    rank = 'trap "sleep 0.5; touch saved; exit 75" USR2; env >environment; touch ready; while :; do sleep 0.05; done'
    job = TrainingJob(["sh", "-c", f"cd {task}; {rank}"], task, save_seconds=20)

    class Requeued(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        assert job.checkpoint().function is job
        assert (task / "saved").exists()
        assert "\nMEMFORMER_GRACE_SECONDS=20\n" in (task / "environment").read_text(), (
            "it knows how long that is waited for"
        )
        raise Requeued

    def warn() -> None:
        while not (task / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    thread = threading.Thread(target=warn)
    thread.start()
    try:
        with pytest.raises(Requeued):
            job()
    finally:
        thread.join(timeout=30)
        signal.signal(signal.SIGUSR2, before)
    assert outcomes(task) == ["start", "stopped"]


def test_ranks_of_one_job_meet_at_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        job_id, num_tasks, num_nodes, local_rank, hostnames = "12_3", 4, 2, 1, ("n5", "n6")
        global_rank = 3

    first = rank_environment(Task)
    assert first | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n5"} == first
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert rank_environment(Task)["MASTER_PORT"] != first["MASTER_PORT"], "another port in another life"
