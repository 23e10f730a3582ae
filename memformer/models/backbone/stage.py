# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneStage`: the modules of one pipeline stage, under the names that they have in the whole model.

Where each layer has a memory of its own, which stays on the layer's stage. Shapes: B lanes of a micro-batch, S tokens a
segment, L inputs of the backbone, [K, C] a lane's memory of the layers here, D width, V ids.
"""

from collections.abc import Callable
from typing import Any

import torch

from memformer.models.backbone.associative import AssociativeMemory
from memformer.models.backbone.computation import BackbonePart
from memformer.models.backbone.looking import look_while
from memformer.models.backbone.model import Backbone
from memformer.models.looking import Looked
from memformer.models.scoring import of_targets
from memformer.models.staging import numbered, replaced_by_copy
from memformer.replay.segment import Segment


class BackboneStage(BackbonePart):
    """Layers of a backbone (`models.protocol.Stage`).

    Embeddings and write tokens are with the first layer; readers and writers with their layers; norm and head with the
    last layer. A head that is tied to the token embedding has a copy of it (`copy`), as the stages of a Memformer do.

    Args:
        whole: The model, or what is left of it once the layers of other stages are dropped; it is taken apart.
        layers: Numbers of the stage's layers.
    """

    def __init__(self, whole: Backbone, layers: range) -> None:
        super().__init__(whole.config)
        self.first, self.scores = 0 in layers, self.config.num_layers - 1 in layers
        self.positions = self.embedding_dropout = None
        if self.first:
            self.embedding = whole.embedding
            self.positions, self.embedding_dropout = whole.positions, whole.embedding_dropout
        self.rotary = whole.rotary
        self.stack = numbered(whole.stack, layers)
        memory: Any = whole.memory
        assert isinstance(memory, AssociativeMemory)  # `Stages.check` has seen to it
        memory.leave(layers, [layer.reader for layer in self.stack if layer.reader is not None])
        self.memory, self.writes = memory, memory.shape[0] > 0
        if self.scores:
            self.norm, self.head = whole.norm, whole.head
        self.copy = None if self.first else replaced_by_copy(self, whole.embedding.weight)

    @property
    def shared(self) -> torch.Tensor | None:
        """The token embedding [V, D], on stage 0, which owns it."""
        return self.embedding.weight if self.first else None

    def advance_part(
        self, segment: Segment, memory_BKC: torch.Tensor, x_BLD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream [B, L, D] and the next memory [B, K, C]: no layer behind the last that writes."""
        found = self.through(segment, memory_BKC, self.memory.depth, x_BLD)
        return found.x, found.memory

    def read_part(
        self,
        segment: Segment,
        memory_BKC: torch.Tensor,
        x_BLD: torch.Tensor | None,
        next_reset_B: torch.Tensor | None = None,
        at_2N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """This stage's layers.

        Args:
            segment: The segment.
            memory_BKC: The memory before it.
            x_BLD: What the stage before made of it; None on stage 0.
            next_reset_B: Not asked for: a lane that starts a document is given its memory where that is read.
            at_2N: Lane and place of the targets whose logits are asked for, int64; None: the losses are.

        Returns:
            The stream for the next stage [B, L, D]; on the last stage the losses [B, S] (`scoring.token_losses`), or
            the logits [N, V]. And the next memory [B, K, C], where there is one here.
        """
        found = self.through(segment, memory_BKC, self.config.num_layers, x_BLD)
        after = (found.memory,) if self.writes else ()
        if not self.scores:
            return found.x, *after
        x_BSD = self.norm(found.x[:, found.scored])
        if at_2N is not None:
            return self.head.score.whole(self.head(of_targets(x_BSD, at_2N))), *after
        return self.head(x_BSD, self.targets(segment)), *after

    def look(self, segment: Segment, memory_BKC: torch.Tensor, run: Callable[[], torch.Tensor]) -> Looked:
        """See `models.protocol.Stage`: the figures of the layers here, by layer."""
        if not self.writes:
            return Looked(run(), {})
        return look_while(self, segment, memory_BKC, run)

    def forward(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """`read_part` or `advance_part`: an engine knows one forward."""
        if part == "advance":
            segment, memory_BKC, x_BLD, *_ = inputs
            return self.advance_part(segment, memory_BKC, x_BLD)
        return self.read_part(*inputs)
