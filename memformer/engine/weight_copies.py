# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The 16-bit copies of weights that a rollout is computed with, and how their gradients add up.

Autocast would make them too, and keep them for a rollout. But to autograd its copies are steps on the way to the
weight: in every backward each gradient is cast to float32, which writes 4 bytes a number, and that is read again to be
added to the sum. Here a copy is a leaf of its own, and its 16-bit gradient is added to the float32 sum by one kernel:
10 bytes a number instead of 18, and the same sum to the last bit. Copies also outlive what drops autocast's, or never
sees them: a recomputed layer, and a compiled one, which casts its weights in every call.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from memformer.engine.sent import only_multiplied
from memformer.models.protocol import MemoryModel
from memformer.models.scoring import Head


class Copied(NamedTuple):
    """A weight, and the modules that have it as their own, each with its name there."""

    weight: nn.Parameter
    places: list[tuple[nn.Module, str]]


def copied_weights(model: MemoryModel) -> list[Copied]:
    """The weights that are trained, and of which autocast uses nothing but a copy in 16 bits.

    Without those of a head, whose chunks add up their gradient in float32 (`models.scoring`), and those whose gradient
    a hook waits for.
    """
    module: Any = model
    multiplied = only_multiplied(model)
    found: dict[int, Copied] = {}
    kept: set[int] = set()
    for each in module.modules():
        for name, weight in each.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(each, Head) or weight._backward_hooks:
                kept.add(id(weight))
            if weight.requires_grad and id(weight) in multiplied:
                found.setdefault(id(weight), Copied(weight, [])).places.append((each, name))
    return [copied for key, copied in found.items() if key not in kept]


class WeightCopies:
    """Puts 16-bit copies in the place of weights while a rollout is trained.

    Args:
        model: As it is trained.
        dtype: The 16 bits that products are in.
        sums: What gradients are added up in: float32, or `dtype`, in which every addition rounds.

    Attributes:
        leaves: The weights whose copies are in place, each with its copy.
    """

    def __init__(self, model: MemoryModel, dtype: torch.dtype, sums: torch.dtype = torch.float32) -> None:
        self._dtype, self._copied, self._narrow = dtype, copied_weights(model), sums == dtype
        self.leaves: dict[nn.Parameter, nn.Parameter] = {}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the copies; afterwards the sums are the weights' gradients."""
        with torch.no_grad():
            copies = [self._copy(copied.weight) for copied in self._copied]
        weights = [copied.weight for copied in self._copied]
        self._put(copies)
        self.leaves = dict(zip(weights, copies, strict=True))
        try:
            yield
        finally:
            self._put(weights)
            self.leaves = {}
            for copied, copy in zip(self._copied, copies, strict=True):
                if self._narrow:
                    copied.weight.grad_dtype = None  # whichever its gradient has
                    copied.weight.grad = copy.grad

    def _copy(self, weight: nn.Parameter) -> nn.Parameter:
        copy: Any = nn.Parameter(weight.to(self._dtype))  # torch's own methods have no types
        if self._narrow:
            copy.grad, weight.grad = weight.grad, None
        else:
            copy.register_post_accumulate_grad_hook(functools.partial(_add_to, weight))
        return copy  # type: ignore[no-any-return]

    def _put(self, weights: list[nn.Parameter]) -> None:
        for copied, weight in zip(self._copied, weights, strict=True):
            for module, name in copied.places:
                module._parameters[name] = weight


def _add_to(weight: nn.Parameter, copy: torch.Tensor) -> None:
    """The gradient of a copy becomes the weight's, or is added to it.

    At once, and not after the backward, since gradients of all weights would lie beside the sums until then.
    """
    assert copy.grad is not None
    if weight.grad is None:
        weight.grad = copy.grad.float()
    else:
        weight.grad.add_(copy.grad)
    copy.grad = None
