# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a segment is to the backbone: one row of tokens for each lane, with positions and a mask.

    [BOS] [last w tokens of the segment before] x_0 .. x_{S-2}

Where a lane knows fewer than w tokens of its document, the row begins with tokens that nothing sees, so that its own
positions begin at 0 behind them: it is computed as it would be alone.

Shapes: B lanes, S tokens a segment, w overlap, N = S + w (+ 1 with the start token, - 1) tokens, L = N and the
memory's tokens in front and behind.
"""

from typing import NamedTuple

import torch

from memformer.models.overlap import before
from memformer.replay.segment import Segment


class Reading(NamedTuple):
    """A segment as the backbone reads it.

    Attributes:
        tokens: The backbone's ids, int64 [B, N]; the last S of their outputs predict the targets.
        seen: Which of them are there, bool [B, N]; None: all.
        scored: Which of the last S predict a target, bool [B, S]; None: all.
    """

    tokens: torch.Tensor
    seen: torch.Tensor | None
    scored: torch.Tensor | None


def read(segment: Segment, overlap: int, bos: int, segment_bos: bool, start_token_id: int) -> Reading:
    """Puts a segment's row together.

    Args:
        segment: The lanes' tokens.
        overlap: w.
        bos: The backbone's id of the start token.
        segment_bos: Every segment begins with it; False: only a document.
        start_token_id: The data's id of it, in whose place the backbone is given its own.
    """
    before_BP, seen_BP = before(segment, overlap, bos, segment_bos)
    tokens_BN = torch.cat([before_BP, segment.target[:, :-1]], 1)
    if start_token_id != bos:
        tokens_BN = tokens_BN.masked_fill(tokens_BN == start_token_id, bos)
    if not (segment.ragged or segment.short):
        return Reading(tokens_BN, None, None)
    scored_BS = torch.arange(segment.target.shape[1], device=seen_BP.device) < segment.target_length[:, None]
    return Reading(tokens_BN, torch.cat([seen_BP, scored_BS[:, 1:]], 1), scored_BS)


def with_memory(seen_BN: torch.Tensor | None, front: int, behind: int) -> torch.Tensor | None:
    """Which of the backbone's inputs are there, [B, L]: the memory's own always are."""
    if seen_BN is None:
        return None
    lanes = len(seen_BN)
    return torch.cat([seen_BN.new_ones(lanes, front), seen_BN, seen_BN.new_ones(lanes, behind)], 1)


def positions(seen_BL: torch.Tensor | None, length: int, device: torch.device) -> torch.Tensor:
    """Positions from 0 of what is there, int64 [B or 1, L]."""
    if seen_BL is None:
        return torch.arange(length, device=device)[None]
    return (seen_BL.cumsum(1) - 1).clamp(min=0)
