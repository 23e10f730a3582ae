# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A look into the memory while training: is it used, does it collapse?"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from memformer.inference.inspection import KEPT, OVERWRITTEN
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.looking import Figure, Looked
from memformer.models.protocol import Looking, MemoryModel
from memformer.models.registry import family_of
from memformer.processes.group import all_sum
from memformer.replay import Carry, Segment

Figures = dict[str, float | list[float]]


@torch.no_grad()
def memory_diagnostics(
    model: MemoryModel,
    carry: Carry,
    total: Callable[[torch.Tensor], torch.Tensor] = all_sum,
    read: tuple[Segment, torch.Tensor] | None = None,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
) -> Figures:
    """How the writer treats the memory.

    A model whose family has `look` reads and writes `read` for it; of others it is looked at what they would write of
    the segment that comes next. Called by all processes; the figures are over all of their lanes that read a document.

    Args:
        model: The model; put into evaluation mode for the time.
        carry: Of its lanes.
        total: Sums over the replicas.
        read: A segment, and the memory before it; None: nothing for `look` to read.
        autocast: Of the training, in which is read: what is frozen may be stored in another precision.

    Returns:
        Of a memory of slots
        slot_norm: mean L2 norm of a slot (1 by construction); slot_cosine: mean cosine between two slots of a lane
        (towards 1: collapsed); self_weight: the writer's mean weight of a slot on itself; retention: how much of a
        slot is left after the write and its forgetting (`inspection.DEFINITIONS`); kept_share and overwritten_share:
        slots with a retention above 0.8 and below 0.2. Then what `Family.look` names, a list where it is by layer.
    """
    look = family_of(model.config).look
    if look is not None:
        if read is None:
            return {}
        with evaluation_mode(model), autocast or contextlib.nullcontext():
            looked: Looked = model.look(*read) if isinstance(model, Looking) else look(model, *read)
        live = read[0].target_length > 0
        slots = {} if looked.slots is None else _slot_figures(looked.slots, live)
        return pooled(slots | looked.figures, live, total)
    live = carry.length > 0
    no_reset = torch.zeros_like(live)
    segment = Segment(carry.tokens, carry.length, carry.tokens, carry.length, no_reset, carry.ragged)
    with evaluation_mode(model), autocast or contextlib.nullcontext():
        found = model.self_weights(segment, carry.memory)
    return {} if found is None else pooled(_slot_figures(found, live), live, total)


def _slot_figures(found: tuple[torch.Tensor, ...], live: torch.Tensor) -> dict[str, Figure]:
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
    return {name: Figure(value, torch.ones_like(value)) for name, value in per_lane.items()}


def pooled(
    figures: Mapping[str, Figure],
    live: torch.Tensor,
    total: Callable[[torch.Tensor], torch.Tensor] = all_sum,
) -> Figures:
    """The figures over all lanes that read a document, of all processes.

    Args:
        figures: Of this process's lanes.
        live: Which of its lanes read one, bool [B].
        total: Sums over the replicas.
    """

    def sums(values: torch.Tensor) -> torch.Tensor:
        lanes = live if values.ndim == 1 else live[:, None]
        return torch.where(lanes, values, 0).double().sum(0).reshape(-1)

    local = [sums(each) for figure in figures.values() for each in (figure.part, figure.whole)]
    every = torch.split(total(torch.cat(local)).cpu(), [len(each) for each in local]) if local else ()
    found: Figures = {}
    for (name, figure), part, whole in zip(figures.items(), every[::2], every[1::2], strict=True):
        ratio = torch.where(whole > 0, part / whole, 0.0)
        values: list[float] = (ratio.sqrt() if figure.squares else ratio).tolist()
        found[name] = values if figure.part.ndim == 2 else values[0]
    return found


def has_slots(model: MemoryModel) -> bool:
    """Whether a model is for `MemoryInspector`, which also says what it misses; else it is for `Family.look`."""
    family = family_of(model.config)
    if family.look is None:
        return True
    return family.inspect is not None and family.inspect(model) is not None
