# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Construction`: how the parts of a model come into being and get their weights, here or spread over processes."""

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

Part = TypeVar("Part", bound=nn.Module)


class StoredTensor(Protocol):
    """A tensor in a file, of which parts can be read: what `get_slice` of safetensors gives."""

    def get_shape(self) -> Sequence[int]:
        """Its shape."""

    def __getitem__(self, part: Any) -> torch.Tensor:
        """A part of it, by slices of its first dimensions; `...` is all of it."""


def check_shape(name: str, stored: StoredTensor, shape: Sequence[int]) -> None:
    """Refuses a tensor for a parameter of another shape.

    Raises:
        ValueError: It is of another.
    """
    if list(stored.get_shape()) != list(shape):
        raise ValueError(f"{name} has shape {list(stored.get_shape())}, not {list(shape)}")


class Construction:
    """How a model comes into being: here, whole and in this process's memory.

    A model that is too large for one process is spread over many while it is built
    (memformer/training/initial_weights.py); it draws the same random numbers in the same order, so its weights are the
    same.

    Attributes:
        reads: Weights are read into the model after it is made: of a part that has them in a file (`Family.weights`, an
            export or a checkpoint) numbers need not be drawn.
    """

    reads = False

    def built(self, module: Part) -> Part:
        """Called with each part of the model (a layer, an embedding) as soon as it is made; returns it."""
        return module

    def whole(self, parameters: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[object]:
        """Inside, these parameters are whole; what is written to them lasts.

        What they held before can be read only in a part that tensor parallelism leaves whole until the model is drawn
        (`Role.JOINED_HEADS`).
        """
        return contextlib.nullcontext()

    @torch.no_grad()
    def read(self, name: str, parameter: torch.Tensor, stored: StoredTensor) -> None:
        """Copies into a parameter what is stored of it; only what this process has of it is read.

        Raises:
            ValueError: It has another shape.
        """
        with self.whole([parameter]):
            check_shape(name, stored, parameter.shape)
            parameter.copy_(stored[...])
