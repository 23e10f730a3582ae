# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentCache`: keys and values of the segment that is being read, of documents that may be at different places.

It is as large as one segment's inputs and is written in place, so that reading on costs no memory. It also stands in
the place of transformers' own caches: a layer asks for no more of a cache than `update`.

Shapes: B documents, R of them that are run, H heads of keys, n new inputs, L inputs so far, E size of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch


class Places:
    """Where the next inputs of some documents stand, and what they see.

    Args:
        batch_size: Documents B in all.
        rows: Which of them are run, R numbers in ascending order.
        starts: Inputs of each that were run before, R numbers.
        lengths: New inputs of each, R numbers of 1 or more; shorter ones are padded behind.
        device: Where they are.

    Attributes:
        index: The rows, int64 [R]; None: all documents.
        at: The inputs' places, int64 [R, n], or [1, n] where all rows are at one place.
        stop: L: the most inputs that any row has after these.
        mask: What each input sees, bool [R or 1, 1, n, L]; None: all of them, or, of a first run, causally.
        causal: Whether None means causally.
    """

    def __init__(
        self, batch_size: int, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int], device: torch.device
    ) -> None:
        count, self.stop = max(lengths), max(map(sum, zip(starts, lengths, strict=True)))
        self.index = None if len(rows) == batch_size else torch.tensor(list(rows), device=device)
        self.together = len(set(starts)) == 1 and len(set(lengths)) == 1
        self.start = starts[0]
        if self.together:
            self.at = torch.arange(self.start, self.stop, device=device)[None]
        else:
            # Padding stands at places that there are: it is embedded and rotated, but nothing is made of it.
            first_R1 = torch.tensor(list(starts), device=device)[:, None]
            self.at = (first_R1 + torch.arange(count, device=device)).clamp(max=self.stop - 1)
        self.causal = self.together and self.start == 0 and count > 1
        self.mask: torch.Tensor | None = None
        if not self.together or (count > 1 and self.start):
            self.mask = (torch.arange(self.stop, device=device) <= self.at[..., None])[:, None]
        if not self.together:
            new = [(r, j) for r, length in enumerate(lengths) for j in range(length)]
            self._from = tuple(torch.tensor(each, device=device) for each in zip(*new, strict=True))
            self._to = (torch.tensor([rows[r] for r, _ in new], device=device), self.at[self._from])
            self._last = torch.tensor(lengths, device=device) - 1

    def last(self, x_RnD: torch.Tensor) -> torch.Tensor:
        """What stands at the last input of each row, [R, D]."""
        if self.together:
            return x_RnD[:, -1]
        return x_RnD[torch.arange(len(x_RnD), device=x_RnD.device), self._last]

    def write(self, room_BHLE: torch.Tensor, new_RHnE: torch.Tensor) -> torch.Tensor:
        """Puts the new inputs' keys or values where they belong; those of all inputs so far, [R, H, L, E]."""
        if not self.together:
            # Padding is left out: behind a document's end its room stays finite and unseen.
            lanes, places = self._to
            row, number = self._from
            room_BHLE[lanes, :, places] = new_RHnE[row, :, number]
        elif self.index is None:
            room_BHLE[:, :, self.start : self.stop] = new_RHnE
        else:
            room_BHLE[self.index, :, self.start : self.stop] = new_RHnE
        return room_BHLE[:, :, : self.stop] if self.index is None else room_BHLE[self.index, :, : self.stop]


class FixedPlaces:
    """Where one more input of some documents stands, at shapes that stay whatever was read; as `Places`.

    All documents are run, and the whole room is given with a mask: what `models.graphed` records is right for every
    place. Of the others nothing is kept.

    Args:
        starts_B: Inputs of each document that were run before, int64.
        moves_B: Whether a document has one more, bool.
        capacity: L: the inputs that there is room for.
    """

    causal = False

    def __init__(self, starts_B: torch.Tensor, moves_B: torch.Tensor, capacity: int) -> None:
        starts_B = starts_B.clamp(max=capacity - 1)
        self.at = starts_B[:, None]
        places = torch.arange(capacity, device=starts_B.device)
        self.mask = (places <= self.at[..., None])[:, None]
        self._lanes, self._starts, self._moves = torch.arange(len(starts_B), device=starts_B.device), starts_B, moves_B

    def last(self, x_B1D: torch.Tensor) -> torch.Tensor:
        """What stands at the input of each document, [B, D]."""
        return x_B1D[:, -1]

    def write(self, room_BHLE: torch.Tensor, new_BH1E: torch.Tensor) -> torch.Tensor:
        """Puts the new inputs' keys or values where they belong; the room."""
        put(room_BHLE.transpose(1, 2), self._lanes, self._starts, new_BH1E[:, :, 0], self._moves)
        return room_BHLE


def put(
    room: torch.Tensor, lanes_B: torch.Tensor, places_B: torch.Tensor, new: torch.Tensor, moves_B: torch.Tensor
) -> None:
    """room[b, places[b]] = new[b] for the lanes b that move: [B, L, ...] and [B, ...], without waiting for a device."""
    moves = moves_B.view(-1, *[1] * (new.dim() - 1))
    room[lanes_B, places_B] = torch.where(moves, new, room[lanes_B, places_B])


class SegmentCache:
    """Keys and values of one segment.

    Args:
        batch_size: Documents B.
        capacity: Inputs of a segment at most.
    """

    def __init__(self, batch_size: int, capacity: int) -> None:
        self.batch_size, self.capacity = batch_size, capacity
        self._rooms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._places: Places | FixedPlaces | None = None

    def place(self, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Places:
        """Says whose inputs come next, as `Places` has them, for the updates of all layers that follow."""
        places = self._places = Places(self.batch_size, rows, starts, lengths, device)
        return places

    def place_one(self, starts_B: torch.Tensor, moves_B: torch.Tensor) -> FixedPlaces:
        """Says that one more input of some documents comes next, as `FixedPlaces` has them."""
        places = self._places = FixedPlaces(starts_B, moves_B, self.capacity)
        return places

    def update(
        self, keys_RHnE: torch.Tensor, values_RHnE: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds those of a layer's next inputs.

        Args:
            keys_RHnE: Of the next inputs.
            values_RHnE: Of the next inputs.
            layer_idx: The layer.

        Returns:
            Those of all its inputs so far, each [R, H, L, E]; where all documents are run, views of what the next call
            goes on in.
        """
        assert self._places is not None
        if layer_idx not in self._rooms:
            self._rooms[layer_idx] = (self._room(keys_RHnE), self._room(values_RHnE))
        keys, values = self._rooms[layer_idx]
        return self._places.write(keys, keys_RHnE), self._places.write(values, values_RHnE)

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, since what is masked is multiplied by a weight of 0, and 0 times what lay in memory may be NaN.
        return like.new_zeros(self.batch_size, like.shape[1], self.capacity, like.shape[3])

    def tensors(self) -> list[torch.Tensor]:
        """All that it holds."""
        return [each for pair in self._rooms.values() for each in pair]
