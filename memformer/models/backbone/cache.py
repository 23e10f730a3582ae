# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentCache`: the keys and values of the segment that is being read, in the place of transformers' own caches.

It is as large as one segment's inputs and is written in place, so that reading on costs no memory; a layer asks for no
more of a cache than `update`.

Shapes: B documents, H heads of keys, n new inputs, L inputs so far, E size of a head.
"""

from typing import Any

import torch


class SegmentCache:
    """Keys and values of one segment.

    Args:
        capacity: Inputs of a segment at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._keys_values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._filled: dict[int, int] = {}

    def clear(self) -> None:
        """A new segment begins, in the same memory."""
        self._filled = {}

    def update(
        self, keys_BHnE: torch.Tensor, values_BHnE: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds those of a layer's next inputs.

        Args:
            keys_BHnE: Of the next inputs.
            values_BHnE: Of the next inputs.
            layer_idx: The layer.

        Returns:
            Those of all its inputs so far, each [B, H, L, E]; views of what the next call goes on in.
        """
        if layer_idx not in self._keys_values:
            self._keys_values[layer_idx] = (self._room(keys_BHnE), self._room(values_BHnE))
        start = self._filled.get(layer_idx, 0)
        stop = self._filled[layer_idx] = start + keys_BHnE.shape[2]
        keys, values = self._keys_values[layer_idx]
        keys[:, :, start:stop] = keys_BHnE
        values[:, :, start:stop] = values_BHnE
        return keys[:, :, :stop], values[:, :, :stop]

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(like.shape[0], like.shape[1], self.capacity, like.shape[3])

    @property
    def num_bytes(self) -> int:
        """What it holds, in bytes."""
        return sum(each.numel() * each.element_size() for pair in self._keys_values.values() for each in pair)
