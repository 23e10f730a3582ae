# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerSlots`: the paper's memory as `inspect-memory` looks at it."""

from typing import Any

import torch

from memformer.models.memformer import computation
from memformer.models.memformer.model import Memformer
from memformer.replay.segment import Segment

FACTS = (
    "num_memory_slots",
    "effective_writer_heads",
    "memory_temperature",
    "memory_forgetting",
    "memory_write_threshold",
)


class MemformerSlots:
    """The writer of a Memformer (`models.slots.SlotWriter`).

    Args:
        model: With memory slots.

    Raises:
        ValueError: It has none.
    """

    reads_targets = False

    def __init__(self, model: Memformer) -> None:
        if model.writer is None:
            raise ValueError("the model has no memory (num_memory_slots is 0): there is nothing to inspect")
        self._model, self._writer = model, model.writer

    def write(self, segment: Segment, memory_1KD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The weights [H, K, 1 + S] and what is left of the slots [H, K], of all heads; the next memory."""
        x_1SD, mask_1S, memory_1KD = self._model.encode(segment, memory_1KD)
        found = computation.observe(self._writer, self._model.forget, memory_1KD, x_1SD, mask_1S)
        return found.weights_BHKL[0], found.retained_BHK[0], found.memory_BKD

    def bias_norms(self) -> list[float] | None:
        """Of the biased memory normalisation."""
        bias_KD = self._model.forget.bias
        if bias_KD.numel() == 0:
            return None
        norms: list[float] = bias_KD.detach().float().norm(dim=-1).tolist()
        return norms

    def facts(self) -> dict[str, Any]:
        """What decides how slots are written."""
        return {name: getattr(self._model.config, name) for name in FACTS}
