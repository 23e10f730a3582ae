# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Talks to Slurm by its commands: submits once, whatever the controller does meanwhile, and asks about jobs.

Only `sbatch`, `squeue` and `scontrol` are used, in forms that are the same in all versions and need no accounting.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from memformer.run.lock import Holder

COMMAND_SECONDS = 60.0  # a controller that is busy or away: Slurm's own time-outs are shorter
LOOKUPS = 6  # after an unclear answer: how often the queue is asked before sbatch is tried again
PATIENCE_SECONDS = 5.0
ATTEMPTS = 5
GONE = "GONE"
"""Slurm says that it knows no such job, or no longer."""
UNKNOWN = "UNKNOWN"
"""Slurm did not answer: the job may be in any state."""
ENDED = frozenset(
    "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED".split()
)
"""States that nothing follows. A state that is not among these may still run, also one that a later Slurm adds."""


class SubmissionRefused(UserError):
    """Slurm has said that it does not take a job."""


def submit(script: Path, name: str, options: Sequence[str] = (), *, patience: float = PATIENCE_SECONDS) -> str:
    """Submits a script once and returns the job's id.

    A controller may accept a job and not say so in time. After an unclear failure the queue is therefore searched for
    the job's name before anything is submitted again; where that search is not answered, nothing is.

    Args:
        script: The batch script.
        name: Name of the job, unique among all jobs ever.
        options: Further options of sbatch.
        patience: Seconds between two tries.

    Raises:
        SubmissionRefused: Slurm refused the job.
        UserError: Slurm was not to be reached: the job may wait all the same.
    """
    complaint = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            known = find_patiently(name, patience)
            if known is None:
                break
            if known:
                return known[0]
        code, output, complaint = _run("sbatch", "--parsable", f"--job-name={name}", *options, str(script))
        if code == 0 and (match := re.match(r"\d+", output.splitlines()[-1] if output else "")):
            return match[0]
        if not unclear(complaint):
            raise SubmissionRefused(f"sbatch refused {script}: {_one_line(complaint)}", exit_code=1)
        print(f"launch: sbatch: {_one_line(complaint)}; looking whether the job exists", file=sys.stderr, flush=True)
        time.sleep(patience)
    raise UserError(
        f"Slurm did not answer ({_one_line(complaint)}); nothing is known to be submitted: look with "
        f"squeue --name={name} before trying again",
        exit_code=1,
    )


def find(name: str) -> list[str] | None:
    """Ids of the jobs of that name, those that have just ended too; None when the controller does not answer."""
    code, output, _ = _run("squeue", "--noheader", f"--name={name}", "--format=%F", "--states=all")
    return sorted(set(output.split())) if code == 0 else None


def find_patiently(name: str, patience: float = PATIENCE_SECONDS) -> list[str] | None:
    """As `find`, asked again while the controller does not answer; None when it still does not after `LOOKUPS`."""
    for attempt in range(LOOKUPS):
        if attempt:
            time.sleep(patience)
        known = find(name)
        if known is not None:
            return known
    return None


def states(job_ids: Iterable[str]) -> dict[str, str]:
    """The state of each job: what Slurm says (PENDING, RUNNING, COMPLETED, ...), `GONE`, or `UNKNOWN`.

    An array is asked for by its own id and has the state of a task that has not ended, as long as there is one.
    """
    found: dict[str, str] = {}
    for job_id in job_ids:
        code, output, complaint = _run("scontrol", "--oneliner", "show", "job", job_id)
        shown = re.findall(r"JobState=(\S+)", output) if code == 0 else []
        if shown:
            found[job_id] = next((state for state in shown if not has_ended(state)), shown[0])
        else:
            found[job_id] = GONE if "invalid job id" in complaint.lower() else UNKNOWN
    return found


def has_ended(state: str) -> bool:
    """Whether nothing follows a state; not so where it is not known."""
    return state == GONE or ENDED.issuperset(state.split(","))


def has_job_ended(holder: Holder) -> bool | None:
    """Whether the Slurm job that holds a run's lock has ended; None where Slurm does not say."""
    try:
        # Clusters that share a file system count their jobs each by itself.
        if holder.job is None or (holder.cluster and holder.cluster != _cluster()):
            return None
        state = states([holder.job])[holder.job]
    except UserError:  # there is no Slurm here
        return None
    return None if state == UNKNOWN else has_ended(state)


def _cluster() -> str | None:
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _run("scontrol", "show", "config")[1], re.M)
    return found[1] if found else None


def refuse_without_slurm() -> None:
    """Refuses before anything is made where there is no Slurm to submit to.

    Raises:
        UserError: There is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise _no_such_command("sbatch")


def refuse_unnameable(directory: Path, signs: str = "\\\n") -> None:
    """Refuses a run directory with a sign in its name that Slurm would not read as itself.

    Args:
        directory: The run directory.
        signs: Which they are: by a backslash, Slurm takes no pattern in the name of a log for one.

    Raises:
        UserError: There is one.
    """
    if sign := next((sign for sign in signs if sign in str(directory)), None):
        raise UserError(f"run_dir: {str(directory)!r} holds {sign!r}, which jobs cannot have there: choose another")


def _no_such_command(name: str) -> UserError:
    return UserError(
        f"{name}: there is no such command: run this on a login node of a Slurm cluster, or use memformer launch local"
    )


def cancel(name: str, patience: float = PATIENCE_SECONDS) -> bool:
    """Cancels the jobs of that name; False where it is not known whether there are any, or they could not be."""
    known = find_patiently(name, patience)
    return known is not None and all(_run("scancel", job)[0] == 0 for job in known)


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
        raise _no_such_command(command[0]) from None
    except subprocess.TimeoutExpired:
        return 1, "", f"{command[0]} timed out after {COMMAND_SECONDS:g} s"
    return done.returncode, done.stdout.strip(), done.stderr.strip()
