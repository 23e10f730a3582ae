# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Parameters put together again from pieces in several files, whoever cut them, and however.

A process that shares a layer with others has some rows or some columns of a matrix; ZeRO then cuts the flattened
result into consecutive elements. So a piece is a run of elements of a flattened block of the whole matrix (`Region`).
Where a reader asks for another such run, both fall into at most three rectangles each, and rectangles intersect.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open


@dataclasses.dataclass(frozen=True)
class _Rectangle:
    """Rows top .. bottom-1, columns left .. right-1 of the whole, which begin at element `offset` of the run."""

    top: int
    bottom: int
    left: int
    right: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Region:
    """Elements start .. stop-1 of a flattened block of a parameter.

    Attributes:
        shape: Of the whole parameter. It counts as a matrix: its first dimension, by all others.
        start: First element, counted in the block.
        stop: One past the last.
        rows: First row of the block and one past its last; None: all.
        columns: The same for columns.
    """

    shape: tuple[int, ...]
    start: int
    stop: int
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Region":
        """All of a parameter."""
        return cls(tuple(shape), 0, torch.Size(shape).numel())

    @property
    def block(self) -> tuple[int, int, int, int]:
        """First row, one past the last, first column, one past the last."""
        height = self.shape[0] if self.shape else 1
        width = torch.Size(self.shape[1:]).numel()
        return (*(self.rows or (0, height)), *(self.columns or (0, width)))

    def rectangles(self) -> Iterator[_Rectangle]:
        """The run as rectangles of the whole: a part of a row, whole rows of the block, a part of a row."""
        top, _, left, right = self.block
        width, at = right - left, self.start
        while at < self.stop:
            row, column = divmod(at, width)
            count = (self.stop - at) // width
            if column or not count:
                end = min(width, column + self.stop - at)
                yield _Rectangle(top + row, top + row + 1, left + column, left + end, at - self.start)
                at += end - column
            else:
                yield _Rectangle(top + row, top + row + count, left, right, at - self.start)
                at += count * width


class FragmentReader:
    """Flat tensors whose pieces lie in several files: key `KIND/NAME`, 1-D, with the place of each in the metadata.

    Args:
        files: The files, in any order. Their metadata's `starts` maps parameter names to the piece's first element;
            `blocks`, where there are any, to the block that it is an element of.

    Raises:
        ValueError: A file is no safetensors file, or its metadata is not that of fragments.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._pieces: dict[str, list[tuple[int, list[int] | None, Any]]] = {}
        self.steps: dict[str, float] = {}
        for path in files:
            try:
                # The file is mapped, not read: a piece costs memory only while it is looked at.
                opened: Any = safe_open(str(path), framework="pt")
                metadata = opened.metadata() or {}
                starts, blocks = json.loads(metadata["starts"]), json.loads(metadata.get("blocks", "{}"))
                self.steps.update(json.loads(metadata["steps"]))
                for key in opened.keys():  # noqa: SIM118  # it is no dictionary
                    name = key.partition("/")[2]
                    self._pieces.setdefault(key, []).append((int(starts[name]), blocks.get(name), opened))
            except (SafetensorError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: is not a file of parameter fragments ({error})") from None

    def kinds(self, name: str) -> list[str]:
        """What is stored of a parameter: weight, exp_avg, ..."""
        return [kind for kind, _, found in (key.partition("/") for key in self._pieces) if found == name]

    def names(self) -> set[str]:
        """The parameters of which there is anything."""
        return {key.partition("/")[2] for key in self._pieces}

    def read(self, kind: str, name: str, region: Region) -> torch.Tensor:
        """The elements of a region, 1-D.

        Raises:
            ValueError: Some of them are in no file.
        """
        out: torch.Tensor | None = None
        key, missing = f"{kind}/{name}", region.stop - region.start
        for start, block, opened in self._pieces.get(key, []):
            stored = opened.get_slice(key)
            rows, columns = ((block[0], block[1]), (block[2], block[3])) if block else (None, None)
            piece = Region(region.shape, start, start + int(stored.get_shape()[0]), rows, columns)
            for source in piece.rectangles():
                for target in region.rectangles():
                    top, bottom = max(source.top, target.top), min(source.bottom, target.bottom)
                    left, right = max(source.left, target.left), min(source.right, target.right)
                    if top >= bottom or left >= right:
                        continue
                    width = source.right - source.left
                    first, last = (source.offset + (row - source.top) * width for row in (top, bottom))
                    found = stored[first:last].view(-1, width)[:, left - source.left : right - source.left]
                    if out is None:
                        out = torch.empty(region.stop - region.start, dtype=found.dtype)
                    height, width = target.bottom - target.top, target.right - target.left
                    area = out[target.offset : target.offset + height * width].view(height, width)
                    area[top - target.top : bottom - target.top, left - target.left : right - target.left] = found
                    missing -= found.numel()
        if missing:
            raise ValueError(f"{kind} of {name}: {missing} of {region.stop - region.start} elements are in no file")
        return torch.empty(0) if out is None else out
