# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A look into the memory while training: is it used, does it collapse?"""

from collections.abc import Callable

import torch

from memformer.distributed import all_sum
from memformer.model import Memformer, Segment
from memformer.replay import Carry

KEPT, OVERWRITTEN = 0.8, 0.2  # bounds of a slot's weight on itself


@torch.no_grad()
def memory_diagnostics(
    model: Memformer, carry: Carry, total: Callable[[torch.Tensor], torch.Tensor] = all_sum
) -> dict[str, float]:
    """How the writer treats the slots of the segment that comes next.

    Called by all processes; the means are over all of their lanes that read a document. `total` sums over the
    replicas.

    Returns:
        slot_norm: mean L2 norm of a slot (1 by construction); slot_cosine: mean cosine between two slots of a lane
        (towards 1: collapsed); self_attention: the writer's mean weight of a slot on itself; kept_share and
        overwritten_share: slots with that weight above 0.8 and below 0.2. Empty for a model without memory.
    """
    if model.writer is None:
        return {}
    training = model.training
    model.eval()
    live = carry.length > 0
    no_reset = torch.zeros_like(live)
    segment = Segment(carry.tokens, carry.length, carry.tokens, carry.length, no_reset, carry.ragged)
    x_BSD, mask_BS, memory_BKD = model.encode(segment, carry.memory)
    own_BK = model.writer.weights(memory_BKD, x_BSD, mask_BS)[..., 0].mean(dim=1)
    model.train(training)
    unit_BKD = torch.nn.functional.normalize(memory_BKD.float(), dim=-1)
    slots = memory_BKD.shape[1]
    cosine_B = (unit_BKD.sum(1).square().sum(-1) - slots) / max(1, slots * (slots - 1))
    per_lane = {
        "slot_norm": memory_BKD.float().norm(dim=-1).mean(1),
        "slot_cosine": cosine_B,
        "self_attention": own_BK.mean(1),
        "kept_share": (own_BK > KEPT).float().mean(1),
        "overwritten_share": (own_BK < OVERWRITTEN).float().mean(1),
    }
    sums = torch.stack([*(torch.where(live, value, 0).sum() for value in per_lane.values()), live.sum()]).double()
    *totals, lanes = total(sums).tolist()
    return {name: total / max(1.0, lanes) for name, total in zip(per_lane, totals, strict=True)}
