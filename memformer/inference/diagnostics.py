# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A look into the memory while training: is it used, does it collapse?"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from data_pipeline import SegmentBatch, Tokenizer
from memformer.inference.inspection import KEPT, OVERWRITTEN, MemoryInspector
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.processes.group import all_sum, from_main
from memformer.replay import Carry, Segment

INSPECTED_SEGMENTS, INSPECTED_HORIZON = 48, 16


@torch.no_grad()
def memory_diagnostics(
    model: MemoryModel, carry: Carry, total: Callable[[torch.Tensor], torch.Tensor] = all_sum
) -> dict[str, float]:
    """How the writer treats the slots of the segment that comes next.

    Called by all processes; the means are over all of their lanes that read a document. `total` sums over the
    replicas.

    Returns:
        slot_norm: mean L2 norm of a slot (1 by construction); slot_cosine: mean cosine between two slots of a lane
        (towards 1: collapsed); self_weight: the writer's mean weight of a slot on itself; retention: how much of a
        slot is left after the write and its forgetting (`inspection.DEFINITIONS`); kept_share and overwritten_share:
        slots with a retention above 0.8 and below 0.2. Empty for a model without memory slots.
    """
    live = carry.length > 0
    no_reset = torch.zeros_like(live)
    segment = Segment(carry.tokens, carry.length, carry.tokens, carry.length, no_reset, carry.ragged)
    with evaluation_mode(model):
        found = model.self_weights(segment, carry.memory)
    if found is None:
        return {}
    own_BK, retained_BK, memory_BKD = found
    unit_BKD = torch.nn.functional.normalize(memory_BKD.float(), dim=-1)
    slots = memory_BKD.shape[1]
    cosine_B = (unit_BKD.sum(1).square().sum(-1) - slots) / max(1, slots * (slots - 1))
    per_lane = {
        "slot_norm": memory_BKD.float().norm(dim=-1).mean(1),
        "slot_cosine": cosine_B,
        "self_weight": own_BK.mean(1),
        "retention": retained_BK.mean(1),
        "kept_share": (retained_BK > KEPT).float().mean(1),
        "overwritten_share": (retained_BK < OVERWRITTEN).float().mean(1),
    }
    sums = torch.stack([*(torch.where(live, value, 0).sum() for value in per_lane.values()), live.sum()]).double()
    *totals, lanes = total(sums).tolist()
    return {name: total / max(1.0, lanes) for name, total in zip(per_lane, totals, strict=True)}


def inspected_memory(
    model: MemoryModel, batches: Iterable[SegmentBatch], tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """What `memformer inspect-memory` reports, on the beginning of the main process's first held-out document.

    Called by all processes, which compute the same: under ZeRO-3 each holds a part of the parameters.

    Args:
        model: The model; put into evaluation mode for the time.
        batches: Held-out segments, as for `evaluate`.
        tokenizer: The data set's.

    Returns:
        The report; None for a model without memory.
    """
    if family_of(model.config).inspect is None or not model.config.memory_shape[0]:
        return None
    found: list[np.ndarray[Any, Any]] = []
    ended = False
    for number, batch in enumerate(batches):
        # Every process takes as many batches as the others, which agree on each; the first lane's document ends where
        # the lane takes up another one, or idles.
        if number == INSPECTED_SEGMENTS:
            break
        ended = ended or (number > 0 and bool(batch.resets[0, 0])) or not batch.lengths[0, 0]
        if not ended:
            found.append(np.asarray(batch.tokens[0, 0, : batch.lengths[0, 0]]))
    tokens = from_main(np.concatenate(found) if found else None)
    if tokens is None:
        return None
    length = int(batch.tokens.shape[2])
    with evaluation_mode(model):
        inspector = MemoryInspector(model, tokenizer, len(tokens), horizon=INSPECTED_HORIZON, segment_length=length)
        inspector.read(tokens)
        return inspector.report()
