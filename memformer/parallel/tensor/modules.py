# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the modules of a layer become when it is spread over processes.

A module keeps its name, its parameters' names and its place; only its class changes, and with it what it does at the
border between replicated and sliced work. Dropout stands outside: a model has it in replicated work alone, where the
processes draw the same masks because their seeds are equal.

Shapes: B lanes, K slots, D width, H heads, t processes.
"""

import functools
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.heads import Heads, Inputs
from memformer.parallel.tensor.collectives import from_ranks, gather_last, joined, to_ranks
from memformer.processes.topology import Axis

Module = TypeVar("Module", bound=nn.Module)


def become(module: nn.Module, kind: type[Module], axis: Axis) -> Module:
    """The same module as another class, a subclass of its own; `axis` becomes its attribute."""
    if not issubclass(kind, type(module)):
        raise TypeError(f"a {type(module).__name__} cannot become a {kind.__name__}")
    changed: Any = module
    changed.__class__, changed.axis = kind, axis
    return changed  # type: ignore[no-any-return]


class BeforeRanks(nn.Module):
    """A module whose output goes into sliced work alone: one sum of gradients for all that read it.

    Mixed into the module's own class by `before_ranks`.
    """

    axis: Axis

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return to_ranks(super().forward(input), self.axis)


@functools.cache
def before_ranks(kind: type[Module]) -> type[Module]:
    """A module's class, such as a norm's, with `BeforeRanks` behind it."""
    return type(f"{kind.__name__}BeforeRanks", (BeforeRanks, kind), {})


def row_parallel(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, axis: Axis) -> torch.Tensor:
    """A linear map [..., D/t] -> [..., D] by the columns for its slice; a bias is replicated, and added once."""
    out = from_ranks(F.linear(x, weight), axis)
    return out if bias is None else out + bias


class RowParallelLinear(nn.Linear):
    """A linear map of sliced inputs [..., D/t]: each process has the columns for its slice, and the parts add up."""

    axis: Axis

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., D/t] -> [..., D]."""
        return row_parallel(input, self.weight, self.bias, self.axis)


class ParallelInputs(Inputs):
    """A slice of the inputs of a map that is more than `nn.Linear`.

    Args:
        axis: The processes that share the inputs.
    """

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., D/t] -> [..., D]."""
        return row_parallel(x, weight, bias, self._axis)

    def dropout(self, x: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
        """By this process's part of the mask of all inputs, which all processes draw: that of one process."""
        if not (training and probability):
            return x
        mask = F.dropout(x.new_ones(*x.shape[:-1], x.shape[-1] * self._axis.size), probability)
        return x * mask.chunk(self._axis.size, dim=-1)[self._axis.rank]


def sum_gradients(module: nn.Module, axis: Axis) -> None:
    """Adds up the gradients of a module's own parameters, whole on each process, over those that do parts of its work.

    A hook of each parameter, which the backward calls once with all that its uses add up to.
    """
    for parameter in module.parameters(recurse=False):
        # A copy: autograd may hand the same tensor to another function.
        held: Any = parameter  # torch's own method has no types
        held.register_hook(lambda gradient: axis.sum(gradient.clone(memory_format=torch.contiguous_format)))


class ParallelHeads(Heads):
    """Some of the heads: what they write, [B, K, D/t], is joined.

    Args:
        axis: The processes that share the heads.
    """

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the gradients is taken here."""
        return to_ranks(x, self._axis)

    def own(self, x_BKD: torch.Tensor) -> torch.Tensor:
        """[B, K, D] -> [B, K, D/t]."""
        return x_BKD.chunk(self._axis.size, dim=-1)[self._axis.rank]

    def join(self, x_BKD: torch.Tensor) -> torch.Tensor:
        """[B, K, D/t] -> [B, K, D]."""
        return joined(x_BKD, self._axis)

    @torch.no_grad()
    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H/t, ...] -> [B, H, ...]."""
        return gather_last(x.movedim(1, -1), self._axis).movedim(-1, 1)
