# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""An overlap: the last tokens of the segment before, read again in front of a segment, so that it begins with them.

    [start] [last w tokens of the segment before] x_0 .. x_{S-2}

They are tokens that the lane has been given, so an overlap carries nothing further from segment to segment; it does not
reach across the beginning of a document. Where a lane knows fewer than w tokens of its document, its row begins with
tokens that nothing sees.

Shapes: B lanes, S tokens a segment, w overlap, P tokens in front, L tokens of a row.
"""

import torch

from memformer.replay.segment import Segment


def before(
    segment: Segment, overlap: int, start_token_id: int, every_start: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands in front of a segment's targets.

    Args:
        segment: The lanes' tokens.
        overlap: w; at most a segment is taken.
        start_token_id: Id of the start token.
        every_start: Every segment begins with it; False: only one that knows nothing before it.

    Returns:
        Tokens, int64 [B, P], and which of them are there, bool [B, P]: the last always is. P is w, and one more where
        every segment begins with the start token; at least 1.
    """
    overlap = min(overlap, segment.context.shape[1])
    if overlap == 0:
        start_B1 = torch.full_like(segment.target_length, start_token_id)[:, None]
        return start_B1, torch.ones_like(start_B1, dtype=torch.bool)
    known_B1 = segment.context_length.masked_fill(segment.reset, 0).clamp(max=overlap)[:, None]
    prefix = max(1, overlap + every_start)
    back = torch.arange(prefix - 1, -1, -1, device=segment.target.device)  # 0: the last token before the segment
    places_BP = (segment.context_length[:, None] - 1 - back).clamp(min=0)
    tokens_BP = segment.context.gather(1, places_BP).where(back < known_B1, start_token_id)
    begins_BP = (back == known_B1) & (every_start | (known_B1 == 0))
    return tokens_BP, (back < known_B1) | begins_BP


def causal_mask(seen_BL: torch.Tensor | None) -> torch.Tensor | None:
    """Which key a query sees, bool [B, 1, L, L]: what is there and not after it, and itself; None: plain causal."""
    if seen_BL is None:
        return None
    length = seen_BL.shape[1]
    at = torch.arange(length, device=seen_BL.device)
    before_LL, same_LL = at[:, None] >= at, at[:, None] == at
    return ((before_LL & seen_BL[:, None, :]) | same_LL)[:, None]
