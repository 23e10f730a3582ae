# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Starts training runs through submitit: on a Slurm cluster, as local processes, or in this process to debug.

Several configurations are a sweep: on Slurm, one array with a run each. Jobs save, requeue and resume as those of
memformer launch slurm do. Settings of the configurations may be given as --section.field VALUE and hold for all.

exit codes: 0 submitted, or finished when it was waited for; 1 failed; 2 bad usage."""

import argparse
import os
import secrets
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from launch.slurm_options import SlurmOptions, add_options, read_options, time_seconds

ENDLESS = 1_000_000  # submitit's own limit of requeues after a time-out; our limit is on failures without progress
DEFAULT_MINUTES = 60 * 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `memformer launch submitit`."""
    parser.add_argument("configs", metavar="CONFIG.yaml", nargs="+", help="the configuration of each run")
    parser.add_argument(
        "--executor",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="slurm: jobs of a cluster; local: processes of this machine; debug: in this very process",
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait until the runs have ended (local and debug always do)"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds between two looks at jobs that are waited for",
    )
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Checks the configurations, submits, and waits if asked to."""
    from launch import slurm_client
    from launch.acceptance import check_resume, open_data, open_data_if_here
    from launch.commands.launch_local import refuse_busy
    from launch.commands.launch_slurm import describe_submission, refuse_second_job
    from launch.snapshot import snapshot_code, write_config
    from memformer.config.schema import load_config
    from memformer.config.topology import replicas_of
    from memformer.run.directory import RunDirectory

    options = read_options(arguments)
    if arguments.executor != "slurm" and options.nodes > 1:
        raise UserError(f"--nodes {options.nodes}: --executor {arguments.executor} is one machine; leave it out")
    configs = [load_config(path, arguments.overrides) for path in arguments.configs]
    directories = [Path(os.path.abspath(config.run_dir)) for config in configs]
    if twice := {str(directory) for directory in directories if directories.count(directory) > 1}:
        raise UserError(f"run_dir: {', '.join(sorted(twice))} is that of several runs; give each configuration its own")
    for config, directory in zip(configs, directories, strict=True):
        if arguments.executor == "debug":
            replicas_of(config, 1, "--executor debug (1 process)")
        else:
            slurm_client.refuse_unnameable(directory, "%\\\n")  # submitit itself replaces %j and the like in paths
            replicas_of(config, options.tasks, options.tasks_said)
        if arguments.executor == "slurm":
            slurm_client.refuse_without_slurm()
            refuse_second_job(directory, slurm_client)
        refuse_busy(RunDirectory(directory))
        far = arguments.executor == "slurm"  # a machine that only submits may not see the data
        check_resume(config, "auto", open_data_if_here(config) if far else open_data(config))
    new = [directory for directory in directories if not directory.exists()]
    functions = []
    for config, directory in zip(configs, directories, strict=True):
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        write_config(config.model_copy(update={"run_dir": str(directory)}), directory / "submit.yaml")
        snapshot_code(directory / "code")
        functions.append(training_job(directory, options, shown=arguments.executor == "debug"))
    if arguments.executor == "debug":
        return train_here(functions)
    name = f"{directories[0].name}-{secrets.token_hex(4)}"
    executor = make_executor(arguments.executor, directories[0], name, options)
    try:
        jobs = submit_once(executor, functions, name)
    except slurm_client.SubmissionRefused:
        for directory in new:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    for job, directory in zip(jobs, directories, strict=True):
        describe_submission(directory, name, [job.job_id], options.tasks)
        print(f"job     {job.job_id} ({name})")
        print(f"logs    {directory}/logs/rank-00000.log, ..., {directory}/submitit")
        print(f"follow  memformer status {directory} --follow")
        print(f"cancel  {'scancel' if arguments.executor == 'slurm' else 'kill'} {job.job_id}", flush=True)
    if arguments.executor == "slurm":
        return wait_for_slurm(jobs, directories, arguments.interval) if arguments.wait else 0
    return wait_for_local(jobs, directories)


def train_here(functions: list[Any]) -> int:
    """Runs one after another in this process, as a task of submitit's debug executor sees itself.

    The executor itself would catch a failure in a debugger, at a prompt, and show nothing of a run that is well.
    """
    from launch.submitit_job import TrainingFailed

    os.environ |= {"SUBMITIT_EXECUTOR": "debug", "SUBMITIT_DEBUG_JOB_ID": f"DEBUG_{os.getpid()}"}
    for function in functions:
        try:
            function()
        except TrainingFailed as failure:
            print(f"launch: {failure}", file=sys.stderr)
            return 1
    return 0


def training_job(directory: Path, options: SlurmOptions, shown: bool = False) -> Any:
    """What submitit runs in each task; `shown`: with the rank's output on stdout."""
    from launch.snapshot import snapshot_command
    from launch.submitit_job import TrainingJob

    train = ["train", str(directory / "submit.yaml"), "--resume", "auto"]
    command = [*snapshot_command(directory / "code", sys.executable), *train]
    return TrainingJob(command, directory, options.max_failures, max(10, options.warning_seconds - 30), shown)


def make_executor(kind: str, directory: Path, name: str, options: SlurmOptions) -> Any:
    """The executor with the job's resources."""
    import submitit

    try:
        executor = submitit.AutoExecutor(
            folder=directory / "submitit" / "%j", cluster=kind, slurm_max_num_timeout=ENDLESS
        )
    except RuntimeError as error:
        raise UserError(f"--executor {kind}: {error}; use --executor local on a machine without Slurm") from None
    minutes = DEFAULT_MINUTES if options.time is None else int(min(time_seconds(options.time) // 60, 10**6))
    executor.update_parameters(
        name=name,
        nodes=options.nodes,
        tasks_per_node=options.tasks_per_node,
        timeout_min=max(1, minutes),
        **({"cpus_per_task": options.cpus_per_task} if options.cpus_per_task else {}),
        **({"gpus_per_node": options.gpus_per_node} if options.gpus_per_node else {}),
        **(
            {"slurm_" + key: value for key, value in slurm_parameters(options, directory).items()}
            if kind == "slurm"
            else {}
        ),
    )
    return executor


def slurm_parameters(options: SlurmOptions, directory: Path) -> dict[str, Any]:
    """What of the options is Slurm's alone, as submitit names it."""
    further: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes"}
    for key, value in (("mem", options.memory), ("reservation", options.reservation)):
        if value is not None:
            further[key] = value
    for line in options.sbatch_lines:
        key, equals, value = line.lstrip("-").partition("=")
        further[key] = value if equals else True
    container = []
    if options.container_image:
        container.append(f"--container-image={options.container_image}")
    if options.container_mounts:
        container.append(f"--container-mounts={options.container_mounts}")
    named = ("partition", "account", "qos", "constraint", "dependency")
    return {
        **{key: getattr(options, key) for key in named if getattr(options, key) is not None},
        "additional_parameters": further,
        # submitit starts itself by `python -m`, which would put the directory of the submission before the copy.
        "setup": [
            f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(directory / 'code'))}",
            # As in slurm/pretrain.sbatch: srun inherits no cores a task since Slurm 22.05; neighbours lie side by side.
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} SLURM_DISTRIBUTION=${SLURM_DISTRIBUTION:-block:block}",
            *options.set_up,
        ],
        "signal_delay_s": options.warning_seconds,
        "srun_args": ["--kill-on-bad-exit=1", "--wait=120", *container],
        "stderr_to_stdout": True,
    }


def submit_once(executor: Any, functions: list[Any], name: str) -> list[Any]:
    """Submits the runs, as an array if there are several; a job that Slurm took without saying so is cancelled first.

    Raises:
        SubmissionRefused: Slurm refused.
        UserError: It did not answer.
    """
    from launch import slurm_client

    said = ""
    for _ in range(slurm_client.ATTEMPTS):
        try:
            if len(functions) == 1:
                return [executor.submit(functions[0])]
            with executor.batch():
                jobs = [executor.submit(function) for function in functions]
            return jobs
        except Exception as error:
            if type(error).__name__ not in ("FailedSubmissionError", "FailedJobError"):  # the second: sbatch's own word
                raise
            said = " ".join(str(error).split())[-300:]
            if not slurm_client.unclear(said):
                raise slurm_client.SubmissionRefused(f"sbatch refused: {said}", exit_code=1) from None
            time.sleep(slurm_client.PATIENCE_SECONDS)
            # Without submitit's record of it, such a job would wait for its function in vain.
            if not slurm_client.cancel(name):
                break
    raise UserError(
        f"Slurm did not answer ({said}); nothing is known to be submitted: look with squeue --name={name} and cancel "
        "what is there before trying again",
        exit_code=1,
    )


def wait_for_slurm(jobs: list[Any], directories: list[Path], interval: float) -> int:
    """Waits until the jobs have left the queue; no accounting is asked, which a job without a result would hang on."""
    from launch import slurm_client
    from launch.commands.launch_slurm import finished_step

    ids = [str(job.job_id) for job in jobs]
    ended = 0
    while ended < 3:  # a job that is being requeued may look ended for a moment: ask again
        time.sleep(interval)
        if all(finished_step(directory) for directory in directories):
            return 0
        # While Slurm does not answer, the jobs run on for all that is known.
        ended = ended + 1 if all(map(slurm_client.has_ended, slurm_client.states(ids).values())) else 0
    for job, directory in zip(ids, directories, strict=True):
        if not finished_step(directory):
            print(f"launch: job {job} ended, but {directory} has not finished: see its logs", file=sys.stderr)
    return 1


def wait_for_local(jobs: list[Any], directories: list[Path]) -> int:
    """Waits for processes of this machine; Ctrl-C ends them."""
    try:
        while not all(job.done() for job in jobs):
            time.sleep(0.2)
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        raise
    from launch.status import read_status

    failed = False
    for job, directory in zip(jobs, directories, strict=True):
        if job.exception() is not None:
            failed = True
            print(f"launch: {read_status(directory).failure or f'failed: see {directory}/submitit'}", file=sys.stderr)
    return 1 if failed else 0
