# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Backbone`: a language model of transformers with a memory, as a cell.

transformers' own modules are run by a loop of ours over embedding, positions, layers, norm and head, so that `advance`
can stop behind the last layer that the memory depends on, and each module's parameters are used where it runs (ZeRO-3).

Shapes: B lanes, S tokens a segment, L inputs of the backbone, [K, C] a lane's memory, D width, V ids of the backbone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from memformer.models.backbone.architectures import sliding_window
from memformer.models.backbone.associative import AssociativeMemory
from memformer.models.backbone.computation import BackboneLayer, BackbonePart
from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.lora import adapted
from memformer.models.backbone.memory import TokenMemory
from memformer.models.backbone.parts import Parts
from memformer.models.backbone.reading import positions
from memformer.models.backbone.slots import SlotMemory
from memformer.models.construction import Construction
from memformer.models.scoring import of_targets
from memformer.replay.segment import Segment

KINDS: dict[str, Any] = {"associative": AssociativeMemory, "slots": SlotMemory, "tokens": TokenMemory}


class Run(NamedTuple):
    """What a run of the layers gives.

    Attributes:
        scored: Output of the last layer that ran at the tokens that predict the targets, [B, S, D].
        memory: The next memory, [B, K, C].
    """

    scored: torch.Tensor
    memory: torch.Tensor


class Backbone(BackbonePart):
    """The model; `models.protocol.MemoryModel`.

    Args:
        config: With `vocab_size` and `start_token_id` set. Weights are drawn; those of `config.pretrained` are read by
            `pretrained.weights`.
        construction: How the parts come into being; None: whole.

    Raises:
        ValueError: transformers is not installed, or refuses the sizes.
    """

    def __init__(self, config: BackboneConfig, construction: Construction | None = None) -> None:
        super().__init__(config)
        construction = construction or Construction()
        parts = Parts(config, construction)
        self.embedding = parts.embedding()
        self.positions = parts.other(config.architecture.positions)
        self.embedding_dropout = parts.other(config.architecture.embedding_dropout)
        self.rotary = parts.rotary()
        self.memory = KINDS[config.memory.kind](config, parts.std, construction)
        architecture, plan = config.architecture, parts.plan()
        self.stack = nn.ModuleList(
            construction.built(BackboneLayer(adapted(block, config), self.memory.reader(number), architecture, plan))
            for number, block in enumerate(parts.layers())
        )
        self.norm = parts.norm()
        self.head = parts.head(self.embedding if config.tied() else None)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.embedding.weight.device

    def self_weights(self, segment: Segment, memory: torch.Tensor) -> None:
        """None: what is looked at goes by `Family.look`, with the segment that is written."""

    def run(self, segment: Segment, memory_BKC: torch.Tensor, depth: int) -> Run:
        """Reads a segment with the memory by the first `depth` layers, which are at least the memory's own."""
        found = self.through(segment, memory_BKC, depth)
        return Run(found.x[:, found.scored], found.memory)

    def advance(self, segment: Segment, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The next memory [B, K, C] alone: no layer behind those that it depends on, no norm, no head."""
        return self.run(segment, memory_BKC, self.memory.depth).memory

    def logits(
        self, segment: Segment, memory_BKC: torch.Tensor, at_2N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, S, V] of the segment's targets, or [N, V] of some (`of_targets`); the next memory [B, K, C]."""
        found = self.run(segment, memory_BKC, len(self.stack))
        return self.head.score.whole(self.head(of_targets(self.norm(found.scored), at_2N))), found.memory

    @property
    def context(self) -> int:
        """See `models.protocol.Standalone`: the backbone's positions; its sliding window, where that is shorter."""
        window = sliding_window(self.config.backbone, self.config.architecture)
        return min(self.config.positions, window or self.config.positions)

    def without_memory(self, tokens_N: torch.Tensor, places_P: torch.Tensor, part: int) -> Iterator[torch.Tensor]:
        """See `models.protocol.Standalone`: what transformers' own model says, adapters included."""
        start = tokens_N.new_tensor([self.bos])
        inputs_1N = torch.cat([start, tokens_N[:-1].masked_fill(tokens_N[:-1] == self.start_token_id, self.bos)])[None]
        at_1N = positions(None, inputs_1N.shape[1], inputs_1N.device)
        x_1ND, cos, sin = self.placed(self.embedding(inputs_1N), at_1N)
        for layer in self.layers():
            x_1ND = layer(x_1ND, None, None, cos, sin)
        for some in places_P.split(part):
            yield self.head.score.whole(self.head(self.norm(x_1ND[0, some])))

    def losses(self, segment: Segment, memory_BKC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`scoring.token_losses` of the segment, [B, S], and the next memory [B, K, C]."""
        found = self.run(segment, memory_BKC, len(self.stack))
        return self.head(self.norm(found.scored), self.targets(segment)), found.memory

    def forward(self, segment: Segment, memory_BKC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores a segment.

        Returns:
            The sum of the valid targets' losses in nats, times their weights; their number; the next memory [B, K, C].
        """
        losses_BS, memory_BKC = self.losses(segment, memory_BKC)
        return segment.weighted(losses_BS).sum(), segment.target_length.sum(), memory_BKC
