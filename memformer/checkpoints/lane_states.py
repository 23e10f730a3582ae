# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The carries of this process's lanes, and of documents that wait for a lane; how they are saved and moved.

A carry is a lane's memory and previous segment. It belongs to a document, so it follows the document when the lanes
are dealt out anew: to another process, to another lane, or into a waiting line when there are fewer lanes than
before (`data_pipeline.plan` decides; its row numbers are used here). Waiting carries are few and short-lived, and
every process keeps all of them, in host memory.

    CHECKPOINT/lanes/rank-00000.safetensors   memory [B, K, D], tokens [B, S], length [B] of a replica's lanes
    CHECKPOINT/lanes/waiting.safetensors      the same of waiting documents; absent if none wait. Their row numbers
                                              stand there as slots [W], the name that saved runs have
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from data_pipeline.reading import lanes_of
from memformer.replay import Carry

WAITING = "waiting.safetensors"
_FIELDS = ("memory", "tokens", "length")

CarryRow = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Memory [K, D], tokens [S] and length [] of one carry; which row it has among all of a run is the plan's business."""


@dataclasses.dataclass(frozen=True)
class LaneStates:
    """Carries between two rollouts.

    Attributes:
        carry: Of this process's lanes.
        waiting: Of documents that wait for a lane, by row; on the CPU, the same on all processes.
    """

    carry: Carry
    waiting: Mapping[int, CarryRow] = dataclasses.field(default_factory=dict)

    def before(self, carry_from: NDArray[np.int64]) -> Carry:
        """The carry that a rollout starts from: lanes that take a waiting document take its carry.

        Args:
            carry_from: The batch's, [lanes]: a row of `waiting`, or -1.
        """
        taken = [(lane, self.waiting[int(row)]) for lane, row in enumerate(carry_from.tolist()) if row >= 0]
        if not taken:
            return self.carry
        tensors = [getattr(self.carry, name).clone() for name in _FIELDS]
        for lane, values in taken:
            for tensor, value in zip(tensors, values, strict=True):
                tensor[lane] = value
        ragged = any(int(length) < tokens.numel() for _, (_, tokens, length) in taken)
        return Carry(tensors[0], tensors[1], tensors[2], self.carry.ragged or ragged)

    def after(self, carry: Carry, rows: Sequence[int] | NDArray[np.int64]) -> "LaneStates":
        """The state after a rollout; `rows` are the stream's `carry_rows`: who still waits."""
        if not self.waiting:
            return LaneStates(carry)
        kept = set(map(int, rows))
        return LaneStates(carry, {row: values for row, values in self.waiting.items() if row in kept})

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
        sources: The stream's `carry_sources`: for each row now in use, the saved row or -1.
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

    def saved(row: int) -> CarryRow:
        if row < saved_lanes:
            rank = next(rank for rank, block in enumerate(blocks) if block.start <= row < block.stop)
            tensors, index = tensors_of(f"rank-{rank:05d}.safetensors"), row - blocks[rank].start
        else:
            tensors = tensors_of(WAITING)
            index = tensors["slots"].tolist().index(row)
        memory, context, length = (tensors[name][index].clone() for name in _FIELDS)
        return memory, *_fitted(context, length, segment_length)

    carry = empty(own.stop - own.start)
    segment_length = carry.tokens.shape[1]
    tensors = [getattr(carry, name).clone() for name in _FIELDS]
    for lane, source in enumerate(sources[own.start : own.stop]):
        if source >= 0:
            values = saved(int(source))
            tensors[0] = tensors[0].to(values[0].dtype)  # of the precision that the run was saved in
            for tensor, value in zip(tensors, values, strict=True):
                tensor[lane] = value
    ragged = bool((tensors[2] < tensors[1].shape[1]).any())
    waiting = {num_lanes + i: saved(int(source)) for i, source in enumerate(sources[num_lanes:])}
    return LaneStates(Carry(tensors[0], tensors[1], tensors[2], ragged), waiting)


def _fitted(tokens: torch.Tensor, length: torch.Tensor, segment_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A previous segment [S] and its length [] where segments are now longer (it stays short) or shorter (its end)."""
    kept = tokens[: int(length)][-segment_length:]
    room = torch.zeros(segment_length, dtype=tokens.dtype)
    room[: len(kept)] = kept
    return room, torch.full_like(length, len(kept))
