# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A Memformer's slots on a backbone: its readers before chosen layers, its writer and forgetting behind one.

What the readers add starts from zero, so that the backbone says what it says alone, to the last bit, until something
is learned. Slots are written from the tokens that predict the segment, never from the overlap.

Shapes: B lanes, L inputs, S tokens a segment, K slots, D width; the memory is [K, D], each slot of length 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.memory import LayerOutput, Rows
from memformer.models.construction import Construction
from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.initialise import favour_themselves
from memformer.models.memformer.memory import MemoryReader, MemoryWriter, Written, before_normalisation


def slot_config(config: BackboneConfig) -> MemformerConfig:
    """What readers and writer are told of their sizes."""
    return MemformerConfig(
        d_model=config.width,
        num_heads=config.memory_heads,
        num_memory_slots=config.memory.num_slots,
        memory_forgetting=config.memory.forgetting,
        segment_length=config.segment_length,
    )


def _draw(module: nn.Module) -> None:
    for each in module.modules():
        if isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, std=each.in_features**-0.5)


class SlotReader(nn.Module):
    """What a layer's tokens read from the slots; nothing at first."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.read = MemoryReader(slot_config(config))
        _draw(self)
        nn.init.zeros_(self.read.attention.output.weight)

    def forward(self, x_BLD: torch.Tensor, memory_BKD: torch.Tensor) -> torch.Tensor:
        """[B, L, D], to be added to x."""
        x_BLD = self.norm(x_BLD)
        return self.read(x_BLD, memory_BKD.to(x_BLD.dtype))


class SlotWriter(nn.Module):
    """Writes the slots from a layer's output."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        sizes = slot_config(config)
        self.norm = nn.LayerNorm(config.width)
        self.write = MemoryWriter(sizes)
        _draw(self)
        favour_themselves(self.write, sizes)

    def forward(self, memory_BKD: torch.Tensor, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None) -> Written:
        """The slots before forgetting."""
        written: Written = self.write(memory_BKD, self.norm(x_BSD), mask_BS)
        return written


class FirstSlots(Rows):
    """Where slots start, and what they move towards where they forget."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config.memory.num_slots, config.width, config.width**-0.5)
        self.forgetting = config.memory.forgetting

    def forward(self, lanes: int, written: Written | None = None, lengths: bool = False) -> torch.Tensor:
        """The first slots of so many lanes, or those that follow what was written, [B, K, D], each of length 1.

        With `lengths`, what the latter are divided by for that instead, [B, K].

        One method for both, because ZeRO-3 gathers a parameter only around the forward of the module that owns it.
        """
        if written is None:
            return F.normalize(super().forward(lanes), dim=-1)
        following_BKD = before_normalisation(written, self.rows, self.forgetting)
        return following_BKD.norm(dim=-1) if lengths else F.normalize(following_BKD, dim=-1)


class SlotMemory(nn.Module):
    """Slots; `memory.AddedMemory`."""

    def __init__(self, config: BackboneConfig, std: float, construction: Construction) -> None:
        super().__init__()
        self.config = config
        self.depth = config.memory_depth
        self.kept = self.depth - 1
        self.start = construction.built(FirstSlots(config))
        self.writer = construction.built(SlotWriter(config))

    def initial(self, lanes: int) -> torch.Tensor:
        """Learned slots, of length 1."""
        first: torch.Tensor = self.start(lanes)
        return first

    def front(self, memory_BKC: torch.Tensor) -> None:
        """Nothing."""

    def behind(self, memory_BKC: torch.Tensor) -> None:
        """Nothing."""

    def reader(self, layer: int) -> nn.Module | None:
        """The reader of a chosen layer."""
        return SlotReader(self.config) if layer in self.config.memory_layers else None

    def after(self, layer: int, output: LayerOutput) -> torch.Tensor | None:
        """All slots, behind the layer that is written from."""
        if layer != self.depth - 1:
            return None
        written = self.writer(output.memory, output.x[:, output.scored], output.mask)
        following: torch.Tensor = self.start(len(output.memory), written)
        return following
