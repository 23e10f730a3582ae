# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The section `activation_checkpointing` at work: layers inside a replayed segment, and memories between segments.

| settings | a layer keeps of its input [B, S, D] | the replay buffer keeps of each memory [B, K, D] |
|---|---|---|
| mode none | all that its backward needs | all |
| mode full | all of it, and computes the rest again | all |
| partition_activations | 1/tensor of it (mode full), gathered when its backward comes | 1/tensor |
| cpu_checkpointing | the same in host memory (mode full) | the same in pinned host memory |
| memory_interval k | | of every k-th memory alone: the others are computed again from it, k by k |

Without partitioning, layers are torch's own checkpoints; with it they are DeepSpeed's. The two inputs that all layers
of a stack share, memory and context, are kept once, whole: a partition of them in every layer would be more.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from memformer.config.schema import Config
from memformer.models.protocol import MemoryModel
from memformer.processes.group import World
from memformer.processes.topology import Axis
from memformer.replay import ReplayBuffer
from memformer.replay.random_state import redrawing


def checkpoint_layers(model: MemoryModel, config: Config, world: World) -> None:
    """Makes each layer keep what the settings say; changed in place, parameter names stay as they are."""
    settings = config.activation_checkpointing
    if settings.mode == "none":
        return
    layers = model.layers()
    # Where the device is the host, there is nothing to move, and DeepSpeed's copy would be the tensor itself.
    to_host = settings.cpu_checkpointing and world.device.type != "cpu"
    if not (settings.partition_activations or to_host):
        # ZeRO-3 needs the reentrant form: its hooks release a layer's parameters before the other compares the shapes
        # of what was saved.
        reentrant = config.parallel.zero_stage == 3
        for layer in layers:
            layer.forward = functools.partial(recomputed, layer.forward, reentrant)
        return
    import deepspeed

    deepspeed.checkpointing.configure(
        world.mesh.mpu,
        partition_activations=settings.partition_activations,
        checkpoint_in_cpu=settings.cpu_checkpointing,
        contiguous_checkpointing=settings.contiguous_checkpointing,
        num_checkpoints=len(layers) * (config.data.most_segments if config.training.replay == "bptt" else 1),
    )
    for layer in layers:
        layer.forward = functools.partial(_partitioned, layer.forward, deepspeed.checkpointing.checkpoint)


def recomputed(forward: Callable[..., torch.Tensor], reentrant: bool, *inputs: Any) -> torch.Tensor:
    """A layer that keeps its inputs for its backward, and computes the rest again there.

    What has no gradient, the first pass of a replay or frozen layers below all that is trained, keeps nothing in any
    case; torch would warn of it.
    """
    if not _differentiable(*inputs):
        return forward(*inputs)
    result: torch.Tensor = checkpoint(redrawing(forward), *inputs, use_reentrant=reentrant)
    return result


def _differentiable(*inputs: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(each, torch.Tensor) and each.requires_grad for each in inputs)


def _partitioned(
    forward: Callable[..., torch.Tensor],
    checkpoint_function: Callable[..., torch.Tensor],
    x_BSD: torch.Tensor,
    shared: torch.Tensor,
    *rest: Any,
) -> torch.Tensor:
    """A layer of a stack: its input, what all of them share, and arguments without gradient."""
    if not _differentiable(x_BSD, shared):
        return forward(x_BSD, shared, *rest)
    device = x_BSD.device.type
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def run(x_BSD: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        # The second time this runs inside the backward, where DeepSpeed leaves autocast as it finds it: off.
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return forward(x_BSD, shared, *rest)

    # DeepSpeed empties what it partitions, so it gets tensors of its own. An ordinary view would not do: it would keep
    # the tensor that it is a view of.
    shared_alias: Any = _Alias.apply(shared)  # type: ignore[no-untyped-call]
    shared_alias.no_checkpointing = True
    return checkpoint_function(redrawing(run), _Alias.apply(x_BSD), shared_alias)  # type: ignore[no-untyped-call]


class _Alias(torch.autograd.Function):
    """The same numbers as a tensor that can be emptied without emptying the other, and that does not hold the other."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


def replay_buffer(config: Config, world: World) -> ReplayBuffer:
    """Where a rollout's memories are kept between the passes."""
    settings, axis = config.activation_checkpointing, world.mesh.tensor
    partition = TensorPartition(axis) if settings.partition_activations else None
    return ReplayBuffer(settings.cpu_checkpointing, partition, settings.memory_interval)


class TensorPartition:
    """Spreads a memory over tensor-parallel processes: the `Partition` of a replay buffer."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def own(self, memory_BKD: torch.Tensor) -> torch.Tensor:
        """This process's part, 1-D: a copy, so that the whole can be freed."""
        flat = memory_BKD.reshape(-1)
        length = flat.numel() // self.axis.size  # the check of a run's settings has seen that they divide K * C
        return flat[length * self.axis.rank : length * (self.axis.rank + 1)].clone()

    def gather(self, part: torch.Tensor, shape: torch.Size) -> Callable[[], torch.Tensor]:
        """Starts to put the parts together; what it returns waits and gives the whole."""
        whole = part.new_empty(self.axis.size * part.numel())
        if not part.numel():
            return lambda: whole.view(shape)
        work: Any = dist.all_gather_into_tensor(whole, part, group=self.axis.group, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return whole.view(shape)

        return wait
