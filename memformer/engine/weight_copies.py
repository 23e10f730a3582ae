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

SMALL = 2**16
"""Elements of a parameter without a copy whose gradients may wait for the end of a backward: norms and biases."""
WAITING = 2**24
"""Elements of copies' gradients that wait together, 32 MiB: those of a layer of width 1,024."""


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
        copied = {id(each.weight) for each in self._copied}
        trained = [each for _, each in model.named_parameters() if each.requires_grad and id(each) not in copied]
        self._small = [each for each in trained if each.numel() <= SMALL]
        self._waiting: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._elements, self._together = 0, False
        self.leaves: dict[nn.Parameter, nn.Parameter] = {}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the copies; afterwards the sums are the weights' gradients."""
        weights = [copied.weight for copied in self._copied]
        copies = self._copies(weights)
        self._put(copies)
        self.leaves = dict(zip(weights, copies, strict=True))
        try:
            yield
        finally:
            self._put(weights)
            self.leaves = {}
            for weight, copy in zip(weights, copies, strict=True) if self._narrow else ():
                weight.grad_dtype = None  # whichever its gradient has
                weight.grad = copy.grad

    @contextlib.contextmanager
    def adding_together(self) -> Iterator[None]:
        """Around a backward of which no gradient is looked at before it has ended: they are added up many at a time.

        The sums are the same to the last bit. A GPU waits for a host that launches each addition by itself.
        """
        sums = [(each, each.grad) for each in self._small if each.grad is not None]
        for parameter, _ in sums:
            parameter.grad = None
        self._together = True
        try:
            yield
        finally:
            self._together = False
            self._add()
            found = [(total, each.grad) for each, total in sums if each.grad is not None]
            if found:
                torch._foreach_add_([total for total, _ in found], [gradient for _, gradient in found])
            for parameter, total in sums:
                parameter.grad = total

    @torch.no_grad()
    def _copies(self, weights: list[nn.Parameter]) -> list[nn.Parameter]:
        values = [torch.empty_like(weight, dtype=self._dtype) for weight in weights]
        if values:
            torch._foreach_copy_(values, list[torch.Tensor](weights))
        copies: list[Any] = [nn.Parameter(value) for value in values]  # torch's own methods have no types
        for weight, copy in zip(weights, copies, strict=True):
            if self._narrow:
                copy.grad, weight.grad = weight.grad, None
            else:
                copy.register_post_accumulate_grad_hook(functools.partial(self._take, weight))
        return copies

    def _put(self, weights: list[nn.Parameter]) -> None:
        for copied, weight in zip(self._copied, weights, strict=True):
            for module, name in copied.places:
                module._parameters[name] = weight

    def _take(self, weight: nn.Parameter, copy: torch.Tensor) -> None:
        """The gradient of a copy is to become the weight's, or to be added to it.

        At once, or with some others, and not after the backward: gradients of all weights would lie beside the sums.
        """
        assert copy.grad is not None
        self._waiting.append((weight, copy.grad))
        self._elements += copy.grad.numel()
        copy.grad = None
        if not self._together or self._elements >= WAITING:
            self._add()

    def _add(self) -> None:
        sums, gradients = list[torch.Tensor](), list[torch.Tensor]()
        for weight, gradient in self._waiting:
            if weight.grad is None:
                weight.grad = gradient.float()
            else:
                sums.append(weight.grad)
                gradients.append(gradient)
        if sums:
            torch._foreach_add_(sums, gradients)
        self._waiting, self._elements = [], 0
