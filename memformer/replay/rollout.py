# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Rollout` and `Carry`: the data of one optimizer step, and what a lane hands from one step to the next.

Shapes: B lanes, T segments, S tokens a segment, K slots, D width.
"""

import dataclasses

import torch

from memformer.replay.segment import Segment


@dataclasses.dataclass(frozen=True)
class Carry:
    """A lane's state between two rollouts.

    Attributes:
        memory: Detached memory, [B, K, D].
        tokens: The last segment read as target, int64 [B, S]; it is the next context.
        length: Its valid tokens, int64 [B]; 0 for a lane that has read nothing.
        ragged: Whether any length is below S, known on the host.
    """

    memory: torch.Tensor
    tokens: torch.Tensor
    length: torch.Tensor
    ragged: bool = True

    @classmethod
    def empty(cls, memory: torch.Tensor, segment_length: int) -> "Carry":
        """The carry of lanes that have read nothing; `memory` [B, K, D] gives the lanes, dtype and device."""
        tokens = torch.zeros(len(memory), segment_length, dtype=torch.int64, device=memory.device)
        return cls(memory.detach(), tokens, tokens[:, 0].clone())

    def lanes(self, start: int, stop: int) -> "Carry":
        """The lanes start .. stop-1 alone."""
        return Carry(self.memory[start:stop], self.tokens[start:stop], self.length[start:stop], self.ragged)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """T consecutive segments of every lane, the targets of one optimizer step.

    Attributes:
        tokens: Targets, int64 [B, T, S]; what lies beyond the length is ignored.
        lengths: Valid targets, int64 [B, T].
        resets: A document begins with this segment, bool [B, T].
        full: Per segment, whether every lane has S valid targets (host knowledge, T entries).
        starting: Per segment, whether any lane starts a document (host knowledge, T entries).
        loss_weights: How much each target counts in the loss, float32 [B, T, S], 0 beyond the length; None: 1 each.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    resets: torch.Tensor
    full: tuple[bool, ...]
    starting: tuple[bool, ...]
    loss_weights: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        resets: torch.Tensor,
        device: torch.device | str = "cpu",
        loss_weights: torch.Tensor | None = None,
    ) -> "Rollout":
        """A rollout on `device` from host tensors: of any integer type (tokens, lengths), bool (resets), float32."""
        full = tuple((lengths == tokens.shape[2]).all(dim=0).tolist())
        starting = tuple(resets.any(dim=0).tolist())
        on_tokens, on_lengths, on_resets = (_moved(each, device) for each in (tokens, lengths, resets))
        weights = None if loss_weights is None else _moved(loss_weights, device)
        return cls(on_tokens.long(), on_lengths.long(), on_resets, full, starting, weights)

    @property
    def num_segments(self) -> int:
        """T."""
        return self.tokens.shape[1]

    def lanes(self, start: int, stop: int) -> "Rollout":
        """The lanes start .. stop-1 alone."""
        return dataclasses.replace(
            self,
            tokens=self.tokens[start:stop],
            lengths=self.lengths[start:stop],
            resets=self.resets[start:stop],
            loss_weights=None if self.loss_weights is None else self.loss_weights[start:stop],
        )

    def segment(self, index: int, carry: Carry) -> Segment:
        """Segment `index` with its context: the segment before it, or the carry's for the first."""
        context, length, ragged = carry.tokens, carry.length, carry.ragged
        if index:
            context, length = self.tokens[:, index - 1], self.lengths[:, index - 1]
            ragged = not self.full[index - 1]
        return Segment(
            context,
            length,
            self.tokens[:, index],
            self.lengths[:, index],
            self.resets[:, index],
            ragged or self.starting[index],
            not self.full[index],
            None if self.loss_weights is None else self.loss_weights[:, index],
        )

    def carry(self, memory: torch.Tensor) -> Carry:
        """What follows this rollout, given the memory after its last segment, [B, K, D]."""
        return Carry(memory.detach(), self.tokens[:, -1], self.lengths[:, -1], not self.full[-1])


def _moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A host tensor on `device`, where nobody waits for it: a copy from memory that is not pinned would wait."""
    pinned = tensor.pin_memory() if torch.device(device).type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
