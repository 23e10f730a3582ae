# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`roles`: what becomes of each module of a Memformer when it is spread over tensor-parallel processes.

| part | sliced by | sums of [B, S, D] (forward + backward) |
|---|---|---|
| attention, reader, attention to the context | heads: query, key, value rows, their gains, output columns | 1 + 1 |
| feed-forward | hidden width: up and gate rows, down columns | 1 + 1 |
| memory writer | its heads: query, key, value rows | a gather of [B, K, D] + 1 of [B, K, D] |
| embedding, head, loss | vocabulary | 1 + 1, and 3 numbers a token |
| norms, slot bias | not at all: replicated, with equal gradients | |

The encoder's output, which the writer and every decoder layer read, sums its gradient once for all of them.
"""

from collections.abc import Iterator

from torch import nn

from memformer.models.family_record import Role
from memformer.models.memformer.layers import Attention, FeedForward
from memformer.models.memformer.memory import MemoryReader, MemoryWriter
from memformer.models.memformer.model import DecoderLayer, Embedding, EncoderLayer, Memformer


def roles(module: nn.Module) -> Iterator[tuple[nn.Module, Role]]:
    """Every module inside that has a role.

    Args:
        module: A Memformer, or a part of one as its construction makes them: a layer, the embedding, the writer, or the
            head, which is the one part that is nothing but a linear map.
    """
    if isinstance(module, nn.Linear):
        yield module, Role.HEAD
    for part in module.modules():
        yield from own_roles(part)


def own_roles(part: nn.Module) -> Iterator[tuple[nn.Module, Role]]:
    """Roles of a module and of what it is made of, but for what has a row of its own here.

    Args:
        part: A Memformer, or a module inside one.
    """
    match part:
        case Memformer():
            yield part.encoder_norm, Role.BEFORE
            yield part.decoder_norm, Role.BEFORE
            yield part.head, Role.HEAD
        case Embedding():
            yield part.tokens, Role.VOCABULARY
        case EncoderLayer() | DecoderLayer():
            yield from ((child, Role.BEFORE) for child in part.children() if isinstance(child, nn.LayerNorm))
        case Attention():
            yield part, Role.ATTENTION
            columns = (part.query, part.key, part.value, part.query_norm, part.key_norm)
            yield from ((each, Role.COLUMNS) for each in columns if each is not None)
            yield part.output, Role.ROWS
        case MemoryReader():
            yield part.norm, Role.BEFORE
        case MemoryWriter():
            yield part, Role.JOINED_HEADS
            yield from ((linear, Role.COLUMNS) for linear in (part.query, part.key, part.value))
        case FeedForward():
            yield from ((linear, Role.COLUMNS) for linear in (part.up, part.gate) if linear is not None)
            yield part.down, Role.ROWS
