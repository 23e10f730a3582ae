# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Train a Memformer, or a memory for a pretrained model.

One process by itself, or one of several started by torchrun, srun or memformer launch.

SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C or a file named stop in run_dir: the run saves after its step and leaves.

exit codes: 0 done; 1 failed; 2 bad usage; 75 saved after being asked to stop, the same command goes on; 130 the same
after Ctrl-C."""

import argparse
import os
import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager

from launch.outputs import make_outputs_patient
from launch.overrides import SettingsParser
from memformer.config.schema import Config, load_config
from memformer.run import exit_codes
from memformer.run.stop_requests import hold_back

Parser = SettingsParser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration file, what to resume from; settings follow as --section.field VALUE."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: from the newest complete checkpoint of run_dir, if any; never: refuse a run_dir that holds a run; "
        "or the path of a run or checkpoint, or the address of a mirror (checkpoint.mirror) or of a checkpoint in one",
    )


def run(arguments: argparse.Namespace) -> int:
    """Checks settings, processes and data first; torch and DeepSpeed are imported only for what holds."""
    with leaving_at_a_key_press():
        config = load_config(arguments.config, arguments.overrides)
        hold_back()
        check(config, arguments.resume)
        from memformer.training.trainer import train

    make_outputs_patient()
    return train(config, arguments.resume)


@contextmanager
def leaving_at_a_key_press() -> Iterator[None]:
    """Ctrl-C ends the process with one line, also inside an import, which would turn it into something else."""

    def leave(number: int, frame: types.FrameType | None) -> None:
        os.write(2, b"memformer train: interrupted before the run began\n")
        os._exit(exit_codes.INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a shell starts background jobs with it ignored
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check(config: Config, resume: str) -> None:
    """What `train` refuses as well, but seconds later, after its imports.

    Raises:
        UserError: The environment, the number of processes, the data sets or the checkpoint do not fit, or run_dir is
            in use.
    """
    from launch import slurm_client
    from launch.acceptance import check_resume, open_data
    from memformer.config.topology import replicas_of
    from memformer.processes.environment import prepare_environment
    from memformer.run.directory import RunDirectory
    from memformer.run.lock import refuse_held

    prepare_environment()
    data = open_data(config)
    replicas_of(config, int(os.environ["WORLD_SIZE"]))
    run = RunDirectory(config.run_dir)
    run.refuse_unwritable()
    if os.environ["RANK"] == "0":
        refuse_held(run, slurm_client.has_job_ended)
    if os.environ["WORLD_SIZE"] == "1":  # of several, one looks and tells the others, once they have met
        check_resume(config, resume, data)
