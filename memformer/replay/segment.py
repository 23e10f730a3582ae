# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Segment`: what one step of the recurrence reads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Segment(NamedTuple):
    """One segment of every lane: the previous segment for the encoder, this one for the decoder to predict.

    The model itself replaces the context of a lane that starts a document by the start token alone, and its memory
    by the initial one (the paper's section 2 and Fig. 6), so data and replay never need to know about either.

    Attributes:
        context: Tokens of the lane's previous segment, int64 [B, S]; what lies beyond the length is ignored.
        context_length: Valid tokens of the context, int64 [B]; 0 for a lane that has read nothing.
        target: Tokens to predict, int64 [B, S].
        target_length: Valid targets, int64 [B]; 0 for a lane without a document: no loss, no gradient.
        reset: A document begins with this target, bool [B].
        ragged: Whether any lane's context is masked (shorter than S, or a reset). Known on the host from the data,
            so that full segments take the attention kernels that need no mask, without asking the device.
        short: Whether any lane has fewer than S targets, known in the same way; for models that read the targets too.
        loss_weights: How much each target counts in the loss, float32 [B, S], 0 beyond the length; None: 1 each.
    """

    context: torch.Tensor
    context_length: torch.Tensor
    target: torch.Tensor
    target_length: torch.Tensor
    reset: torch.Tensor
    ragged: bool = True
    short: bool = True
    loss_weights: torch.Tensor | None = None

    def lanes(self, start: int, stop: int) -> "Segment":
        """The lanes start .. stop-1 alone."""
        context, context_length, target, target_length, reset = (tensor[start:stop] for tensor in self[:5])
        weights = None if self.loss_weights is None else self.loss_weights[start:stop]
        return Segment(context, context_length, target, target_length, reset, self.ragged, self.short, weights)

    def rows(self, rows: torch.Tensor) -> "Segment":
        """Some of the lanes, int64, in any order and any number of times."""
        tensors: dict[str, Any] = {name: each for name, each in self._asdict().items() if torch.is_tensor(each)}
        return self._replace(**{name: each[rows] for name, each in tensors.items()})

    @classmethod
    def joined(cls, segments: Sequence["Segment"]) -> "Segment":
        """All lanes of several segments as one, [n * B, S], segment by segment."""
        context, context_length, target, target_length, reset = (
            torch.cat(each) for each in zip(*(segment[:5] for segment in segments), strict=True)
        )
        ragged, short = any(each.ragged for each in segments), any(each.short for each in segments)
        weights = [each.loss_weights for each in segments if each.loss_weights is not None]
        weights_BS = torch.cat(weights) if weights else None
        return cls(context, context_length, target, target_length, reset, ragged, short, weights_BS)

    def weighted(self, losses_BS: torch.Tensor) -> torch.Tensor:
        """Each target's loss times its weight, [B, S]: what a cell sums."""
        return losses_BS if self.loss_weights is None else losses_BS * self.loss_weights

    @property
    def counted(self) -> torch.Tensor:
        """Sum of each lane's weights, float64 [B]; without weights the number of its targets, int64 [B]."""
        return self.target_length if self.loss_weights is None else self.loss_weights.sum(1, dtype=torch.float64)
