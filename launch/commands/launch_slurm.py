# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Submits a training run to Slurm: one job on several nodes that goes on by itself until the run is done.

Writes RUN_DIR/submit.sbatch, a script that can be read and submitted again by hand, with a copy of the code
(RUN_DIR/code) and of the configuration (RUN_DIR/submit.yaml). The ranks are told to save before the time limit and at
a preemption; the job then requeues itself, also after the failure of a node or a rank, until the run has finished or
has failed several times without progress. Settings of the configuration may be given as --section.field VALUE.

exit codes: 0 submitted, or the run had finished already; 1 Slurm refused or did not answer; 2 bad usage."""

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from launch.commands.launch_local import positive, refuse_busy
from launch.slurm_options import SlurmOptions, add_options, read_options

DESCRIPTION_FILE = "submission.json"  # in the run directory: what was submitted last


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `memformer launch slurm`."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="the run's configuration")
    add_options(parser)
    parser.add_argument(
        "--array",
        metavar="INDICES",
        help="several runs, such as 0-3 or 0-9%%2: each in RUN_DIR/array-INDEX, with {array} in a setting's value "
        "replaced by its index, as in --seed {array}",
    )
    parser.add_argument(
        "--time-chain",
        type=positive,
        metavar="K",
        help="submit K jobs, each after the last, instead of one that requeues itself (for sites that forbid that); "
        "jobs after the run has finished end at once",
    )
    parser.add_argument("--preflight", action="store_true", help="first run memformer doctor on all nodes of the job")
    parser.add_argument("--job-name", metavar="NAME", help="begin of the job's name (default: that of the run)")
    parser.add_argument(
        "--python",
        metavar="PROGRAM",
        default=argparse.SUPPRESS,
        help="Python on the nodes, with the project's packages (default: this one; python3 in a container)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")


def run(arguments: argparse.Namespace) -> int:
    """Checks everything, writes the script, submits it, tells what to type next."""
    from launch import slurm_client
    from launch.acceptance import check_resume, open_data_if_here
    from launch.snapshot import read_settings, snapshot_code, write_config
    from memformer.config.topology import replicas_of
    from memformer.run.directory import RunDirectory

    options = read_options(arguments)
    if arguments.time_chain and (options.array or options.dependency):
        raise UserError("--time-chain: does not go with --array or --dependency; leave it out")
    config, varying = read_settings(arguments.config, arguments.overrides, options.array)
    replicas_of(config, options.tasks, options.tasks_said)
    directory = Path(os.path.abspath(config.run_dir))
    slurm_client.refuse_unnameable(directory)
    prefix = re.sub(r"[^A-Za-z0-9._-]", "-", arguments.job_name or directory.name)
    name = f"{prefix}-{secrets.token_hex(4)}"
    text = job_script(arguments, options, directory, name, config.training.max_steps, varying)
    if arguments.dry_run:
        print(text, end="")
        print(
            f"launch: a dry run: nothing was submitted, nor written into {directory}; memformer status knows the run "
            "once it is submitted, without --dry-run",
            file=sys.stderr,
        )
        return 0
    RunDirectory(directory).refuse_unwritable()
    if finished_step(directory) >= config.training.max_steps and not options.array:
        print(f"the run {directory} has finished its {config.training.max_steps} steps: nothing to do")
        return 0
    slurm_client.refuse_without_slurm()
    refuse_second_job(directory, slurm_client)
    for each in (directory, *sorted(directory.glob("array-*"))):
        refuse_busy(RunDirectory(each))
    if not options.array:
        check_resume(config, "auto", open_data_if_here(config))
    is_new, jobs = not directory.exists(), list[str]()
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        write_config(config.model_copy(update={"run_dir": str(directory)}), directory / "submit.yaml")
        copied = snapshot_code(directory / "code")
        script = directory / "submit.sbatch"
        script.write_text(text, encoding="utf-8")
        script.chmod(script.stat().st_mode | (script.stat().st_mode & 0o444) >> 2)  # to be run by whoever may read it
        for link in range(arguments.time_chain or 1):
            after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
            jobs.append(slurm_client.submit(script, f"{name}-{link + 1}" if arguments.time_chain else name, after))
            describe_submission(directory, name, jobs, options.tasks)
    except (OSError, slurm_client.SubmissionRefused) as error:
        if is_new and not jobs:
            shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, OSError):
            submitted = f"job {', '.join(jobs)} is submitted" if jobs else "nothing was submitted"
            raise UserError(f"{error.filename or directory}: {error.strerror}; {submitted}", exit_code=1) from None
        raise
    tell(directory, name, jobs, copied, options.array)
    return 0


def job_script(
    arguments: argparse.Namespace, options: SlurmOptions, directory: Path, name: str, last_step: int, varying: list[str]
) -> str:
    """The text of the job script."""
    from launch.slurm_script import TEMPLATES, container_flags, header, render
    from launch.snapshot import snapshot_command

    here = Path.cwd()
    python = getattr(arguments, "python", "python3" if options.container_image else sys.executable)
    requeue = arguments.time_chain is None
    settings: dict[str, Any] = {
        "MEMFORMER": snapshot_command(directory / "code", python),
        "TRAIN": [str(directory / "submit.yaml"), *varying],
        "RUN_DIR": str(directory),
        "LAST_STEP": last_step,
        "REQUEUE": "yes" if requeue else "no",
        "GRACE_SECONDS": options.warning_seconds,
        "MAX_FAILURES": options.max_failures,
        "PREFLIGHT": "yes" if arguments.preflight else "no",
        "CONTAINER": container_flags(options, here),
    }
    comment = (
        f"The run {directory}, written by memformer launch slurm on {datetime.now():%Y-%m-%d}.\n"
        f"Submit it again to go on: sbatch {shlex.quote(str(directory / 'submit.sbatch'))}"
    )
    template = (TEMPLATES / "pretrain.sbatch").read_text(encoding="utf-8")
    return render(
        template, comment, header(options, name, here, directory / "logs", requeue=requeue), settings, options.set_up
    )


def finished_step(directory: Path) -> int:
    """The step at which the run said that it had finished; 0 if the last that it said was something else."""
    from memformer.run import jsonl

    said = jsonl.last(directory / "events.jsonl", lambda event: event.get("event") in ("start", "resume", "end"))
    return int(said["step"]) if said is not None and said["event"] == "end" else 0


def refuse_second_job(directory: Path, client: Any) -> None:
    """Two jobs in one run directory would write over one another: where it is not known that there is none, refuse.

    Raises:
        UserError: A job of this run waits or runs, or may do so.
    """
    states = client.states(submitted_jobs(directory / DESCRIPTION_FILE))
    if silent := [job for job, state in states.items() if state == client.UNKNOWN]:
        raise UserError(
            f"{directory}: Slurm does not answer whether job {', '.join(silent)} of this run has ended: submit again "
            "when scontrol ping says that the controller is up",
            exit_code=1,
        )
    if queued := [job for job, state in states.items() if not client.has_ended(state)]:
        raise UserError(
            f"{directory}: job {', '.join(queued)} of this run waits or runs: wait for it, or scancel {queued[0]}"
        )


def submitted_jobs(path: Path) -> list[str]:
    """The jobs that a description names; none where there is no such file.

    Raises:
        UserError: The file cannot be read or names no jobs: a job of this run may wait or run all the same.
    """
    try:
        jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
        if not isinstance(jobs, list) or not all(isinstance(job, str) for job in jobs):
            raise ValueError(jobs)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError(
            f"{path}: cannot be read ({why}), so that a job of this run may wait or run unknown: look with squeue, "
            "then delete the file"
        ) from None
    return jobs


def describe_submission(directory: Path, name: str, jobs: list[str], tasks: int) -> None:
    """Writes what was submitted, for `memformer status` and for the next submission."""
    from memformer.run.directory import write_atomically

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"time": now, "name": name, "jobs": jobs, "tasks": tasks}
    write_atomically(directory / DESCRIPTION_FILE, json.dumps(record) + "\n")


def tell(directory: Path, name: str, jobs: list[str], copied: str, array: str | None) -> None:
    """What was done, and the commands to follow, cancel and go on."""
    place, job = shlex.quote(str(directory)), jobs[0]
    rows = {
        "job": f"{', '.join(jobs)} ({name}{f', array {array}' if array else ''})",
        "code": f"{directory}/code: {copied}",
        "script": f"{directory}/submit.sbatch",
        "logs": f"{directory}/logs: slurm-{job}{'_INDEX' if array else ''}.out"
        + ("" if array else ", rank-00000.log, ..."),
        "follow": f"memformer status {place}{'/array-INDEX' if array else ''} --follow",
        "cancel": f"scancel {' '.join(jobs)}",
        "resume": f"sbatch {place}/submit.sbatch   (it resumes by itself; this is for after a cancellation)",
    }
    for title, what in rows.items():
        print(f"{title:<8}{what}")
