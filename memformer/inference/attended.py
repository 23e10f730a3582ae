# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`AttendedTokens`: which tokens of a document each slot took, and how much of them it still holds.

What is held shrinks by one factor a write and head, so a token that drops out of a head's list can never come back:
the lists are exact however long the document is, and do not grow with it.

Shapes: K slots, H writer heads, S tokens a segment, N tokens listed, P pending writes.
"""

import bisect
from typing import Any, NamedTuple

import numpy as np
import torch

AROUND = 24  # bytes of text shown on either side of a token
PENDING = 64  # writes that are put into the lists at once
NONE = -2  # the position of no token


class Token(NamedTuple):
    """A token that a slot attended to."""

    weight: float
    position: int  # in the document; -1 is the start token
    before: tuple[int, ...]
    token: int
    after: tuple[int, ...]


class _Write(NamedTuple):
    """What one write gives to the lists."""

    took_KN: torch.Tensor
    took_at_KN: torch.Tensor
    held_KHNH: torch.Tensor  # for each head the tokens with most weight in it, with their weights in all heads
    held_at_KHN: torch.Tensor
    retained_KH: torch.Tensor


class AttendedTokens:
    """The tokens with most weight, and those with most weight left, of each slot.

    Args:
        slots: K.
        heads: H.
        count: Tokens listed a slot, N.
        device: Where the weights are.
    """

    def __init__(self, slots: int, heads: int, count: int, device: torch.device) -> None:
        self.count = count
        self._took_KN = torch.zeros(slots, count, dtype=torch.float64, device=device)
        self._held_KHNH = torch.zeros(slots, heads, count, heads, dtype=torch.float64, device=device)
        self._took_at_KN = torch.full((slots, count), NONE, device=device)
        self._held_at_KHN = torch.full((slots, heads, count), NONE, device=device)
        self._pending: list[_Write] = []
        self._texts: dict[int, Token] = {}
        self._segments: list[tuple[int, np.ndarray[Any, Any]]] = []

    def add(
        self, weights_HKS: torch.Tensor, retained_HK: torch.Tensor, tokens: np.ndarray[Any, Any], start: int
    ) -> None:
        """A write: the weights of its tokens, what it leaves of each slot, and the position of the first token."""
        count = min(self.count, len(tokens))
        took = weights_HKS.mean(0).topk(count, dim=-1)
        by_head_KHS = weights_HKS.transpose(0, 1)
        held = by_head_KHS.topk(count, dim=-1)
        slots, heads = by_head_KHS.shape[:2]
        at_KHM = held.indices.flatten(1)[:, None].expand(slots, heads, heads * count)
        all_heads_KHNH = by_head_KHS.gather(2, at_KHM).view(slots, heads, heads, count).permute(0, 2, 3, 1)
        write = _Write(took.values, took.indices + start, all_heads_KHNH, held.indices + start, retained_HK.T)
        self._pending.append(write)
        self._segments.append((start, tokens))
        if len(self._pending) == PENDING:
            self._merge()

    def _merge(self) -> None:
        """Puts the pending writes into the lists."""
        if not self._pending:
            return
        took, took_at, held, held_at, retained = zip(*self._pending, strict=True)
        self._took_KN, self._took_at_KN = _best(
            torch.cat([self._took_KN, *(each.double() for each in took)], dim=1),
            torch.cat([self._took_at_KN, *took_at], dim=1),
            self.count,
        )
        # What is left of each pending write's tokens, and of those listed, after the pending writes that followed.
        retained_PKH = torch.stack(retained).double()
        later_PKH = torch.cat([retained_PKH, torch.ones_like(retained_PKH[:1])]).flip(0).cumprod(0).flip(0)
        parts = [self._held_KHNH, *(each.double() for each in held)]
        held_KHMH = torch.cat([part * left[:, None, None] for part, left in zip(parts, later_PKH, strict=True)], dim=2)
        self._held_KHNH, self._held_at_KHN = _best(
            held_KHMH, torch.cat([self._held_at_KHN, *held_at], dim=2), self.count
        )
        self._keep_texts()
        self._pending, self._segments = [], []

    def _keep_texts(self) -> None:
        """Remembers the text around the tokens that are listed, and of no others."""
        listed = {*self._took_at_KN.flatten().tolist(), *self._held_at_KHN.flatten().tolist()}
        starts = [start for start, _ in self._segments]
        found = {at: self._texts[at] for at in listed if at in self._texts}
        for at in (each for each in listed if each not in found and each != NONE):
            start, tokens = self._segments[bisect.bisect_right(starts, at) - 1]
            place = at - start
            before = tuple(tokens[max(0, place - AROUND) : place].tolist())
            after = tuple(tokens[place + 1 : place + 1 + AROUND].tolist())
            found[at] = Token(0.0, at, before, int(tokens[place]), after)
        self._texts = found

    def took(self) -> list[list[Token]]:
        """For each slot the tokens with the largest weight, mean over the heads, largest first."""
        self._merge()
        return [
            [self._texts[at]._replace(weight=weight) for weight, at in zip(*row, strict=True) if at != NONE]
            for row in zip(self._took_KN.tolist(), self._took_at_KN.tolist(), strict=True)
        ]

    def holds(self) -> list[list[Token]]:
        """The same of what is left; of the tokens of which each head has most left."""
        self._merge()
        means_KHN = self._held_KHNH.mean(-1)
        found = []
        for weights, places in zip(means_KHN.flatten(1).tolist(), self._held_at_KHN.flatten(1).tolist(), strict=True):
            left = {at: weight for weight, at in zip(weights, places, strict=True) if at != NONE}
            best = sorted(left.items(), key=lambda each: each[1], reverse=True)[: self.count]
            found.append([self._texts[at]._replace(weight=weight) for at, weight in best])
        return found


def _best(values: torch.Tensor, places: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest along the last dimension of `places`, with their places.

    Where values have one more dimension, the heads', each head's list goes by its own.
    """
    own = values if values.dim() == places.dim() else values.diagonal(dim1=1, dim2=3).transpose(1, 2)
    # What is no token comes last, also behind tokens of which nothing is left.
    order = own.masked_fill(places == NONE, -1.0).topk(count, dim=-1).indices
    if own is values:
        return values.gather(-1, order), places.gather(-1, order)
    wide = order[..., None].expand(*order.shape, values.shape[-1])
    return values.gather(2, wide), places.gather(-1, order)
