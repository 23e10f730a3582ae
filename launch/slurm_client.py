# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Talks to Slurm by its commands: submits once, whatever the controller does meanwhile, and asks about jobs.

Only `sbatch`, `squeue` and `scontrol` are used, in forms that are the same in all versions and need no accounting.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError

COMMAND_SECONDS = 60.0  # a controller that is busy or away: Slurm's own time-outs are shorter
LOOKUPS = 6  # after an unclear answer: how often the queue is asked before sbatch is tried again
PATIENCE_SECONDS = 5.0
ATTEMPTS = 5


def submit(script: Path, name: str, options: Sequence[str] = (), *, patience: float = PATIENCE_SECONDS) -> str:
    """Submits a script once and returns the job's id.

    A controller may accept a job and not say so in time. After an unclear failure the queue is therefore searched for
    the job's name before anything is submitted again.

    Args:
        script: The batch script.
        name: Name of the job, unique among all jobs ever.
        options: Further options of sbatch.
        patience: Seconds between two tries.

    Raises:
        UserError: Slurm refused the job, or was not to be reached.
    """
    complaint = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            for _ in range(LOOKUPS):
                known = find(name)
                if known is None:
                    time.sleep(patience)
                    continue
                if known:
                    return known[0]
                break
        code, output, complaint = _run("sbatch", "--parsable", f"--job-name={name}", *options, str(script))
        if code == 0 and (match := re.match(r"\d+", output.splitlines()[-1] if output else "")):
            return match[0]
        if not unclear(complaint):
            raise UserError(f"sbatch refused {script}: {_one_line(complaint)}", exit_code=1)
        print(f"launch: sbatch: {_one_line(complaint)}; looking whether the job exists", file=sys.stderr, flush=True)
        time.sleep(patience)
    raise UserError(
        f"Slurm did not answer ({_one_line(complaint)}); nothing is known to be submitted: look with "
        f"squeue --name={name} before trying again",
        exit_code=1,
    )


def find(name: str) -> list[str] | None:
    """Ids of the queued or running jobs of that name; None when the controller does not answer."""
    code, output, _ = _run("squeue", "--noheader", f"--name={name}", "--format=%F")
    return sorted(set(output.split())) if code == 0 else None


def states(job_ids: Iterable[str]) -> dict[str, str]:
    """The state of each job that Slurm still knows (PENDING, RUNNING, COMPLETED, ...); an array's by its own id."""
    found: dict[str, str] = {}
    for job_id in job_ids:
        code, output, _ = _run("scontrol", "--oneliner", "show", "job", job_id)
        shown = re.findall(r"JobState=(\S+)", output) if code == 0 else []
        for state in shown:  # of an array, the liveliest
            if found.get(job_id) not in ("RUNNING", "PENDING"):
                found[job_id] = state
    return found


def alive(job_ids: Iterable[str]) -> list[str]:
    """Those of the jobs that wait, run or are being ended."""
    lively = {"PENDING", "RUNNING", "REQUEUED", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUE_HOLD"}
    return [job for job, state in states(job_ids).items() if state in lively]


def cancel(name: str) -> None:
    """Cancels the jobs of that name."""
    for job in find(name) or []:
        _run("scancel", job)


def unclear(complaint: str) -> bool:
    """Whether a failed sbatch may have submitted the job, or may succeed when it is tried again."""
    signs = ("timed out", "unable to contact", "connection", "temporarily", "communication", "socket", "zero bytes")
    return any(sign in complaint.lower() for sign in signs)


def _one_line(text: str) -> str:
    return " ".join(text.replace("sbatch: error: ", "").split()) or "no reason given"


def _run(*command: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command of Slurm.

    Raises:
        UserError: The command does not exist.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: there is no such command: run this on a login node of a Slurm cluster, or use "
            "memformer launch local"
        ) from None
    except subprocess.TimeoutExpired:
        return 1, "", f"{command[0]} timed out after {COMMAND_SECONDS:g} s"
    return done.returncode, done.stdout.strip(), done.stderr.strip()
