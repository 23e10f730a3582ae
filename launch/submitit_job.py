# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What submitit runs in every task of a job: one rank of a training run, started, watched, requeued.

The rank is a process of its own, so that submitit's signal handler stays in place beside it. A warning (SIGUSR2 before
the time limit, or at a preemption) reaches both: the rank saves and leaves with 75, and submitit calls `checkpoint`,
which waits for that, and requeues the job. A failure requeues the job as well, until it has failed several times
without a new checkpoint. No accounting is asked for.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import submitit

from launch.tail import LogEcho
from memformer.processes.ports import port_of_job
from memformer.run import exit_codes
from memformer.run.grace import handed_down

REQUEUE_SECONDS = 300.0  # how long a job that asked to be requeued waits for its own end
CONTROLLER_ATTEMPTS = 60
CONTROLLER_PATIENCE = 10.0


class TrainingFailed(RuntimeError):
    """The run ended without having finished, and is not started again."""


class TrainingJob:
    """One run, as submitit pickles, starts and restarts it.

    Args:
        command: What each rank runs; the ranks differ in their environment only.
        run_dir: The run's directory.
        max_failures: Lives in a row without a new checkpoint, after which the job is not requeued any more.
        save_seconds: How long a rank may take to save after a warning.
        shown: Copy what the rank says to stdout, beside its log.
    """

    def __init__(
        self,
        command: Sequence[str],
        run_dir: Path,
        max_failures: int = 3,
        save_seconds: float = 120,
        shown: bool = False,
    ) -> None:
        self.command = list(command)
        self.run_dir = run_dir
        self.max_failures = max_failures
        self.save_seconds = save_seconds
        self.shown = shown
        self._rank: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rank": None}

    def __call__(self) -> str:
        """Runs this task's rank to its end; returns what became of the run.

        Raises:
            TrainingFailed: It failed and is not requeued; submitit passes this on as the job's result.
        """
        task = submitit.JobEnvironment()
        if task.global_rank == 0:
            before, attempts = self._begin(task)
        code = self._run_rank(task)
        if code == exit_codes.DONE:
            if task.global_rank == 0:
                self._end(task, "finished")
                self._forget_attempts()
            return "finished"
        if code in exit_codes.STOPPED:
            # submitit's handler has been called or Slurm is about to end this job: there is nothing more to do here
            time.sleep(REQUEUE_SECONDS)
            raise TrainingFailed(f"rank {task.global_rank} was stopped (exit code {code}) and the job not requeued")
        if task.global_rank:
            before, attempts = read_attempts(self.run_dir)
        how = exit_codes.in_words(code)
        reason = f"rank {task.global_rank} on {socket.gethostname()} {how}; see {self._log(task)}"
        hopeless = newest_checkpoint(self.run_dir) == before and attempts >= self.max_failures
        again = under_slurm() and code not in exit_codes.NOT_MENDED_BY_RETRYING and not hopeless
        self._end(task, "failed", again="yes" if again else "no", detail=reason)
        if again:
            print(
                f"{reason}; requeueing (attempt {attempts} of {self.max_failures} from checkpoint {before})", flush=True
            )
            requeue(task.job_id)
        raise TrainingFailed(
            f"{reason}; {attempts} lives in a row began at checkpoint {before}" if hopeless else reason
        )

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit's signal handler in rank 0: waits until the rank has saved, then asks for a requeue."""
        if self._rank is not None:
            deadline = time.monotonic() + self.save_seconds
            if not has_ended(self._rank):
                os.kill(self._rank.pid, signal.SIGUSR2)  # Slurm has told it; submitit's local executor has not
            while not has_ended(self._rank) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not has_ended(self._rank):
                print("the rank did not save in time; the next life starts from an older checkpoint", flush=True)
        self._end(submitit.JobEnvironment(), "stopped")
        self._forget_attempts()
        return submitit.helpers.DelayedSubmission(self)

    def _begin(self, task: Any) -> tuple[str, int]:
        """Notes a new life, or refuses one when too many before it came to nothing."""
        before, (earlier, attempts) = newest_checkpoint(self.run_dir), read_attempts(self.run_dir)
        attempts = attempts if earlier == before else 0
        if attempts >= self.max_failures:
            raise TrainingFailed(
                f"{attempts} lives in a row began at checkpoint {before} and none made progress: giving up. After "
                f"mending the cause, delete {self.run_dir / 'attempts'} and submit again"
            )
        with noted(self.run_dir / "attempts") as attempts_file:
            attempts_file.write_text(f"{before} {attempts + 1}\n")
        self._note(task, "start", nodes=" ".join(hosts(task)), tasks=task.num_tasks, checkpoint=before)
        return before, attempts + 1

    def _forget_attempts(self) -> None:
        with noted(self.run_dir / "attempts") as path:
            path.unlink(missing_ok=True)

    def _run_rank(self, task: Any) -> int:
        environment = {**os.environ, **rank_environment(task), **handed_down(self.save_seconds, os.environ)}
        log = self._log(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            echo = LogEcho(log, output.tell()) if self.shown else None
            self._rank = subprocess.Popen(self.command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            ended = False
            while not ended:
                ended = has_ended(self._rank)
                if echo is not None:
                    echo.copy()
                time.sleep(0 if ended else 0.1)
            code = exit_codes.of_process(self._rank.wait())
        except BaseException:
            # submitit's handler ends this process by an exception once the job is requeued
            self._rank.kill()
            raise
        codes = self.run_dir / "logs" / "exit-codes" / f"{task.job_id}-{restart_count()}"
        with noted(codes / f"rank-{task.global_rank:05d}") as path:
            codes.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{code} {socket.gethostname()} {int(time.time())}\n")
        return code

    def _log(self, task: Any) -> Path:
        return self.run_dir / "logs" / f"rank-{task.global_rank:05d}.log"

    def _end(self, task: Any, outcome: str, **details: str) -> None:
        self._note(task, "end", outcome=outcome, **details)

    def _note(self, task: Any, event: str, **details: Any) -> None:
        """A line of jobs.jsonl, which `memformer status` reads."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"time": now, "event": event, "job": task.job_id, "life": restart_count(), **details}
        with noted(self.run_dir / "jobs.jsonl") as path, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@contextmanager
def noted(path: Path) -> Iterator[Path]:
    """What a job writes down of itself ends no run: where it cannot be written, one line in the job's log says so."""
    try:
        yield path
    except OSError as error:
        print(f"{path}: cannot be written ({error.strerror}); the job goes on", flush=True)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended, asked without `Popen`'s lock: a signal handler may ask in the middle of this."""
    return process.returncode is not None or (
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    )


def rank_environment(task: Any) -> dict[str, str]:
    """The variables by which the ranks find each other, from submitit's view of the job."""
    nodes = hosts(task)
    number = int("".join(filter(str.isdigit, task.job_id)) or 0)
    return {
        "RANK": str(task.global_rank),
        "WORLD_SIZE": str(task.num_tasks),
        "LOCAL_RANK": str(task.local_rank),
        "MASTER_ADDR": nodes[0] if len(nodes) > 1 else "127.0.0.1",
        "MASTER_PORT": str(port_of_job(number, restart_count())),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK") or "1",
        "PYTHONUNBUFFERED": "1",
    }


def hosts(task: Any) -> list[str]:
    """Names of the job's nodes, rank 0's first."""
    return list(task.hostnames) if task.num_nodes > 1 else [socket.gethostname()]


def restart_count() -> int:
    """How often Slurm has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def under_slurm() -> bool:
    """Whether this is a task of a Slurm job that submitit started."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and shutil.which("scontrol") is not None


def newest_checkpoint(run_dir: Path) -> str:
    """Name of the newest checkpoint; "none" if there is none."""
    try:
        return (run_dir / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        return "none"


def read_attempts(run_dir: Path) -> tuple[str, int]:
    """The checkpoint that the last life began at, and how many in a row did."""
    try:
        checkpoint, count = (run_dir / "attempts").read_text(encoding="utf-8").split()
        return checkpoint, int(count)
    except (OSError, ValueError):
        return "", 0


def requeue(job_id: str) -> None:
    """Asks Slurm to start the job again, which ends this process; patient with a controller that is away."""
    for _ in range(CONTROLLER_ATTEMPTS):
        shown = subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True, check=False).stdout
        if "JobState=" in shown and "JobState=RUNNING" not in shown:
            return  # Slurm is ending it, or another rank has asked already
        if shown and subprocess.run(["scontrol", "requeue", job_id], check=False).returncode == 0:
            time.sleep(REQUEUE_SECONDS)
            return
        time.sleep(CONTROLLER_PATIENCE)
