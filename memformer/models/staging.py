# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the stages of every family are made with, out of the parts of a whole model."""

from collections.abc import Iterable

import torch
from torch import nn


def numbered(layers: nn.ModuleList, numbers: Iterable[int]) -> nn.ModuleList:
    """Those layers alone; their numbers remain part of their names."""
    kept, found = nn.ModuleList(), dict(layers.named_children())
    for number in numbers:
        kept.add_module(str(number), found[str(number)])
    return kept


def replaced_by_copy(stage: nn.Module, shared: torch.Tensor) -> torch.Tensor | None:
    """Puts a copy in the place of a parameter that another stage owns, wherever modules of this one have it.

    Returns:
        The copy, with a gradient if the parameter has one, in float32 where that is wider: all stages send it so, and
        it is no parameter that could be widened as frozen ones are. None: no module has the parameter.
    """
    holders = [module for module in stage.modules() if getattr(module, "weight", None) is shared]
    if not holders:
        return None
    copy = shared.detach().to(torch.promote_types(shared.dtype, torch.float32), copy=True)
    for module in holders:
        # A buffer lies where the model lies, but is neither optimized nor saved here.
        del module.weight
        module.register_buffer("weight", copy, persistent=False)
    return copy.requires_grad_(shared.requires_grad)
