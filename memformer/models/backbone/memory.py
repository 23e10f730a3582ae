# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`AddedMemory`: what a kind of memory does at the layers of a backbone; and RMT's, the simplest.

A kind has tokens of its own in front of a segment and behind it, adds to what enters some layers (`reader`), and makes
the next memory from what leaves them (`after`). Nothing is kept on the modules between calls.

Shapes: B lanes, L inputs of the backbone, S tokens a segment, [K, C] a lane's memory, M write tokens, D width.
"""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from memformer.models.backbone.config import BackboneConfig
from memformer.models.construction import Construction


class LayerOutput(NamedTuple):
    """What the memory is written from.

    Attributes:
        x: Output of a layer, [B, L, D].
        memory: The memory that the segment is read with, [B, K, C].
        scored: The S places of the output that predict the targets.
        mask: Which of these do, bool [B, S]; None: all.
    """

    x: torch.Tensor
    memory: torch.Tensor
    scored: slice
    mask: torch.Tensor | None


class AddedMemory(Protocol):
    """A kind of memory: a `torch.nn.Module`.

    Attributes:
        depth: Layers that must run for the next memory.
        kept: The layer whose outputs at the segment's own tokens are written from; None: the tokens behind the segment
            are all that the next memory is made of.
    """

    depth: int
    kept: int | None

    def initial(self, lanes: int) -> torch.Tensor:
        """The memory [lanes, K, C] of lanes that have read nothing; differentiable."""

    def front(self, memory_BKC: torch.Tensor) -> torch.Tensor | None:
        """Embeddings before a segment, [B, front, D]."""

    def behind(self, memory_BKC: torch.Tensor) -> torch.Tensor | None:
        """Embeddings behind a segment, [B, M, D]."""

    def reader(self, layer: int) -> nn.Module | None:
        """What is added to the input of a layer: a new module (input [B, L, D], memory) -> [B, L, D]; None: nothing."""

    def after(self, layer: int, output: LayerOutput) -> torch.Tensor | None:
        """The rows [B, k, C] of the next memory that the output of a layer gives; None: none."""


class Rows(nn.Module):
    """Learned rows for every lane: a module of its own, since ZeRO-3 gathers a parameter where its owner runs."""

    def __init__(self, count: int, width: int, std: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(std * torch.randn(count, width))

    def forward(self, lanes: int) -> torch.Tensor:
        """[lanes, count, width]."""
        return self.rows.expand(lanes, -1, -1)


class TokenMemory(nn.Module):
    """The recurrent memory transformer's (Bulatov et al., 2022): K embeddings before a segment, and again behind it.

    The outputs at the latter, normed to the size of embeddings, are the next memory. For comparison: the embeddings in
    front change what a pretrained model says from the first step on.
    """

    def __init__(self, config: BackboneConfig, std: float, construction: Construction) -> None:
        super().__init__()
        self.depth, self.kept = config.memory_depth, None
        self.count = config.memory.num_slots
        self.start = construction.built(Rows(self.count, config.width, std))
        norm = nn.LayerNorm(config.width)
        nn.init.constant_(norm.weight, std)
        self.norm = construction.built(norm)

    def initial(self, lanes: int) -> torch.Tensor:
        """The learned embeddings."""
        return self.start(lanes)

    def front(self, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The memory."""
        return memory_BKC

    def behind(self, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The memory again, to be written."""
        return memory_BKC

    def reader(self, layer: int) -> None:
        """The layers' own attention reads."""

    def after(self, layer: int, output: LayerOutput) -> torch.Tensor | None:
        """The last outputs of the last layer."""
        if layer < self.depth - 1:
            return None
        written: torch.Tensor = self.norm(output.x[:, -self.count :])
        return written
