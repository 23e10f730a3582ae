# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The processes of a run as a grid, pipeline x data x segment x tensor, and this process's place in it.

Tensor ranks are neighbours, since they talk in every layer; then come the segment ranks, which share the rollouts of
the same lanes; then the data ranks; pipeline stages lie farthest apart, since they talk least. Processes that share
each layer, or the layers, together hold one whole model, a **replica**. Those of one data rank read the same lanes, and
only one of them, which speaks for them, writes what is written once a lane.

    pipeline 2, data 2, tensor 2:     stage 0: (0 1) (2 3)   stage 1: (4 5) (6 7)     replica 0 is 0 1 4 5
    data 2, segment 2, tensor 2:      lanes of data rank 0: (0 1) (2 3)   of 1: (4 5) (6 7)     four replicas of two
"""

import dataclasses
import functools
import logging
import math
import socket
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Axis:
    """This process among those that share all coordinates with it but one.

    Attributes:
        rank: Its number among them, 0 .. size-1.
        size: How many they are.
        group: Their process group; None if it is alone, or if they are all processes of the run.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over these processes, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of each number of a tensor over these processes, in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def broadcast(self, values: torch.Tensor, source: int = 0) -> torch.Tensor:
        """The tensor of one of these processes, by its number among them, in place."""
        if self.size > 1:
            dist.broadcast(values, group=self.group, group_src=source)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A small picklable object of each of these processes, by rank, on all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found


@dataclasses.dataclass(frozen=True)
class Mesh:
    """This process's place in the grid.

    Attributes:
        pipe: Among the stages of its pipeline.
        data: Among those that have other lanes, at its place in the rollouts.
        tensor: Among those that share each layer of a stage.
        replica: Among all that hold its replica together (pipe x tensor).
        segment: Among those that share the rollouts of its lanes.
        gradients: Among all replicas (data x segment): gradients and ZeRO partitions are spread over this axis. Where
            no rollout is shared it is `data`.
        stage: Among all processes of its stage (data x segment x tensor): over them a matrix lies.
        pipe_back: A second group of the pipe axis, for messages from later to earlier stages.
        segment_back: The same of the segment axis.
    """

    pipe: Axis
    data: Axis
    tensor: Axis
    replica: Axis
    segment: Axis
    gradients: Axis
    stage: Axis
    pipe_back: Any = None
    segment_back: Any = None

    @classmethod
    def of_data(cls, rank: int, size: int) -> "Mesh":
        """Every process is a replica."""
        everyone = Axis(rank, size)
        return cls(Axis(), everyone, Axis(), Axis(), Axis(), everyone, everyone)

    @property
    def speaks(self) -> bool:
        """Whether this process writes what is written once for all that have its lanes: these and their audit."""
        return self.replica.rank == 0 and self.segment.rank == 0

    @property
    def sizes(self) -> dict[str, int]:
        """pipeline, replicas (that have other lanes), segment and tensor, for checkpoints and logs."""
        return {
            "pipeline": self.pipe.size,
            "replicas": self.data.size,
            "segment": self.segment.size,
            "tensor": self.tensor.size,
        }

    @functools.cached_property
    def mpu(self) -> "ModelParallelUnit | None":
        """What DeepSpeed asks about the grid; None where every process is a replica."""
        return ModelParallelUnit(self) if self.replica.size > 1 else None


class ModelParallelUnit:
    """The mesh under the names by which DeepSpeed asks for it (its argument `mpu`).

    To DeepSpeed, "model parallel" are all processes of a replica: over them it sums the gradient's norm. "Tensor model
    parallel" are those that its activation checkpointing partitions over.
    """

    def __init__(self, mesh: Mesh) -> None:
        for name, axis in (
            ("data_parallel", mesh.gradients),
            ("model_parallel", mesh.replica),
            ("tensor_model_parallel", mesh.tensor),
            ("slice_parallel", mesh.tensor),
            ("pipe_parallel", mesh.pipe),
            ("pipeline_model_parallel", mesh.pipe),
        ):
            setattr(self, f"get_{name}_rank", functools.partial(getattr, axis, "rank"))
            setattr(self, f"get_{name}_world_size", functools.partial(getattr, axis, "size"))
            setattr(self, f"get_{name}_group", functools.partial(getattr, axis, "group"))


@functools.cache
def make_mesh(
    rank: int, size: int, tensor: int = 1, pipeline: int = 1, segment: int = 1, timeout_seconds: float = 1800
) -> Mesh:
    """Arranges the processes; called by all of them, after the process group has been initialised.

    Args:
        rank: This process.
        size: All processes, a multiple of tensor * pipeline * segment (`config.topology.replicas_of`).
        tensor: Tensor-parallel processes.
        pipeline: Pipeline stages.
        segment: Processes that share the rollouts of the same lanes.
        timeout_seconds: How long a collective of the new groups may wait.
    """
    if tensor * pipeline * segment == 1:
        return Mesh.of_data(rank, size)
    axes = ("pipe", "data", "segment", "tensor")
    grid = np.arange(size).reshape(pipeline, -1, segment, tensor)
    limit = timedelta(seconds=timeout_seconds)

    def axis(lists: list[list[int]]) -> Axis:
        # Every process makes every group, in the same order, as torch asks.
        found = Axis()
        for ranks in lists:
            group = dist.new_group(ranks, timeout=limit)
            if rank in ranks:
                found = Axis(ranks.index(rank), len(ranks), group)
        return found

    def along(*names: str) -> list[list[int]]:
        """The processes that share all coordinates but these, one list after another."""
        own = [axes.index(name) for name in names]
        others = [index for index in range(len(axes)) if index not in own]
        count = math.prod(grid.shape[index] for index in own)
        lists: list[list[int]] = grid.transpose(*others, *own).reshape(-1, count).tolist()
        return lists

    data = axis(along("data"))  # even where there is one: DeepSpeed needs a group to partition over
    gradients = axis(along("data", "segment")) if segment > 1 else data
    stage = gradients
    if tensor > 1:
        stage = axis(along("data", "segment", "tensor")) if pipeline > 1 else Axis(rank, size)
    mesh = Mesh(
        pipe=axis(along("pipe")) if pipeline > 1 else Axis(),
        data=data,
        tensor=axis(along("tensor")) if tensor > 1 else Axis(),
        segment=axis(along("segment")) if segment > 1 else Axis(),
        gradients=gradients,
        stage=stage,
        pipe_back=axis(along("pipe")).group if pipeline > 1 else None,
        segment_back=axis(along("segment")).group if segment > 1 else None,
        replica=axis(along("pipe", "tensor")),
    )
    if tensor > 1:
        hosts = set(mesh.tensor.gather(socket.gethostname()))
        if len(hosts) > 1:
            LOG.warning(
                "parallel.tensor is %d, and the processes of a layer lie on several machines (%s): choose a divisor of "
                "the processes a machine, since they talk in every layer",
                tensor,
                ", ".join(sorted(hosts)),
            )
    return mesh
