# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How a process of a pipeline comes to hold its own layers alone.

`StagedConstruction`: it draws the whole model, layer by layer, and keeps its stage's layers. The random numbers are
those of the plain construction, so the weights are the same; of a layer of another stage, a process holds one matrix at
a time. `keep_layers` then drops what is left of the other layers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn

from memformer.models.construction import Construction, Part, StoredTensor, check_shape


class StagedConstruction(Construction):
    """Empties the layers of other stages as soon as they are made; the rest is left to another construction.

    Args:
        kind: What kind of layer a part is (`models.family_record.Stages.kind`).
        own: By kind, numbers of this stage's (`Split.own`).
        inner: How this stage's layers come into being, and what belongs to no layer.
    """

    def __init__(self, kind: Callable[[Any], str | None], own: Mapping[str, Set[int]], inner: Construction) -> None:
        self._inner, self._kind, self._own = inner, kind, own
        self._made = dict.fromkeys(self._own, 0)
        self._absent: dict[int, torch.Size] = {}

    def built(self, module: Part) -> Part:
        """Keeps a part, or its parameters' shapes alone."""
        kind = self._kind(module)
        if kind is None:
            return self._inner.built(module)
        number, self._made[kind] = self._made[kind], self._made[kind] + 1
        if number in self._own[kind]:
            return self._inner.built(module)
        for parameter in module.parameters():
            self._absent[id(parameter)] = parameter.shape
            parameter.data = parameter.new_empty(0)
        return module

    @contextlib.contextmanager
    def whole(self, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
        """Those of other stages are there to be written to, and gone afterwards."""
        absent = [parameter for parameter in parameters if id(parameter) in self._absent]
        present = [parameter for parameter in parameters if id(parameter) not in self._absent]
        for parameter in absent:
            parameter.data = parameter.new_empty(self._absent[id(parameter)])
        with self._inner.whole(present) if present else contextlib.nullcontext():
            yield
        for parameter in absent:
            parameter.data = parameter.new_empty(0)

    def read(self, name: str, parameter: torch.Tensor, stored: StoredTensor) -> None:
        """Nothing of another stage's."""
        if id(parameter) in self._absent:
            check_shape(name, stored, self._absent[id(parameter)])
        else:
            self._inner.read(name, parameter, stored)


def keep_layers(model: nn.Module, kind: Callable[[Any], str | None], own: Mapping[str, Set[int]]) -> None:
    """Drops the layers of other stages, in place; the numbers of those that stay remain part of their names.

    Args:
        model: Its layers are children of some module, named by their number.
        kind: What kind of layer a part is (`models.family_record.Stages.kind`).
        own: By kind, numbers of those that stay (`Split.own`).
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            of_kind = kind(child)
            if of_kind is not None and int(name) not in own[of_kind]:
                delattr(parent, name)
