# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""In which precision ZeRO 1 and 2 send a parameter's gradient and, after the step, its weight.

Under autocast a weight that is only multiplied is rounded to 16 bits before each product. Rounded before it is sent, it
gives the same products to the last bit, at half the bytes; its float32 numbers stay with the process that steps them.
All else is sent as it is: embeddings (a head that is tied to one too), norms, biases, which a compiled layer may add
unrounded, and what a module multiplies in float32.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from memformer.models.protocol import MemoryModel


class Sent(NamedTuple):
    """How a parameter is sent.

    Attributes:
        gradients: dtype of its gradient, on the way to the process that steps it.
        weights: dtype of the weight, on the way back.
    """

    gradients: torch.dtype = torch.float32
    weights: torch.dtype = torch.float32


def of_linear_maps(model: MemoryModel) -> set[int]:
    """The parameters of linear maps, by `id`: their gradients come out of products in 16 bits."""
    module: Any = model
    maps = (each for each in module.modules() if isinstance(each, nn.Linear))
    return {id(parameter) for each in maps for parameter in each.parameters(recurse=False)}


def only_multiplied(model: MemoryModel) -> set[int]:
    """The weights of linear maps, by `id`, of which autocast uses nothing but a copy in 16 bits."""
    module: Any = model
    kept: set[int] = set()
    for each in module.modules():
        if isinstance(each, nn.Embedding) or getattr(each, "multiplies_in_float32", False):
            kept.update(map(id, each.parameters()))
    linear = of_linear_maps(model) - kept
    return {id(p) for p in module.parameters() if id(p) in linear and len(getattr(p, "ds_shape", p.shape)) == 2}


def sent_by_parameter(model: MemoryModel, dtype: torch.dtype | None) -> dict[int, Sent]:
    """How each parameter is sent, by `id`.

    Args:
        model: Its parameters.
        dtype: The 16 bits that products are in; None: nothing is sent in fewer bits than it has.
    """
    linear, multiplied = (of_linear_maps(model), only_multiplied(model)) if dtype else (set(), set())
    module: Any = model
    return {
        id(p): Sent(
            dtype if dtype and id(p) in linear else p.dtype, dtype if dtype and id(p) in multiplied else p.dtype
        )
        for p in module.parameters()
    }
