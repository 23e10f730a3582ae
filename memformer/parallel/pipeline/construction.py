# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`StagedConstruction`: a process of a pipeline draws the whole model, layer by layer, and keeps its stage's layers.

The random numbers are those of the plain construction, so the weights are the same; of a layer of another stage, a
process holds one matrix at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from memformer.models.construction import Construction, Part
from memformer.models.memformer.model import DecoderLayer, EncoderLayer
from memformer.parallel.pipeline.split import Split


class StagedConstruction(Construction):
    """Empties the layers of other stages as soon as they are made; the rest is left to another construction.

    Args:
        split: Layers by stage.
        stage: This process's.
        inner: How this stage's layers come into being, and what belongs to no layer.
    """

    def __init__(self, split: Split, stage: int, inner: Construction) -> None:
        self._inner = inner
        self._own = {EncoderLayer: split.encoder(stage), DecoderLayer: split.decoder(stage)}
        self._made = {EncoderLayer: 0, DecoderLayer: 0}
        self._absent: dict[int, torch.Size] = {}

    def built(self, module: Part) -> Part:
        """Keeps a part, or its parameters' shapes alone."""
        kind = type(module)
        if kind not in self._made:
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
