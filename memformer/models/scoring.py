# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How the targets of a segment are scored, whichever model gave the logits.

Shapes: B lanes, S tokens a segment, V vocabulary.
"""

import torch
import torch.nn.functional as F

from memformer.replay.segment import Segment

IGNORE = -100
"""cross_entropy's mark of a target that does not count."""


def scored_targets(segment: Segment) -> torch.Tensor:
    """The segment's targets, int64 [B, S], with `IGNORE` beyond the valid length."""
    target_BS = segment.target
    valid_BS = torch.arange(target_BS.shape[1], device=target_BS.device) < segment.target_length[:, None]
    return target_BS.masked_fill(~valid_BS, IGNORE)


def token_losses(logits_BSV: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Negative log-likelihood of each target in nats, [B, S], 0 beyond the valid length; at least float32."""
    if logits_BSV.dtype in (torch.bfloat16, torch.float16):
        logits_BSV = logits_BSV.float()
    targets = scored_targets(segment)
    flat = F.cross_entropy(logits_BSV.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view_as(targets)


def all_logits(logits: torch.Tensor) -> torch.Tensor:
    """The logits as they are: of a model whose head gives those of all ids."""
    return logits
