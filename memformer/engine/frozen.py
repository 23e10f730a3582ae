# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Parameters that are not trained (`training.train`): no gradient, no optimizer state, 16 bits where these do.

Under autocast the matrix products of precision bf16 take their weights in bfloat16 anyway, so a frozen matrix is
stored in it, to the same numbers. Only an embedding is rounded by that (not at all where its file has bfloat16); what
it gives is widened, so that the sum that runs from layer to layer stays float32. Norms and biases are small and stay as
they are; so does everything under fp32 and fp16.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of

STORED = {"bf16": torch.bfloat16}
"""By precision, what frozen matrices are stored in; others stay float32."""


def is_frozen(parameter: torch.Tensor) -> bool:
    """Whether a parameter of an engine is left as it is."""
    return not parameter.requires_grad


@torch.no_grad()
def freeze(model: MemoryModel, train: str, precision: str) -> None:
    """Takes what is not trained out of the training, in place, and stores it as the precision has it.

    Args:
        model: Whole, or what ZeRO-3 has left this process of it; its weights are there.
        train: The setting `training.train`.
        precision: fp32, bf16 or fp16 (resolved).
    """
    family, dtype = family_of(model.config), STORED.get(precision)
    if train == "all":
        return
    for name, parameter in model.named_parameters():
        if family.trains(train, name):
            continue
        parameter.requires_grad_(False)
        if dtype is not None and len(getattr(parameter, "ds_shape", parameter.shape)) >= 2:
            _store(parameter, dtype)
    module: Any = model
    for each in module.modules():
        if isinstance(each, nn.Embedding) and each.weight.dtype == dtype:
            each.register_forward_hook(_widened)


def _store(parameter: Any, dtype: torch.dtype) -> None:
    """Rounds a parameter where it lies; ZeRO-3's share of it, which may lie in pinned host memory."""
    share = getattr(parameter, "ds_tensor", None)
    if share is not None:
        stored = share.data.to(dtype)
        share.data = stored.pin_memory() if share.is_pinned() else stored
    parameter.data = parameter.data.to(dtype)


def _widened(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


@contextlib.contextmanager
def frozen_in_float32(module: nn.Module) -> Iterator[None]:
    """Inside, what is stored in 16 bits is widened while the module that owns it runs, one module at a time."""
    kept: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def widen(owner: nn.Module, inputs: Any) -> None:
        kept[owner] = [(p, p.data) for p in _narrow(owner)]
        for parameter, data in kept[owner]:
            parameter.data = data.float()

    def restore(owner: nn.Module, inputs: Any, output: Any) -> None:
        for parameter, data in kept.pop(owner):
            parameter.data = data

    hooks = []
    for owner in [each for each in module.modules() if _narrow(each)]:
        # ZeRO-3's own hooks gather before ours widen, and let go after ours have restored.
        hooks += [owner.register_forward_pre_hook(widen), owner.register_forward_hook(restore, prepend=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _narrow(owner: nn.Module) -> list[nn.Parameter]:
    """The frozen parameters that a module has itself and that are stored in 16 bits."""
    return [p for p in owner.parameters(recurse=False) if is_frozen(p) and p.dtype in STORED.values()]
