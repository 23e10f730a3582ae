# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The carries of this process's lanes, and of documents that wait for a lane; how they are saved and moved.

A carry is a lane's memory and previous segment. It belongs to a document, so it follows the document when the lanes
are dealt out anew: to another process, to another lane, or into a waiting line when there are fewer lanes than
before (`data_pipeline.plan` decides; its slot numbers are used here). Waiting carries are few and short-lived, and
every process keeps all of them, in host memory.

    CHECKPOINT/lanes/rank-00000.safetensors   memory [B, K, D], tokens [B, S], length [B] of a replica's lanes
    CHECKPOINT/lanes/waiting.safetensors      the same of waiting documents, and slots [W]; absent if none wait
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from data_pipeline.rollout import lanes_of
from memformer.replay import Carry

WAITING = "waiting.safetensors"
_FIELDS = ("memory", "tokens", "length")

Slot = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Memory [K, D], tokens [S] and length [] of one carry."""


@dataclasses.dataclass(frozen=True)
class LaneStates:
    """Carries between two rollouts.

    Attributes:
        carry: Of this process's lanes.
        waiting: Of documents that wait for a lane, by slot; on the CPU, the same on all processes.
    """

    carry: Carry
    waiting: Mapping[int, Slot] = dataclasses.field(default_factory=dict)

    def before(self, carry_from: NDArray[np.int64]) -> Carry:
        """The carry that a rollout starts from: lanes that take a waiting document take its carry.

        Args:
            carry_from: The batch's, [lanes]: a slot of `waiting`, or -1.
        """
        taken = [(lane, self.waiting[int(slot)]) for lane, slot in enumerate(carry_from.tolist()) if slot >= 0]
        if not taken:
            return self.carry
        tensors = [getattr(self.carry, name).clone() for name in _FIELDS]
        for lane, slot in taken:
            for tensor, value in zip(tensors, slot, strict=True):
                tensor[lane] = value
        ragged = any(int(slot[2]) < slot[1].numel() for _, slot in taken)
        return Carry(tensors[0], tensors[1], tensors[2], self.carry.ragged or ragged)

    def after(self, carry: Carry, slots: Sequence[int] | NDArray[np.int64]) -> "LaneStates":
        """The state after a rollout; `slots` are the stream's `carry_slots`: who still waits."""
        if not self.waiting:
            return LaneStates(carry)
        kept = set(map(int, slots))
        return LaneStates(carry, {slot: value for slot, value in self.waiting.items() if slot in kept})

    def tensors(self) -> dict[str, torch.Tensor]:
        """This process's lanes, for its file."""
        return {name: getattr(self.carry, name).detach() for name in _FIELDS}

    def waiting_tensors(self) -> dict[str, torch.Tensor]:
        """The waiting documents' carries, for their file; empty if none wait."""
        if not self.waiting:
            return {}
        columns = zip(*self.waiting.values(), strict=True)
        tensors = dict(zip(_FIELDS, map(torch.stack, columns), strict=True))
        return {**tensors, "slots": torch.tensor(list(self.waiting), dtype=torch.int64)}


def load_lanes(
    directory: Path,
    saved_lanes: int,
    saved_size: int,
    sources: Sequence[int] | NDArray[np.int64],
    own: slice,
    num_lanes: int,
    empty: Callable[[int], Carry],
) -> LaneStates:
    """Reads the carries that this process needs, wherever the saving processes put them.

    Args:
        directory: CHECKPOINT/lanes.
        saved_lanes: Lanes of the run that saved.
        saved_size: Its data-parallel processes.
        sources: The stream's `carry_sources`: for each slot now in use, the saved slot or -1.
        own: This process's lanes.
        num_lanes: Lanes now, of all processes.
        empty: Makes the carry of that many lanes which have read nothing, on the model's device.
    """
    blocks = [lanes_of(rank, saved_size, saved_lanes) for rank in range(saved_size)]
    open_files: dict[str, dict[str, torch.Tensor]] = {}

    def tensors_of(name: str) -> dict[str, torch.Tensor]:
        if name not in open_files:
            open_files[name] = load_file(directory / name)
        return open_files[name]

    def row(slot: int) -> Slot:
        if slot < saved_lanes:
            rank = next(rank for rank, block in enumerate(blocks) if block.start <= slot < block.stop)
            tensors, index = tensors_of(f"rank-{rank:05d}.safetensors"), slot - blocks[rank].start
        else:
            tensors = tensors_of(WAITING)
            index = tensors["slots"].tolist().index(slot)
        memory, tokens, length = (tensors[name][index].clone() for name in _FIELDS)
        return memory, tokens, length

    carry = empty(own.stop - own.start)
    tensors = [getattr(carry, name).clone() for name in _FIELDS]
    for lane, source in enumerate(sources[own.start : own.stop]):
        if source >= 0:
            values = row(int(source))
            tensors[0] = tensors[0].to(values[0].dtype)  # of the precision that the run was saved in
            for tensor, value in zip(tensors, values, strict=True):
                tensor[lane] = value
    ragged = bool((tensors[2] < tensors[1].shape[1]).any())
    waiting = {num_lanes + i: row(int(source)) for i, source in enumerate(sources[num_lanes:])}
    return LaneStates(Carry(tensors[0], tensors[1], tensors[2], ragged), waiting)
