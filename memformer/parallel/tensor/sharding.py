# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turns a plain Memformer, in place, into this process's part of it.

| part | sliced by | sums of [B, S, D] (forward + backward) |
|---|---|---|
| attention, reader, attention to the context | heads: query, key, value rows, output columns | 1 + 1 |
| feed-forward | hidden width: up rows, down columns | 1 + 1 |
| memory writer | its heads: query, key, value rows | a gather of [B, K, D] + 1 of [B, K, D] |
| embedding, head, loss | vocabulary | 1 + 1, and 3 numbers a token |
| norms, slot bias | not at all: replicated, with equal gradients | |

The encoder's output, which the writer and every decoder layer read, sums its gradient once for all of them. The
weights are slices of those that one process would have: what a run computes depends on the seed, not on the topology.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from memformer.models.construction import Construction, Part
from memformer.models.memformer import Memformer
from memformer.models.memformer.layers import Attention, FeedForward
from memformer.models.memformer.memory import MemoryReader
from memformer.models.memformer.model import DecoderLayer, Embedding, EncoderLayer
from memformer.parallel.tensor.modules import (
    IdentityBeforeRanks,
    NormBeforeRanks,
    ParallelMemoryWriter,
    RowParallelLinear,
    become,
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


def shard_model(model: Memformer, axis: Axis) -> None:
    """Leaves this process its part of every layer; nothing happens where there is one process.

    Args:
        model: Whole, and equal on all processes of the axis.
        axis: The tensor-parallel processes; their number divides num_heads, writer heads and d_ff
            (the configuration sees to it).
    """
    if axis.size == 1:
        return
    for layer in (*model.encoder, *model.decoder):
        _shard_layer(layer, axis)
    become(model.encoder_norm, NormBeforeRanks, axis)
    if model.writer is not None:
        writer = become(model.writer, ParallelMemoryWriter, axis)
        writer.num_heads //= axis.size
        for linear in (writer.query, writer.key, writer.value):
            _slice_weight(linear, 0, axis)
    become(model.decoder_norm, NormBeforeRanks, axis)
    tied = model.head.weight is model.embedding.tokens.weight
    _shard_embedding(model.embedding.tokens, axis)
    if tied:
        model.head.weight = model.embedding.tokens.weight
    else:
        _slice_weight(model.head, 0, axis)
    vocabulary = slice_of(model.head.weight)
    if vocabulary is not None:
        score = ParallelScore(vocabulary.shape[0], axis)
        model.token_losses, model.whole_logits = score.losses, score.whole


class SlicedConstruction(Construction):
    """Cuts layers, embedding and head as soon as they are made, so that no process ever holds a whole model.

    The small rest is cut by `shard_model`, to which the model goes next. The random numbers are those of the plain
    construction: each process draws whole matrices, one at a time, and keeps its part.

    Args:
        axis: The tensor-parallel processes.
    """

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def built(self, module: Part) -> Part:
        """Cuts a part."""
        if isinstance(module, (EncoderLayer, DecoderLayer)):
            _shard_layer(module, self.axis)
        elif isinstance(module, Embedding):
            _shard_embedding(module.tokens, self.axis)
        elif isinstance(module, nn.Linear):
            _slice_weight(module, 0, self.axis)
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


def _shard_layer(layer: nn.Module, axis: Axis) -> None:
    for name, child in list(layer.named_children()):
        if isinstance(child, Attention):
            _shard_attention(child, axis)
        elif isinstance(child, MemoryReader):
            _shard_attention(child.attention, axis)
            if isinstance(child.norm, nn.LayerNorm):
                become(child.norm, NormBeforeRanks, axis)
            else:
                become(child.norm, IdentityBeforeRanks, axis)
        elif isinstance(child, FeedForward):
            _slice_weight(child.up, 0, axis)
            _slice_weight(become(child.down, RowParallelLinear, axis), 1, axis)
        elif name.endswith("norm"):
            become(child, NormBeforeRanks, axis)


def _shard_attention(attention: Attention, axis: Axis) -> None:
    if slice_of(attention.query.weight) is None:
        attention.num_heads //= axis.size
    for linear in (attention.query, attention.key, attention.value):
        _slice_weight(linear, 0, axis)
    _slice_weight(become(attention.output, RowParallelLinear, axis), 1, axis)


def _shard_embedding(tokens: nn.Embedding, axis: Axis) -> None:
    embedding = become(tokens, VocabularyParallelEmbedding, axis)
    _slice_weight(embedding, 0, axis)
    part = slice_of(embedding.weight)
    if part is not None:
        embedding.first, embedding.num_embeddings = part.start, part.stop - part.start


def _slice_weight(module: Any, dim: int, axis: Axis) -> None:
    """Cuts a module's weight, unless it is a part already. `in_features` stays that of the whole: it is fan-in."""
    whole = module.weight
    if slice_of(whole) is not None:
        return
    start, stop = part_of(whole.shape[dim], axis)
    part = Slice(tuple(whole.shape), dim, start, stop)
    parameter: Any = nn.Parameter(_cut(whole.detach(), part), requires_grad=whole.requires_grad)
    parameter.tensor_slice = part
    parameter.model_parallel = True  # by this name DeepSpeed counts it in the norm of the gradient on every process
    module.weight = parameter


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
