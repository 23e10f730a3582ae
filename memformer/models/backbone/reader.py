# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneReader`: continues documents token by token, at constant memory.

It keeps the memory, the segment before and the tokens of the present one, and computes the present segment again for
each token: right, short, and S times the work that a cache of keys and values would do, which is not built yet.

Shapes: B documents, S tokens a segment, V ids of the data.
"""

import torch
import torch.nn.functional as F

from memformer.models.backbone.model import Backbone
from memformer.replay import Segment


class BackboneReader:
    """Reads tokens one after another and gives the logits of the next.

    Args:
        model: In evaluation mode.
        batch_size: Documents B that are read side by side.
        segment_length: S; None: the length the model was trained with.

    Raises:
        ValueError: Neither names a segment length.
    """

    def __init__(self, model: Backbone, batch_size: int = 1, segment_length: int | None = None) -> None:
        length = model.config.reading_length(segment_length)
        self.model, self.segment_length, self.device = model, length, model.device
        with torch.no_grad():
            self._memory = model.initial_memory(batch_size).clone()
        self._context = torch.zeros(batch_size, length, dtype=torch.int64, device=self.device)
        self._context_length = self._context[:, 0].clone()
        self._tokens = self._context[:, :0]
        self._never = torch.zeros(batch_size, dtype=torch.bool, device=self.device)

    def _segment(self, target: torch.Tensor) -> Segment:
        length = torch.full_like(self._context_length, target.shape[1])
        return Segment(self._context, self._context_length, target, length, self._never, True, False)

    @property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Logits of the next token, [B, V]; minus infinity for a start token that the backbone has no id for."""
        following = torch.zeros_like(self._context[:, :1])  # its place is scored; what stands there is not read
        logits_BSV, _ = self.model.logits(self._segment(torch.cat([self._tokens, following], 1)), self._memory)
        logits_BV, count = logits_BSV[:, -1], self.model.config.vocab_size or 0
        return F.pad(logits_BV, (0, max(0, count - logits_BV.shape[1])), value=float("-inf"))[:, :count]

    @torch.no_grad()
    def read(self, tokens: torch.Tensor) -> None:
        """Reads any number of tokens, int64 [B, n], segment by segment."""
        while tokens.shape[1]:
            room = self.segment_length - self._tokens.shape[1]
            part, tokens = tokens[:, :room], tokens[:, room:]
            self._tokens = torch.cat([self._tokens, part], 1)
            if part.shape[1] == room:
                self._memory = self.model.advance(self._segment(self._tokens), self._memory)
                self._context = self._tokens
                self._context_length = torch.full_like(self._context_length, self.segment_length)
                self._tokens = self._tokens[:, :0]
