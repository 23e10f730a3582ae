# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SlotWriter`: what can be looked at in a model whose memory is slots that attend, and that a writer overwrites.

Shapes: K slots, C width of a slot (each head's C/H of it side by side), H heads of the writer, S tokens a segment.
"""

from typing import Any, Protocol

import torch

from memformer.replay.segment import Segment


class SlotWriter(Protocol):
    """A model's writer, one segment of one lane at a time.

    Attributes:
        reads_targets: Whether a write reads the targets of a segment, with its context before them; else the context
            alone, which is the start token before a document's first segment.
    """

    reads_targets: bool

    def write(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reads a segment's context with the memory [1, K, C], and writes.

        Returns:
            The weights of each slot on [itself ; every token of the context], [H, K, 1 + S]; what is left of a
            difference in a head's part of a slot after the write, forgetting included, [H, K]; the next memory.
        """

    def bias_norms(self) -> list[float] | None:
        """L2 norm of what each slot decays to; None where this process does not hold it (ZeRO-3)."""

    def facts(self) -> dict[str, Any]:
        """Settings of the memory, for the report."""
