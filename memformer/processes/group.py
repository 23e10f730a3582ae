# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The processes of a run: who am I, which device is mine, and the process group."""

import dataclasses
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from data_pipeline.errors import UserError
from memformer.processes import collective_log, hosts, meeting, rendezvous, time_outs
from memformer.processes.environment import local_rank_of, prepare_environment
from memformer.processes.topology import Axis, Mesh, make_mesh

P = ParamSpec("P")
T = TypeVar("T")

_GLOO_LOSSES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Socket Timeout",
)
_NCCL_LOSSES = ("remote process exited", "ncclRemoteError", "ncclSystemError", "Connection closed", "timeout")


@dataclasses.dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    Attributes:
        rank: Number of this process, 0 .. size-1.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        device: Where its model lies.
        mesh: Its place in pipeline x data x segment x tensor; who has which lanes asks `mesh.data`, not `rank` and
            `size`.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    mesh: Mesh

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def arranged(self, tensor: int, pipeline: int, segment: int = 1, timeout_seconds: float = 1800) -> "World":
        """The same process in a grid; called by all processes.

        Args:
            tensor: Tensor-parallel processes.
            pipeline: Pipeline stages.
            segment: Processes that share the rollouts of the same lanes.
            timeout_seconds: How long a collective of the new groups may wait.
        """
        mesh = make_mesh(self.rank, self.size, tensor, pipeline, segment, timeout_seconds)
        return dataclasses.replace(self, mesh=mesh)


def choose_device(setting: str, local_rank: int) -> torch.device:
    """The device of a process for the setting `device` (auto, cpu or cuda).

    Raises:
        UserError: cuda is asked for and this process has no GPU.
    """
    count = torch.cuda.device_count() if setting != "cpu" else 0
    if setting == "cpu" or (setting == "auto" and count == 0):
        return torch.device("cpu")
    # With one GPU visible per task (Slurm's --gpus-per-task), every local rank finds its own as number 0.
    index = 0 if count == 1 and "SLURM_PROCID" in os.environ else local_rank
    if count == 0:
        raise UserError("device: is cuda, but there is no GPU here: set --device cpu, or look at memformer doctor")
    if index >= count:
        raise UserError(
            f"device: local rank {local_rank} has no GPU ({count} visible): start at most {count} processes a machine, "
            "or set --device cpu"
        )
    return torch.device("cuda", index)


def initialise(device_setting: str = "auto", timeout_seconds: float = 1800) -> World:
    """Joins the process group and returns this process's place in it. May be called again; it joins once.

    Args:
        device_setting: auto, cpu or cuda.
        timeout_seconds: How long a collective may wait for the other processes.
    """
    prepare_environment()
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = choose_device(device_setting, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        rendezvous.check()
        with meeting.everybody(timeout_seconds):
            join_deepspeed(device, timeout_seconds)
    return World(rank, size, local_rank, device, Mesh.of_data(rank, size))


def join_deepspeed(device: torch.device, timeout_seconds: float) -> None:
    """Imports DeepSpeed and initialises communication for the device: gloo on CPUs; NCCL on GPUs, and gloo beside."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    collective_log.install()
    # What DeepSpeed calls goes by a new name in torch 2.14; that is between the two of them.
    warnings.filterwarnings(
        "ignore",
        r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
        FutureWarning,
    )
    deepspeed = import_deepspeed()
    # DeepSpeed compiles a shared-memory all-reduce here that only its inference engine calls: most of a minute, a
    # compiler needed, and a lock left behind by a killed build that hangs every later start.
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    # Its Muon is compiled where it is defined, and every engine imports it: torch's inductor, a fifth of a start.
    vars(importlib.import_module("deepspeed.runtime.compiler"))["compile"] = lambda: compiled_when_called

    deepspeed.utils.logger.setLevel("ERROR")
    if device.type == "cuda":
        time_outs.keep_in_order(os.environ, timeout_seconds)
    with local_rank_of(device):  # it binds the group to the device of that number
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=timeout_seconds),
        )
    hosts.join(timeout_seconds)


def import_deepspeed() -> Any:
    """DeepSpeed, without the MLflow that its autotuner would import where there is one: two fifths of the time."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import then fails, which DeepSpeed expects
    try:
        return importlib.import_module("deepspeed")
    finally:
        if hidden:
            del sys.modules["mlflow"]


def compiled_when_called(function: Callable[P, T], **options: Any) -> Callable[P, T]:
    """`torch.compile` put off to the first call, since it imports the compiler: half a second to a second.

    Args:
        function: What to compile.
        options: As `torch.compile` takes them.
    """
    made: list[Callable[P, T]] = []

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        if not made:
            made.append(torch.compile(function, **options))
        return made[0](*arguments, **keywords)

    return call


def everyone() -> Axis:
    """All processes of the run, for tensors of their devices; this one alone before it has joined them."""
    return Axis(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Axis()


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor of the device over all processes, in place."""
    return everyone().sum(values)


def all_max(value: int) -> int:
    """The largest of an integer over all processes."""
    return all_max_each([value])[0]


# What follows is agreed on by the hosts (memformer/processes/hosts.py): no device is waited for.


def all_max_each(values: Sequence[int]) -> list[int]:
    """The largest over all processes of each of several integers, in one collective."""
    return [int(value) for value in hosts.everyone().max(torch.tensor(list(values))).tolist()]


def sum_of_numbers(value: float) -> float:
    """The sum of a number over all processes, in float64."""
    return float(hosts.everyone().sum(torch.tensor(value, dtype=torch.float64)))


def gather(value: Any) -> list[Any]:
    """A small picklable object of every process, by rank, on all processes."""
    return hosts.everyone().gather(value)


def from_main(value: Any) -> Any:
    """Rank 0's value of a small picklable object, on all processes."""
    shared, axis = [value], hosts.everyone()
    if axis.size > 1:
        dist.broadcast_object_list(shared, src=0, group=axis.group)
    return shared[0]


def barrier() -> None:
    """Waits for all processes, on the host."""
    axis = hosts.everyone()
    if axis.size > 1:
        dist.barrier(group=axis.group)


def lost_peer(error: BaseException) -> str | None:
    """What a collective said that failed because another process ended or cannot be reached; None: it is another error.

    gloo raises a plain RuntimeError, NCCL and the store errors of their own.
    """
    said = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return said
    if isinstance(error, dist.DistBackendError):
        return said if any(sign in str(error) for sign in _NCCL_LOSSES) else None
    if isinstance(error, RuntimeError) and "gloo" in said.lower():
        return next((sign for sign in _GLOO_LOSSES if sign.lower() in said.lower()), None)
    return None
