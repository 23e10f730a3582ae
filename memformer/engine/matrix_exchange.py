# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Whole matrices, made of the pieces that ZeRO and tensor parallelism leave of them, worked on, and taken apart again.

Every process is the owner of some matrices. It gets their pieces from all processes of its stage, works on the whole
ones, and sends each process the pieces of the result that this one steps: two exchanges a round, in which every element
travels once each way. So the work on matrices is spread over the processes, as their memory is.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from memformer.engine.fragments import Region
from memformer.engine.parameter_state import Piece
from memformer.processes.topology import Axis

ROUND = 2**26
"""Elements of matrices that a process has at a time, unless a single one is larger."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A piece of any process: of which matrix, which elements, and in which of the flat tensors it lies."""

    name: str
    region: Region
    flat: int

    @property
    def numel(self) -> int:
        return self.region.stop - self.region.start


@dataclasses.dataclass(frozen=True)
class _Round:
    """What this process sends and gets; each list has an entry for each process.

    Attributes:
        shapes: Of the matrices that it owns, by name.
        given: Its own pieces that it sends, by their numbers.
        gathered: The parts that it gets for its matrices.
        wanted: The parts of its matrices that it sends back.
        returned: Its own pieces that it gets back, by their numbers.
    """

    shapes: dict[str, tuple[int, ...]]
    given: list[list[int]]
    gathered: list[list[_Part]]
    wanted: list[list[_Part]]
    returned: list[list[int]]


class MatrixExchange:
    """The matrices among the parameters of a stage. Made, and called, by all processes of the axis together.

    Args:
        axis: The processes that the matrices are spread over.
        flats: The tensors that the optimizer steps, as many and in the same order on all of them.
        pieces: This process's pieces of the matrices, of which several processes may have the same.
        device: Where matrices are worked on and exchanged.
        dtype: What they are sent and worked on in.
    """

    def __init__(
        self,
        axis: Axis,
        flats: Sequence[torch.Tensor],
        pieces: Sequence[Piece],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._axis, self._device, self._dtype = axis, device, dtype
        self._numbers = {flat: number for number, flat in enumerate(flats)}
        self._pieces = list(pieces)
        own = [_Part(piece.name, piece.region, self._numbers[piece.flat]) for piece in self._pieces]
        self._parts: list[list[_Part]] = axis.gather(own)
        self._rounds: dict[frozenset[int], list[_Round]] = {}

    def work(
        self,
        flats: Sequence[torch.Tensor],
        give: Callable[[Piece], torch.Tensor],
        work: Callable[[torch.Tensor], torch.Tensor],
        take: Callable[[Piece, torch.Tensor], None],
    ) -> None:
        """Has every matrix worked on that lies in some of the flat tensors.

        Args:
            flats: Some of those that the exchange was made with.
            give: What is sent of one of this process's pieces, [elements].
            work: A whole matrix -> another of its shape.
            take: Gets the result for each of this process's pieces, [elements], where matrices are worked on.
        """
        numbers = frozenset(self._numbers[flat] for flat in flats)
        if numbers not in self._rounds:
            self._rounds[numbers] = self._planned(numbers)
        for each in self._rounds[numbers]:
            given = [give(self._pieces[i]).to(self._device, self._dtype) for own in each.given for i in own]
            found = self._swapped(given, self._own_sizes(each.given), _sizes(each.gathered))
            whole = {
                name: torch.empty(shape, dtype=self._dtype, device=self._device) for name, shape in each.shapes.items()
            }
            for part, values in _split(each.gathered, found):
                for area, stretch in _areas(part.region, whole[part.name], values):
                    area.copy_(stretch)
            whole = {name: work(matrix) for name, matrix in whole.items()}
            sent = []
            for part in (part for parts in each.wanted for part in parts):
                values = torch.empty(part.numel, dtype=self._dtype, device=self._device)
                for area, stretch in _areas(part.region, whole[part.name], values):
                    stretch.copy_(area)
                sent.append(values)
            del whole
            back = self._swapped(sent, _sizes(each.wanted), self._own_sizes(each.returned))
            pieces = [self._pieces[i] for own in each.returned for i in own]
            for piece, values in zip(pieces, _cut(back, [_numel(piece.region) for piece in pieces]), strict=True):
                take(piece, values)

    def _own_sizes(self, numbers: list[list[int]]) -> list[int]:
        return [sum(_numel(self._pieces[i].region) for i in own) for own in numbers]

    def _swapped(self, tensors: list[torch.Tensor], sent: list[int], received: list[int]) -> torch.Tensor:
        values = torch.cat([torch.empty(0, dtype=self._dtype, device=self._device), *tensors])
        if self._axis.size == 1:
            return values
        found = values.new_empty(sum(received))
        dist.all_to_all_single(found, values, received, sent, group=self._axis.group)
        return found

    def _planned(self, numbers: frozenset[int]) -> list[_Round]:
        """The rounds for some of the flat tensors, from what is the same on all processes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for part in (part for parts in self._parts for part in parts if part.flat in numbers):
            shapes[part.name] = part.region.shape
        rounds, names, size = [], list[str](), 0
        for name in sorted(shapes):
            if names and size + math.prod(shapes[name]) > ROUND * self._axis.size:
                rounds.append(self._round(names, shapes))
                names, size = [], 0
            names.append(name)
            size += math.prod(shapes[name])
        return [*rounds, self._round(names, shapes)] if names else rounds

    def _round(self, names: list[str], shapes: dict[str, tuple[int, ...]]) -> _Round:
        ranks, me = range(self._axis.size), self._axis.rank
        owners = _owners({name: shapes[name] for name in names}, self._axis.size)
        first: list[list[_Part]] = []  # of several processes that have the same piece one sends it
        seen: set[tuple[str, Region]] = set()
        for parts in self._parts:
            first.append([part for part in parts if (part.name, part.region) not in seen])
            seen |= {(part.name, part.region) for part in parts}

        def own(parts: list[_Part], owner: int) -> list[int]:
            """Numbers of this process's pieces among the parts, of an owner's matrices."""
            kept = set(parts)
            return [i for i, part in enumerate(self._parts[me]) if part in kept and owners.get(part.name) == owner]

        def mine(parts: list[_Part]) -> list[_Part]:
            return [part for part in parts if owners.get(part.name) == me]

        return _Round(
            {name: shapes[name] for name in names if owners[name] == me},
            given=[own(first[me], rank) for rank in ranks],
            gathered=[mine(first[rank]) for rank in ranks],
            wanted=[mine(self._parts[rank]) for rank in ranks],
            returned=[own(self._parts[me], rank) for rank in ranks],
        )


def _owners(shapes: dict[str, tuple[int, ...]], ranks: int) -> dict[str, int]:
    """Which process works on which matrix: each in turn, the dearest first, on the one that has least to do."""
    costs = {name: min(shape) * math.prod(shape) for name, shape in shapes.items()}
    busy, owners = [0] * ranks, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = busy.index(min(busy))
        busy[owners[name]] += costs[name]
    return owners


def _numel(region: Region) -> int:
    return region.stop - region.start


def _sizes(parts: list[list[_Part]]) -> list[int]:
    return [sum(part.numel for part in each) for each in parts]


def _cut(values: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, ...]:
    return torch.split(values, sizes)


def _split(parts: list[list[_Part]], values: torch.Tensor) -> list[tuple[_Part, torch.Tensor]]:
    flat = [part for each in parts for part in each]
    return list(zip(flat, _cut(values, [part.numel for part in flat]), strict=True))


def _areas(region: Region, whole: torch.Tensor, values: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Areas of a matrix, and the stretches of a piece that are the same numbers: views of both."""
    found = []
    for each in region.rectangles():
        area = whole[each.top : each.bottom, each.left : each.right]
        found.append((area, values[each.offset : each.offset + area.numel()].view_as(area)))
    return found
