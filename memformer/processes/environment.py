# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The variables by which a process knows its place among those of a run; read without torch.

The contract is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). A task of a Slurm step that was
started by plain `srun` is told its place by Slurm, and where rank 0 is follows from the step. With neither, and in a
shell that somebody has opened in a job, the run is a single process.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from memformer.processes import flight_record
from memformer.processes.ports import free_port, port_of_job

if TYPE_CHECKING:
    import torch

HOME = "127.0.0.1"


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fills in torchrun's variables, from Slurm's or for a single process.

    Raises:
        UserError: RANK is set but another variable of the contract is missing, is no number, or does not fit it.
    """
    flight_record.switch_on(environment)
    if "RANK" not in environment:
        environment.update(_of_step(environment) if is_task_among_others(environment) else _alone())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not environment.get(name, "").isdecimal():
            found = repr(environment[name]) if name in environment else "not set"
            raise UserError(
                f"environment variable {name} is {found}: set it to a number, or start the run "
                "with memformer launch, torchrun or srun"
            )
    if not environment.get("MASTER_ADDR"):
        raise UserError("environment variable MASTER_ADDR is not set: set it to the address of rank 0's machine")
    if not 0 < int(environment["MASTER_PORT"]) < 2**16:
        raise UserError(
            f"environment variable MASTER_PORT is {environment['MASTER_PORT']}: set it to a port from 1 to 65535"
        )
    if int(environment["RANK"]) >= int(environment["WORLD_SIZE"]):
        raise UserError(
            f"environment variable RANK is {environment['RANK']}, but WORLD_SIZE is {environment['WORLD_SIZE']}: ranks "
            "go from 0 to WORLD_SIZE - 1"
        )


def is_task_among_others(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of a Slurm step, which all run the same command.

    SLURM_STEP_NUM_TASKS counts the step's tasks; SLURM_NTASKS may be what the job asked for, of which the shell of
    `salloc` is one. Of `srun --pty --ntasks 4 bash` only the first task's shell lives, and what is started in it is a
    process by itself; the task itself is not (SLURM_TASK_PID), nor is a task of an `srun` that was called from such a
    shell, to which the variables of the terminal are handed down, but not the terminal.
    """
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:
        return False  # no step: a batch script, or no Slurm
    if (environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1") == "1":
        return False
    first_at_a_terminal = environment["SLURM_PROCID"] == "0" and "SLURM_PTY_PORT" in environment
    task = environment.get("SLURM_TASK_PID")
    in_its_shell = task is None or (task != str(os.getpid()) and _has_terminal())
    return not (first_at_a_terminal and in_its_shell)


def first_host(nodes: str) -> str:
    """The first name of a Slurm list of nodes: gpu07 of `gpu[07-09,12],login1`."""
    head = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)  # up to the first comma that is not in brackets
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", head[0] if head else nodes)


def _alone() -> dict[str, str]:
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": HOME, "MASTER_PORT": str(free_port())}


def _of_step(environment: Mapping[str, str]) -> dict[str, str]:
    """The place of a task: address and port are what all tasks of the step find by themselves, unless they are set."""
    said = environment.get
    nodes = said("SLURM_STEP_NODELIST") or said("SLURM_JOB_NODELIST") or said("SLURM_NODELIST") or ""
    machines = said("SLURM_STEP_NUM_NODES") or said("SLURM_NNODES") or ""
    together = machines == "1" or nodes == first_host(nodes) != ""
    job, step, life = (_number(said(f"SLURM_{name}")) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": said("SLURM_STEP_NUM_TASKS") or said("SLURM_NTASKS") or "1",
        "LOCAL_RANK": said("SLURM_LOCALID", ""),
        "MASTER_ADDR": said("MASTER_ADDR") or (HOME if together else first_host(nodes)),
        "MASTER_PORT": said("MASTER_PORT") or str(port_of_job(job, life + step)),
    }


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def local_rank_of(device: "torch.device") -> Iterator[None]:
    """Inside, DeepSpeed takes the device of this process.

    It takes the GPU with the number LOCAL_RANK. Where each task of a Slurm job sees its own GPU alone
    (`--gpus-per-task`), that is number 0 on every local rank.
    """
    before = os.environ.get("LOCAL_RANK")
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)
    try:
        yield
    finally:
        if before is not None:
            os.environ["LOCAL_RANK"] = before
