# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Perturbation`: how long a moved memory stays moved, beside how long it should by what each write retains.

Memories that differ from the document's in one slot, or in all, read the same segments side by side, in lanes. A lane
ends where its difference has died away, so a memory that forgets costs a few writes and not the whole horizon; of many
slots some, evenly spread, are moved alone.

Shapes: B lanes, K slots, D width, H writer heads, S tokens a segment.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from memformer.models.protocol import MemoryModel
from memformer.replay import Segment

LANES = 16  # memories that are carried side by side
DIED = 1e-3  # of a difference's start: what is less is followed no further
MOVED_ALONE = 32  # slots at most; of more, as many evenly spread


class Perturbation:
    """Follows moved memories through the writes of a document.

    Args:
        model: In evaluation mode.
        memory_1KD: The document's memory before the first write that is followed.
        size: Of the move: a slot m becomes normalise(m + size * r), r a random unit vector.
        horizon: Writes that are followed at most.
        at_write: Number of the first.
        seed: Of the direction.
    """

    def __init__(
        self, model: MemoryModel, memory_1KD: torch.Tensor, *, size: float, horizon: int, at_write: int, seed: int
    ) -> None:
        self.model, self.size, self.horizon, self.at_write = model, size, horizon, at_write
        slots = memory_1KD.shape[1]
        generator = torch.Generator().manual_seed(seed)
        noise_KD = F.normalize(torch.randn(memory_1KD.shape[1:], generator=generator), dim=-1).to(memory_1KD)
        moved_KD = F.normalize(memory_1KD[0] + size * noise_KD, dim=-1)
        chosen = np.linspace(0, slots - 1, min(slots, MOVED_ALONE)).round().astype(int)
        self.slots: list[int] = chosen.tolist()
        # Row 0: all slots moved, each by its own vector; row 1 + i: slot `slots[i]` alone, by the same vector.
        alone_RK = F.one_hot(torch.tensor(self.slots, device=memory_1KD.device), slots).bool()
        self._moved_RKD = torch.cat([moved_KD[None], torch.where(alone_RK[..., None], moved_KD, memory_1KD)])
        self._followed = list(range(1 + len(self.slots)))  # the rows that are left
        self._distances: list[list[float]] = [[] for _ in self._followed]
        self._difference_KD = (moved_KD - memory_1KD[0]).double()
        self._left_HK: torch.Tensor | None = None
        self._expected_K = [self._difference_KD.norm(dim=-1)]
        self._measure(memory_1KD)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to follow."""
        return not self._followed or len(self._expected_K) > self.horizon

    def follow(self, segment: Segment, retained_HK: torch.Tensor, after_1KD: torch.Tensor) -> None:
        """One write: what it reads, what it leaves of each slot by head, and the document's memory after it."""
        parts = torch.split(self._moved_RKD, LANES)
        self._moved_RKD = torch.cat([self.model.advance(_repeated(segment, len(part)), part) for part in parts])
        if self._left_HK is None:
            self._left_HK = self._difference_KD.view(len(self._difference_KD), len(retained_HK), -1).norm(dim=-1).T
        self._left_HK = self._left_HK * retained_HK.double()
        self._expected_K.append(self._left_HK.norm(dim=0))
        self._measure(after_1KD)

    def _measure(self, memory_1KD: torch.Tensor) -> None:
        """Notes each difference, and drops the rows where it has died away."""
        distances = (self._moved_RKD - memory_1KD).double().flatten(1).norm(dim=1).tolist()
        for row, distance in zip(self._followed, distances, strict=True):
            self._distances[row].append(distance)
        alive = [place for place, row in enumerate(self._followed) if not self._died(row)]
        if len(alive) < len(self._followed):
            self._followed, self._moved_RKD = [self._followed[place] for place in alive], self._moved_RKD[alive]

    def _died(self, row: int) -> bool:
        return self._distances[row][-1] < DIED * self._distances[row][0]

    def report(self) -> dict[str, Any]:
        """The norms by writes since the move, measured and expected; of a slot that was not moved alone None."""
        expected_NK = torch.stack(self._expected_K).cpu()
        all_slots, *each = self._distances
        alone, slots = dict(zip(self.slots, each, strict=True)), range(expected_NK.shape[1])
        expected = {slot: expected_NK[: len(found), slot].tolist() for slot, found in alone.items()}
        expected_all = expected_NK.norm(dim=1)[: len(all_slots)].tolist()
        return {
            "at_write": self.at_write,
            "size": self.size,
            "horizon": self.horizon,
            "all_slots": all_slots,
            "each_slot": [alone.get(slot) for slot in slots],
            "half_life_all_slots": half_life(all_slots),
            "half_life_each_slot": [half_life(alone[slot]) if slot in alone else None for slot in slots],
            "expected_all_slots": expected_all,
            "expected_each_slot": [expected.get(slot) for slot in slots],
            "half_life_expected": half_life(expected_all),
        }


def half_life(distances: Sequence[float]) -> int | None:
    """Writes until less than half of the first distance is left; None: more than there are."""
    return next((step for step, distance in enumerate(distances) if distance < distances[0] / 2), None)


def _repeated(segment: Segment, lanes: int) -> Segment:
    """The segment of one lane in several lanes."""
    context, context_length, target, target_length, reset = (x.expand(lanes, *x.shape[1:]) for x in segment[:5])
    return Segment(context, context_length, target, target_length, reset, segment.ragged, segment.short)
