# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The three places where tensor-parallel processes talk, with their gradients (Shoeybi et al., "Megatron-LM", 2019).

A value is **replicated** (the same on all of them), **partial** (they sum to it) or **sliced** (each has a part of the
last dimension). Every loss is replicated, and each process back-propagates its own copy.

| function | forward | gradient |
|---|---|---|
| `to_ranks` | replicated, before work that each does a part of | partial gradients are summed |
| `from_ranks` | partial values are summed | the replicated gradient as it is |
| `joined` | slices are gathered | each takes its slice |
"""

from typing import Any

import torch
import torch.distributed as dist

from memformer.processes.topology import Axis


class _ToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # A copy: autograd may hand the same tensor to another function.
        return ctx.axis.sum(gradients[0].clone(memory_format=torch.contiguous_format)), None


class _FromRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        return axis.sum(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        ctx.axis = axis
        return gather_last(x, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].chunk(ctx.axis.size, dim=-1)[ctx.axis.rank].contiguous(), None


def _apply(function: Any, x: torch.Tensor, axis: Axis) -> torch.Tensor:
    return function.apply(x, axis)  # type: ignore[no-any-return]


def leave_uncompiled() -> None:
    """torch.compile breaks its graphs at these functions from now on, instead of tracing into the collectives."""
    global _apply
    _apply = torch.compiler.disable(_apply)  # type: ignore[no-untyped-call]


def to_ranks(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """A replicated tensor on its way into work that each process does a part of."""
    return _apply(_ToRanks, x, axis)


def from_ranks(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The sum of the processes' parts, replicated."""
    return _apply(_FromRanks, x, axis)


def joined(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Slices [..., D/size] of the last dimension, equal in size, as the whole [..., D], replicated."""
    return _apply(_Joined, x, axis)


def gather_last(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """`joined` without a gradient."""
    out = x.new_empty(axis.size * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(out, x.contiguous(), group=axis.group)
    return out.view(axis.size, *x.shape).movedim(0, -2).flatten(-2).contiguous()
