# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Trains on several processes of this machine: `memformer train CONFIG` once a rank.

Each rank writes RUN_DIR/logs/rank-00000.log and so on; rank 0 is shown here too. Ctrl-C and SIGTERM, SIGUSR1, SIGUSR2
are passed on to every rank. Settings of the configuration may be given as --section.field VALUE.

exit codes: 0 done; 2 bad usage; 75 saved after a preemption, the same command goes on; 130 interrupted; otherwise the
code of the first rank that failed (128 + n for signal n)."""

import argparse
import functools
import os
import shlex
import sys

from data_pipeline.errors import UserError
from launch.local import launch_processes, rank_environment, say
from launch.machine import available_cores, visible_gpus
from memformer.run.directory import RunDirectory

CPU_PROCESSES = 2  # without GPUs a run is a trial: enough to have ranks that talk, few enough for any machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `memformer launch local`."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="the run's configuration")
    parser.add_argument(
        "--nproc",
        type=positive,
        metavar="N",
        default=argparse.SUPPRESS,
        help="number of processes (default: one for each visible GPU; where there is none, "
        f"{CPU_PROCESSES}, or 1 on a single core)",
    )
    parser.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        default=argparse.SUPPRESS,
        help="where to go on from, as for `memformer train` (default: auto)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="after a signal, how many seconds the ranks have to save and leave before they are killed",
    )
    parser.add_argument(
        "--no-bind-cores",
        action="store_true",
        help="let the ranks of a run without GPUs wander over all CPU cores instead of giving each its own "
        "(runs on GPUs are never bound)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be started, and start nothing")


def run(arguments: argparse.Namespace) -> int:
    """Checks the configuration, then starts the ranks; returns the exit code of the whole."""
    from launch.acceptance import check_resume, open_data
    from memformer.config.schema import load_config  # pydantic takes a moment, and --help needs none of it
    from memformer.config.topology import replicas_of

    config = load_config(arguments.config, arguments.overrides)
    gpus = 0 if config.device == "cpu" else visible_gpus()
    nproc = getattr(arguments, "nproc", None) or gpus or min(CPU_PROCESSES, len(available_cores()))
    if 0 < gpus < nproc:
        raise UserError(
            f"--nproc {nproc} asks for more processes than there are visible GPUs ({gpus}); lower it, or "
            "train on the CPU with --device cpu"
        )
    replicas_of(config, nproc, f"--nproc {nproc}" + ("" if hasattr(arguments, "nproc") else " (the default here)"))
    resume = ["--resume", arguments.resume] if hasattr(arguments, "resume") else []
    command = [sys.executable, "-m", "launch.cli", "train", arguments.config, *resume, *arguments.overrides]
    run = RunDirectory(config.run_dir)
    log_dir = run.logs
    if arguments.dry_run:
        for rank in range(nproc):
            variables = rank_environment(rank, nproc, port=0) | {"MASTER_PORT": "PORT"}
            print(" ".join(f"{name}={value}" for name, value in variables.items()), shlex.join(command))
        print(f"logs: {log_dir}/rank-00000.log ... rank-{nproc - 1:05d}.log")
        return 0
    port = os.environ.get("MASTER_PORT", "")
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"environment variable MASTER_PORT is {port}: set it to a port from 1 to 65535, or unset it")
    before = refuse_busy(run)
    check_resume(config, getattr(arguments, "resume", "auto"), open_data(config))
    return launch_processes(
        command,
        nproc,
        log_dir,
        bind_cores=gpus == 0 and not arguments.no_bind_cores,
        grace_seconds=arguments.grace_seconds,
        master_port=int(port) if port else None,
        failed=functools.partial(tell_failure, run, before),
        refused=lambda: last_life(run) == before,
    )


def refuse_busy(run: RunDirectory) -> int:
    """Refuses a run directory that cannot be written, or in which a run trains or may train, before it is touched.

    Returns:
        The number of the last life in it; 0: none has begun.

    Raises:
        UserError: So it is.
    """
    from launch import slurm_client
    from memformer.run.lock import refuse_held

    run.refuse_unwritable()
    entry = refuse_held(run, slurm_client.has_job_ended)
    return 0 if entry is None else entry.number


def last_life(run: RunDirectory) -> int:
    """The number of the last life in a run directory; 0: none has begun."""
    from memformer.run.lock import newest

    entry = newest(run)
    return 0 if entry is None else entry.number


def tell_failure(run: RunDirectory, before: int, rank: int, reason: str) -> None:
    """The launcher knows what came first; the ranks that went down with it could not say. And what to do next."""
    from memformer.checkpoints.directory import candidates
    from memformer.run.lock import HELD, is_living, newest

    entry = newest(run)
    # Nothing of a life that was refused and so has not begun, or that another one has followed already.
    if entry is not None and entry.number > before and not (entry.how == HELD and is_living(entry)[0]):
        run.event("failure", reason=reason, rank=rank)
    checkpoint = next((path.name for path in candidates(run) if (path / "manifest.json").exists()), None)
    goes_on = (
        f"goes on from checkpoint {checkpoint}" if checkpoint else "starts afresh, for no checkpoint was saved yet"
    )
    say(f"when the cause is mended, the same command {goes_on}")


def positive(text: str) -> int:
    """Reads a whole number of at least 1; argparse names the option and the value where it is none."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
