# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A fixed input whose losses tell whether two sets of weights are the same model."""

import torch

from memformer.models.protocol import MemoryModel
from memformer.replay import Segment

SEGMENTS, LENGTH, LANES = 3, 16, 2


@torch.no_grad()
def probe(model: MemoryModel, device: torch.device) -> list[float]:
    """Losses in nats of 3 segments of 16 fixed tokens in 2 lanes, through the memory; float32, no autocast.

    The memory after two segments reaches the third's losses, so every parameter takes part.
    """
    vocabulary = model.config.vocab_size or 1
    tokens = torch.arange(SEGMENTS * LANES * LENGTH, device=device).view(SEGMENTS, LANES, LENGTH) * 7919 % vocabulary
    full = torch.full((LANES,), LENGTH, device=device)
    memory = model.initial_memory(LANES).clone()
    losses = []
    # Layers that were compiled for training are not compiled again for these shapes: a save would wait for it.
    with torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
        for t in range(SEGMENTS):
            first = torch.full_like(full, t == 0, dtype=torch.bool)
            segment = Segment(tokens[max(t - 1, 0)], full, tokens[t], full, first)
            each, memory = model.losses(segment, memory)
            losses.append(each)
    return [round(value, 6) for value in torch.stack(losses).flatten().tolist()]
