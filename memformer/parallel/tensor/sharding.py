# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turns a plain model, in place, into this process's part of it, as its family says (`memformer.models.registry.Role`).

| role | sliced by | what the processes send, forward + backward |
|---|---|---|
| attention and its linear maps | heads: query, key, value rows, output columns | a sum of [B, S, D] + 1 |
| other columns and rows | the width between them | a sum of [B, S, D] + 1 |
| joined heads | heads: query, key, value rows | a gather of [B, K, D] + a sum of it |
| vocabulary, head, loss | ids of the vocabulary | a sum of [B, S, D] + 1, and 3 numbers a token |
| summed | not at all, in sliced work: its gradients are partial | a sum of its parameters, backward |
| none | not at all: replicated, with equal gradients | |

The weights are slices of those that one process would have: what a run computes depends on the seed, not on the
topology.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from memformer.models.configuration import ModelConfig
from memformer.models.construction import Construction, Part, StoredTensor, check_shape
from memformer.models.family_record import Role, Sharding
from memformer.models.heads import Inputs
from memformer.models.registry import family_of
from memformer.parallel.tensor.modules import (
    ParallelHeads,
    ParallelInputs,
    RowParallelLinear,
    become,
    before_ranks,
    sum_gradients,
)
from memformer.parallel.tensor.vocabulary import ParallelScore, VocabularyParallelEmbedding, part_of
from memformer.processes.topology import Axis


@dataclasses.dataclass(frozen=True)
class Slice:
    """Which part of a whole parameter a process has.

    Attributes:
        shape: Of the whole.
        dim: The dimension that is cut.
        start: First index of the part.
        stop: One past its last.
    """

    shape: tuple[int, ...]
    dim: int
    start: int
    stop: int


def slice_of(parameter: torch.Tensor) -> Slice | None:
    """The part of a whole parameter that this is; None if it is whole."""
    return getattr(parameter, "tensor_slice", None)


def sharding_of(config: ModelConfig) -> Sharding:
    """How a model of this configuration is cut; the check of a run's settings has refused families that are not."""
    family = family_of(config)
    assert family.shard is not None, f"tensor parallelism is not built for family {family.name}"
    return family.shard


def shard_model(model: Any, axis: Axis) -> None:
    """Leaves this process its part of every layer; nothing happens where there is one process.

    Args:
        model: A `MemoryModel`, whole, and equal on all processes of the axis; or what a `SlicedConstruction` made.
        axis: The tensor-parallel processes; their number divides the `Sharding.sizes` of the model's configuration
            (the check of a run's settings sees to it).
    """
    if axis.size == 1:
        return
    parts = list(sharding_of(model.config).roles(model))
    embeddings = {id(module.weight): module for module, role in parts if role is Role.VOCABULARY}
    heads = [(module, embeddings.get(id(module.weight))) for module, role in parts if role is Role.HEAD]
    for module, role in parts:
        if role is not Role.HEAD:
            _spread(module, role, axis)
    for head, tied in heads:
        if tied is not None:
            head.weight = tied.weight
        _spread(head, Role.HEAD, axis)


class SlicedConstruction(Construction):
    """Cuts the parts of a model as soon as they are made, so that no process ever holds a whole one.

    The small rest is cut by `shard_model`, to which the model goes next. The random numbers are those of the plain
    construction: each process draws whole matrices, one at a time, and keeps its part.

    Args:
        axis: The tensor-parallel processes.
        sharding: How the model's family is cut (`sharding_of`).
    """

    def __init__(self, axis: Axis, sharding: Sharding) -> None:
        self._axis, self._sharding = axis, sharding

    def built(self, module: Part) -> Part:
        """Cuts a part, but for one with joined heads: its matrices may be drawn from each other."""
        parts = list(self._sharding.roles(module))
        if all(role is not Role.JOINED_HEADS for _, role in parts):
            for inner, role in parts:
                _spread(inner, role, self._axis)
        return module

    @contextlib.contextmanager
    def whole(self, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
        """Whole matrices to be written to; what a part that was cut held before cannot be read."""
        for parameter in parameters:
            part = slice_of(parameter)
            if part is not None:
                parameter.data = parameter.new_empty(part.shape)
        yield
        for parameter in parameters:
            part = slice_of(parameter)
            if part is not None:
                parameter.data = _cut(parameter.detach(), part)

    @torch.no_grad()
    def read(self, name: str, parameter: torch.Tensor, stored: StoredTensor) -> None:
        """Reads this process's rows or columns."""
        part = slice_of(parameter)
        if part is None:
            super().read(name, parameter, stored)
            return
        check_shape(name, stored, part.shape)
        parameter.copy_(stored[(slice(None),) * part.dim + (slice(part.start, part.stop),)])


def _spread(module: Any, role: Role, axis: Axis) -> None:
    """Leaves this process its part of a module, once, however often the module is met."""
    if getattr(module, "tensor_role", None) is role:
        return
    match role:
        case Role.ATTENTION:
            module.num_heads //= axis.size
        case Role.JOINED_HEADS:
            module.num_heads //= axis.size
            module.heads = ParallelHeads(axis)
        case Role.COLUMNS | Role.HEAD:
            _slice(module, "weight", 0, axis)
            if module.bias is not None:
                _slice(module, "bias", 0, axis)
            if role is Role.HEAD:
                part = slice_of(module.weight)
                assert part is not None
                module.score = ParallelScore(part.shape[0], axis)
        case Role.ROWS:
            if isinstance(getattr(module, "inputs", None), Inputs):
                module.inputs = ParallelInputs(axis)
            else:
                become(module, RowParallelLinear, axis)
            _slice(module, "weight", 1, axis)
        case Role.BEFORE:
            become(module, before_ranks(module.__class__), axis)
        case Role.SUMMED:
            sum_gradients(module, axis)
        case Role.VOCABULARY:
            _slice(become(module, VocabularyParallelEmbedding, axis), "weight", 0, axis)
            module.first, stop = part_of(module.num_embeddings, axis)
            module.num_embeddings = stop - module.first
    module.tensor_role = role


def _slice(module: nn.Module, name: str, dim: int, axis: Axis) -> None:
    """Cuts a parameter, unless it is a part already. `in_features` stays that of the whole: it is fan-in."""
    whole = getattr(module, name)
    if slice_of(whole) is not None:
        return
    start, stop = part_of(whole.shape[dim], axis)
    part = Slice(tuple(whole.shape), dim, start, stop)
    parameter: Any = nn.Parameter(_cut(whole.detach(), part), requires_grad=whole.requires_grad)
    parameter.tensor_slice = part
    parameter.model_parallel = True  # by this name DeepSpeed counts it in the norm of the gradient on every process
    setattr(module, name, parameter)


def _cut(whole: torch.Tensor, part: Slice) -> torch.Tensor:
    return whole.narrow(part.dim, part.start, part.stop - part.start).clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def whole_tensor(parameter: torch.Tensor, axis: Axis, value: torch.Tensor | None = None) -> torch.Tensor:
    """The whole of a parameter (or of something of its shape, e.g. its gradient); called by all processes of the axis.

    For tests and small things: a checkpoint is never put together like this.
    """
    value, part = (parameter if value is None else value).detach(), slice_of(parameter)
    if part is None:
        return value.clone()
    return torch.cat(axis.gather(value.cpu()), dim=part.dim).to(value.device)
