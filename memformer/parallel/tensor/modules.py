# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the modules of a layer become when it is spread over processes.

A module keeps its name, its parameters' names and its place; only its class changes, and with it what it does at the
border between replicated and sliced work. Dropout stands outside: a model has it in replicated work alone, where the
processes draw the same masks because their seeds are equal.

Shapes: B lanes, K slots, D width, H heads, t processes.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.heads import Heads
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


class NormBeforeRanks(nn.LayerNorm):
    """A layer norm whose output goes into sliced work alone: one sum of gradients for all that read it."""

    axis: Axis

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return to_ranks(super().forward(input), self.axis)


class IdentityBeforeRanks(nn.Identity):
    """The same where there is no norm."""

    axis: Axis

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input."""
        return to_ranks(input, self.axis)


class RowParallelLinear(nn.Linear):
    """A linear map of sliced inputs [..., D/t]: each process has the columns for its slice, and the parts add up."""

    axis: Axis

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., D/t] -> [..., D]; a bias is replicated, and added once."""
        out = from_ranks(F.linear(input, self.weight), self.axis)
        return out if self.bias is None else out + self.bias


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
