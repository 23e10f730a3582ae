# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Construction`: how the parts of a model come into being, here or spread over processes while it is built."""

import contextlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

Part = TypeVar("Part", bound=nn.Module)


class Construction:
    """How a model comes into being: here, whole and in this process's memory.

    A model that is too large for one process is spread over many while it is built
    (memformer/training/initial_weights.py); it draws the same random numbers in the same order, so its weights are the
    same.
    """

    def built(self, module: Part) -> Part:
        """Called with each part of the model (a layer, an embedding) as soon as it is made; returns it."""
        return module

    def whole(self, parameters: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[object]:
        """Inside, these parameters are whole; what is written to them lasts.

        What they held before can be read only in a part that tensor parallelism leaves whole until the model is drawn
        (`Role.JOINED_HEADS`).
        """
        return contextlib.nullcontext()
