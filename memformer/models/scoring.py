# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How the targets of a segment are scored: the head, its cross entropy, and both in chunks where logits are many.

Shapes: B lanes, S tokens a segment, N = B*S, D width, V ids that the head here gives the logits of.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from memformer.replay.segment import Segment

IGNORE = -100
"""cross_entropy's mark of a target that does not count."""
CHUNK_BYTES = 256 * 2**20
"""Logits that would be more than this in float32 are never whole: 1,335 tokens of 50,257 ids, 523 of 128,256.

Below it chunks save little and cost time, 18 % of the head's for 512 tokens (docs/results/cpu-logits-and-writer.md):
one product more, and each chunk adds to a gradient of [V, D], which many rows pay for.
"""


def scored_targets(segment: Segment) -> torch.Tensor:
    """The segment's targets, int64 [B, S], with `IGNORE` beyond the valid length."""
    target_BS = segment.target
    valid_BS = torch.arange(target_BS.shape[1], device=target_BS.device) < segment.target_length[:, None]
    return target_BS.masked_fill(~valid_BS, IGNORE)


def of_targets(x_BSD: torch.Tensor, at_2N: torch.Tensor | None) -> torch.Tensor:
    """What is known of some targets [N, D], int64 [2, N] being lane and place of each; None: of all, [B, S, D]."""
    return x_BSD if at_2N is None else x_BSD[at_2N[0], at_2N[1]]


def token_losses(logits_BSV: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Negative log-likelihood of each target in nats, [B, S], 0 beyond the valid length; at least float32.

    The plain reference of what a `Head` gives.
    """
    targets_BS = scored_targets(segment)
    return Score().losses(widened(logits_BSV).flatten(0, 1), targets_BS.flatten()).view_as(targets_BS)


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or wider."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def count_chunks(tokens: int, ids: int, size: int = 4, chunk_bytes: int | None = None) -> int:
    """In how many chunks so many tokens are scored; 1: their logits are whole.

    Args:
        tokens: N.
        ids: V.
        size: Bytes of a logit where its loss is taken.
        chunk_bytes: Bytes of logits that are whole at most; None: `CHUNK_BYTES`.
    """
    return max(1, min(tokens, -(-tokens * ids * size // (chunk_bytes or CHUNK_BYTES))))


class Score:
    """Cross entropy of a head that has all ids. What spreads a vocabulary over processes puts another in its place."""

    first = 0
    """The first id that the head here has."""

    def most(self, ids: int) -> int:
        """The ids that a head has at most, given those that this one has: what all processes decide by."""
        return ids

    def losses(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Losses [N] of targets, int64 [N], of all ids; 0 for `IGNORE`."""
        return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="none")

    def joined(self, normalisers_N: torch.Tensor, scores_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Over all ids: log-sum-exp of a token's logits and the target's logit, from those of the ids here.

        A target that is elsewhere has the logit 0 here. Without gradient.
        """
        return normalisers_N, scores_N

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of all ids from those of the ids here."""
        return logits


class Fused(NamedTuple):
    """What is done to a chunk of logits in 16 bits, as kernels that read and write them once.

    Attributes:
        scored: `_scored`, compiled.
        for_logits: `_for_logits`, compiled.
    """

    scored: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    for_logits: Callable[..., torch.Tensor]


class Head(nn.Linear):
    """A linear map from what leaves the last norm to logits, or at once to the losses of targets.

    Both are its forward, since ZeRO-3 gathers a parameter around the forward of the module that owns it.
    """

    score: Score

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.score = Score()
        self.chunk_bytes = CHUNK_BYTES
        self.fused: Fused | None = None

    def compile_chunks(self) -> None:
        """torch.compile of what is done to a chunk's logits in 16 bits; wider ones would be there twice."""
        self.fused = Fused(torch.compile(_scored, dynamic=False), _compiled_for_backward(_for_logits))

    def forward(self, x_BSD: torch.Tensor, targets_BS: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the ids here, or losses.

        Args:
            x_BSD: [B, S, D]; for logits [..., D].
            targets_BS: int64, of all ids, `IGNORE` where nothing is scored; None asks for logits.

        Returns:
            Logits [..., V]; or the losses in nats [B, S], 0 where nothing is scored, at least float32.
        """
        if targets_BS is None:
            return super().forward(x_BSD)
        x_ND, targets_N = x_BSD.flatten(0, 1), targets_BS.flatten()
        size = max(4, x_ND.element_size())
        chunks = count_chunks(len(targets_N), self.score.most(len(self.weight)), size, self.chunk_bytes)
        if chunks == 1:
            losses_N = self.score.losses(widened(super().forward(x_ND)), targets_N)
        else:
            x_ND, rows = x_ND.to(_dtype_of_products(x_ND)), -(-len(targets_N) // chunks)
            fused = self.fused if x_ND.element_size() == 2 else None
            losses_N = _ChunkedLosses.apply(x_ND, self.weight, self.bias, targets_N, self.score, rows, fused)
        return losses_N.view_as(targets_BS)


def _dtype_of_products(x: torch.Tensor) -> torch.dtype:
    """The dtype in which autocast, if it is on, multiplies matrices."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


class _ChunkedLosses(torch.autograd.Function):
    """Cross entropy whose logits exist for some rows at a time, in the forward and again in the backward.

    Kept between the two are three numbers a token: its log-sum-exp, over the ids here and over all, and the target's
    logit. So the backward costs one more product with the head (4 instead of 3 in all), and every gradient is that of
    the plain form, whatever weights the losses get later. Forms that compute gradients in the forward (Liger Kernel,
    Hsu et al., 2024) save that product, and need one weight for all tokens, known before: float16's scale would come
    too late.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        score: Score,
        rows: int,
        fused: Fused | None,
    ) -> torch.Tensor:
        own = weight_VD.to(x_ND.dtype)  # made again in the backward, so that no copy waits for it
        ids_N, elsewhere_N = _local(targets_N, score.first, len(own))
        normalisers, scores = [], []
        for at in _chunks(len(x_ND), rows):
            logits = _products(x_ND[at], own, bias_V)
            if fused is not None:
                found, normaliser = fused.scored(logits, ids_N[at])
                scores.append(found)
                normalisers.append(normaliser)
                del logits
                continue
            logits = widened(logits)
            scores.append(logits.gather(1, ids_N[at, None])[:, 0])
            # By one kernel, where the steps of a log-sum-exp are four that read and write all logits.
            logits = torch.log_softmax(logits, dim=-1)
            normalisers.append(scores[-1] - logits.gather(1, ids_N[at, None])[:, 0])
            del logits  # before the next chunk's
        scores_N = torch.cat(scores).masked_fill_(elsewhere_N, 0)
        own_N = torch.cat(normalisers)
        normalisers_N, scores_N = score.joined(own_N, scores_N)
        ctx.save_for_backward(x_ND, weight_VD, bias_V, targets_N, own_N, normalisers_N, scores_N)
        ctx.first, ctx.rows, ctx.fused = score.first, rows, fused
        return (normalisers_N - scores_N).masked_fill_(targets_N == IGNORE, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_ND, weight_VD, bias_V, targets_N, own_N, normalisers_N, scores_N = ctx.saved_tensors
        own = weight_VD.to(x_ND.dtype)
        ids_N, elsewhere_N = _local(targets_N, ctx.first, len(own))
        gradient_N = gradient_N.masked_fill(targets_N == IGNORE, 0)
        share_N = gradient_N * (own_N - normalisers_N).exp()  # of the softmax over all ids in that over the ids here
        # The target's own, where a softmax that is rounded near 1 would leave nothing to take from 1.
        found_N = gradient_N * torch.expm1(scores_N - normalisers_N)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_x = torch.empty_like(x_ND) if needs_x else None
        # Chunks add up in float32: in 16 bits each addition would round.
        for_weight = weight_VD.new_zeros(weight_VD.shape, dtype=normalisers_N.dtype) if needs_weight else None
        for_bias = normalisers_N.new_zeros(len(own)) if needs_bias else None
        for at in _chunks(len(x_ND), ctx.rows):
            out = _products(x_ND[at], own, bias_V)
            if ctx.fused is not None:
                out = ctx.fused.for_logits(out, own_N[at], share_N[at], ids_N[at], found_N[at], elsewhere_N[at])
            else:
                out = _softmax(out, own_N[at, None])
                same = out.dtype == x_ND.dtype
                out = torch.mul(out, share_N[at, None], out=out if same else torch.empty_like(out, dtype=x_ND.dtype))
                own_share = out.gather(1, ids_N[at, None])
                found = torch.where(elsewhere_N[at, None], own_share, found_N[at, None].to(out.dtype))
                out.scatter_(1, ids_N[at, None], found)
            if for_bias is not None:
                for_bias += out.sum(0, dtype=for_bias.dtype)
            if for_x is not None:
                torch.mm(out, own, out=for_x[at])
            if for_weight is not None:
                if for_weight.dtype == out.dtype:
                    for_weight.addmm_(out.t(), x_ND[at])
                else:
                    for_weight += out.t() @ x_ND[at]
            del out
        return (
            for_x,
            None if for_weight is None else for_weight.to(weight_VD.dtype),
            None if for_bias is None or bias_V is None else for_bias.to(bias_V.dtype),
            None,
            None,
            None,
            None,
        )


def _scored(logits_nV: torch.Tensor, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Some logits of a row each, float32, and the log-sum-exp of each row."""
    logits_nV = widened(logits_nV)
    return logits_nV.gather(1, ids_n[:, None])[:, 0], logits_nV.logsumexp(dim=-1)


def _for_logits(
    logits_nV: torch.Tensor,
    normalisers_n: torch.Tensor,
    shares_n: torch.Tensor,
    ids_n: torch.Tensor,
    found_n: torch.Tensor,
    elsewhere_n: torch.Tensor,
) -> torch.Tensor:
    """The gradient of logits, [n, V] in their dtype: the softmax times a token's share; the target's, if it is here."""
    out_nV = (widened(logits_nV) - normalisers_n[:, None]).exp() * shares_n[:, None]
    own_nV = torch.arange(logits_nV.shape[1], device=logits_nV.device) == ids_n[:, None]
    return torch.where(own_nV & ~elsewhere_n[:, None], found_n[:, None], out_nV).to(logits_nV.dtype)


def _compiled_for_backward(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch.compile of what a backward calls: on a GPU in a thread that does not see how the compiler was set."""
    import torch._dynamo.config as settings

    compiled = torch.compile(function, dynamic=False)
    kept = {"suppress_errors": settings.suppress_errors, "recompile_limit": settings.recompile_limit}
    seen = set[tuple[torch.Size, torch.dtype]]()

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        form = inputs[0].shape, inputs[0].dtype
        # Setting them takes longer than the call.
        with contextlib.nullcontext() if form in seen else settings.patch(kept):
            seen.add(form)
            return compiled(*inputs)

    return run


def _chunks(tokens: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, tokens, rows)]


def _products(x_nD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
    """Logits of some tokens, [n, V], as `nn.Linear` gives them; the caller may write to them."""
    if bias_V is None:
        return x_nD @ weight_VD.t()
    return torch.addmm(bias_V.to(x_nD.dtype), x_nD, weight_VD.t())


def _softmax(logits_nV: torch.Tensor, normalisers_n1: torch.Tensor) -> torch.Tensor:
    """Of logits with these log-sum-exps; written to, or new ones.

    That of bfloat16 is one kernel, in the dtype that it is multiplied in and summed in float32: a fifth of the bytes. A
    logit of bfloat16 is off by 2^-9 of itself, its exponential by more than it is then rounded. In float16 the small
    shares of many ids would be lost, and wider ones would take room for two chunks.
    """
    if logits_nV.dtype == torch.bfloat16:
        return logits_nV.softmax(dim=-1)
    return widened(logits_nV).sub_(normalisers_n1).exp_()


def _local(targets_N: torch.Tensor, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets as rows of a head that has `count` ids from `first` on, 0 for others; and which are others."""
    ids_N = targets_N - first
    elsewhere_N = (ids_N < 0) | (ids_N >= count)
    return ids_N.masked_fill(elsewhere_N, 0), elsewhere_N
