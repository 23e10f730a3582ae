# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the modules of a Memformer become when a layer is spread over processes.

A module keeps its name, its parameters' names and its place; only its class changes, and with it what it does at the
border between replicated and sliced work. Dropout stands outside: all of the model's is in replicated work, where the
processes draw the same masks because their seeds are equal.

Shapes: B lanes, S tokens, K slots, D width, V vocabulary, t processes.
"""

from typing import Any, TypeVar

import torch
from torch import nn

from memformer.models.memformer.memory import MemoryWriter
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
        """[..., D/t] -> [..., D]."""
        return from_ranks(super().forward(input), self.axis)


class ParallelMemoryWriter(MemoryWriter):
    """A memory writer with some of the heads: what they write, [B, K, D/t], is joined before the normalisation."""

    axis: Axis

    def slots_of_heads(self, memory_BKD: torch.Tensor) -> torch.Tensor:
        """The columns of the slots that this process's heads keep, [B, K, D/t]."""
        return memory_BKD.chunk(self.axis.size, dim=-1)[self.axis.rank]

    @torch.no_grad()
    def all_weights(self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        """[B, H, K, 1 + S], the heads of all processes."""
        own_BHKL = self.weights(memory_BKD, x_BSD, mask_BS)
        return gather_last(own_BHKL.movedim(1, -1), self.axis).movedim(-1, 1)

    def forward(self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        """As the plain writer's."""
        return joined(super().forward(to_ranks(memory_BKD, self.axis), x_BSD, mask_BS), self.axis)
