# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Embedding, head and cross entropy with the vocabulary spread over processes: none ever holds all logits.

Process r of t has the ids V*r//t .. V*(r+1)//t - 1. Where t does not divide V the parts are one id apart, so nothing
needs padding, neither here nor in a checkpoint.

Shapes: B lanes, S tokens, D width, V vocabulary, N = B*S.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from memformer.models.scoring import IGNORE, Score
from memformer.parallel.tensor.collectives import from_ranks
from memformer.processes.topology import Axis


def part_of(total: int, axis: Axis) -> tuple[int, int]:
    """(first, one past the last) of this process's part of `total` ids."""
    return total * axis.rank // axis.size, total * (axis.rank + 1) // axis.size


class VocabularyParallelEmbedding(nn.Embedding):
    """The rows of some ids; a token is looked up by the process that has it."""

    axis: Axis
    first: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, D], replicated."""
        rows = input - self.first
        elsewhere = (rows < 0) | (rows >= self.num_embeddings)
        found: torch.Tensor = super().forward(rows.masked_fill(elsewhere, 0))
        return from_ranks(found.masked_fill(elsewhere[..., None], 0), self.axis)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, first: int, axis: Axis) -> torch.Tensor:
        largest = axis.max(logits_NV.amax(dim=-1))
        shifted = logits_NV - largest[:, None]
        ids = targets_N - first
        elsewhere = (ids < 0) | (ids >= logits_NV.shape[1])
        ids = ids.masked_fill(elsewhere, 0)[:, None]
        scores = shifted.gather(1, ids)[:, 0].masked_fill(elsewhere, 0)
        probabilities = shifted.exp_()
        sums, scores = axis.sum(torch.stack([probabilities.sum(dim=-1), scores]))
        probabilities.div_(sums[:, None])
        ignored = targets_N == IGNORE
        ctx.save_for_backward(probabilities, ids, elsewhere, ignored)
        losses_N: torch.Tensor = (sums.log() - scores).masked_fill(ignored, 0)
        return losses_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probabilities, ids, elsewhere, ignored = ctx.saved_tensors
        gradient_N = gradients[0].masked_fill(ignored, 0)
        out = probabilities * gradient_N[:, None]
        out.scatter_add_(1, ids, -gradient_N.masked_fill(elsewhere, 0)[:, None])
        return out, None, None, None


class ParallelScore(Score):
    """Scoring, and whole logits, from this process's part of the logits.

    Args:
        vocab_size: V.
        axis: The processes that share it.
    """

    def __init__(self, vocab_size: int, axis: Axis) -> None:
        self.vocab_size, self.axis = vocab_size, axis
        self.first, self.stop = part_of(vocab_size, axis)

    def most(self, ids: int) -> int:
        """The parts may be one id apart."""
        return -(-self.vocab_size // self.axis.size)

    def losses(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """`Score.losses` of logits [N, stop - first]."""
        losses_N: torch.Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            logits_NV, targets_N, self.first, self.axis
        )
        return losses_N

    def joined(self, normalisers_N: torch.Tensor, scores_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`Score.joined`; three numbers a token are sent, as for `losses`."""
        largest = self.axis.max(normalisers_N.clone())
        sums, scores = self.axis.sum(torch.stack([(normalisers_N - largest).exp(), scores_N]))
        return sums.log() + largest, scores

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., stop - first] -> [..., V], for generation; without gradient."""
        padded = F.pad(logits.detach(), (0, self.most(logits.shape[-1]) - logits.shape[-1]))
        parts = [torch.empty_like(padded) for _ in range(self.axis.size)]
        dist.all_gather(parts, padded.contiguous(), group=self.axis.group)
        sizes = [part_of(self.vocab_size, Axis(rank, self.axis.size)) for rank in range(self.axis.size)]
        return torch.cat([part[..., : b - a] for part, (a, b) in zip(parts, sizes, strict=True)], dim=-1)
