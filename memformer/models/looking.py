# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Looked`: what a family shows of one read and one write of its memory, whatever that memory is.

Shapes: B lanes, M things written a segment, P features of a key, D width, [K, C] a lane's memory, n layers or readers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Figure(NamedTuple):
    """A figure as two sums of each lane, so that lanes, processes and segments are pooled by adding.

    Attributes:
        part: [B], or [B, n] of a figure by layer.
        whole: The same shape; the figure is the sum of the parts divided by that of the wholes, 0 where that is 0.
        squares: Both are sums of squares, and the figure is the root of their ratio.
    """

    part: torch.Tensor
    whole: torch.Tensor
    squares: bool = False


class Association(NamedTuple):
    """What a segment wrote into one layer's memory.

    Attributes:
        keys: Features, [B, M, P].
        values: [B, M, D].
        recall: (keys [B, M, P], memory [B, K, C]) -> the values [B, M, D] that this layer reads there.
    """

    keys: torch.Tensor
    values: torch.Tensor
    recall: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Looked(NamedTuple):
    """One segment that was read and written.

    Attributes:
        memory: The next memory, [B, K, C].
        figures: By name, for `memory.NAME` of metrics.jsonl.
        slots: As of `protocol.MemoryModel.self_weights`; None: the memory has no slots of that kind.
        associations: By layer; empty where the memory has no keys.
    """

    memory: torch.Tensor
    figures: dict[str, Figure]
    slots: tuple[torch.Tensor, ...] | None = None
    associations: tuple[Association, ...] = ()
