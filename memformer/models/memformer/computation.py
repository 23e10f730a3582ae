# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the whole model and a stage of a pipeline both compute, as functions of the modules that they hold.

Shapes: B lanes, S tokens a segment, K slots, D width, H heads of the writer.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.layers import Rotary, as_multiplied
from memformer.models.memformer.memory import BiasedMemoryNormalisation, MemoryWriter
from memformer.models.overlap import before, causal_mask
from memformer.replay.segment import Segment


class Write(NamedTuple):
    """A write as it is looked at, of all heads of the writer, also where this process has some of them."""

    weights_BHKL: torch.Tensor
    """Attention of every slot on [itself ; every token], [B, H, K, 1 + S], rows summing to 1."""
    retained_BHK: torch.Tensor
    """What is left of a slot after the write, by head: see `observe`."""
    memory_BKD: torch.Tensor
    """The memory after the write."""


def begin(reset_B: torch.Tensor, memory_BKD: torch.Tensor, initial_BKD: torch.Tensor) -> torch.Tensor:
    """The memory [B, K, D] that a segment is read with: the initial one in lanes that start a document."""
    # Here and in `context`, the selection runs on every segment of every rank, whatever the data: under ZeRO-3
    # ranks must execute the same modules in the same order.
    return torch.where(reset_B[:, None, None], initial_BKD.to(memory_BKD.dtype), memory_BKD)


def context(segment: Segment, start_token_id: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the encoder reads, int64 [B, S], and the mask of its valid tokens, bool [B, S]; None when all are."""
    tokens_BS, length_B, reset_B = segment.context, segment.context_length, segment.reset
    first = torch.zeros_like(tokens_BS)
    first[:, 0] = start_token_id
    tokens_BS = torch.where(reset_B[:, None], first, tokens_BS)
    if not segment.ragged:
        return tokens_BS, None
    # At least one key stays visible, so that a lane without a document cannot produce NaN.
    length_B = torch.where(reset_B, torch.ones_like(length_B), length_B).clamp(min=1)
    return tokens_BS, torch.arange(tokens_BS.shape[1], device=tokens_BS.device) < length_B[:, None]


def read(
    layers: Iterable[nn.Module],
    x_BSD: torch.Tensor,
    memory_BKD: torch.Tensor,
    mask_BS: torch.Tensor | None,
    config: MemformerConfig,
) -> torch.Tensor:
    """Encoder layers, [B, S, D] -> [B, S, D], without the norm that follows the last."""
    mask = None if mask_BS is None else mask_BS[:, None, None, :]
    rotary = Rotary.kept(0, x_BSD.shape[1], config, x_BSD)
    x_BSD = _kept(x_BSD, config)
    for layer in layers:
        x_BSD = layer(x_BSD, memory_BKD, mask, rotary)
    return x_BSD


def write(
    writer: MemoryWriter,
    forget: BiasedMemoryNormalisation,
    memory_BKD: torch.Tensor,
    x_BSD: torch.Tensor,
    mask_BS: torch.Tensor | None,
) -> torch.Tensor:
    """The next memory [B, K, D] from the memory a segment was read with and the encoder's output."""
    return forget(writer(memory_BKD, x_BSD, mask_BS)).to(memory_BKD.dtype)


@torch.no_grad()
def observe(
    writer: MemoryWriter,
    forget: Callable[..., torch.Tensor],
    memory_BKD: torch.Tensor,
    x_BSD: torch.Tensor,
    mask_BS: torch.Tensor | None,
) -> Write:
    """`write`, with what it does to the slots; without gradient.

    The writer keeps the share a of a slot, its weight on itself, and normalisation then divides what lies across the
    slot by the length of what was written with what forgetting adds of the bias, ||m + bias|| in the paper's form: a
    difference in the slot is a / ||m + bias|| of itself afterwards. Left out is what a changed
    slot changes in what is read and attended to.

    `forget` is a `BiasedMemoryNormalisation` or what answers like one: (written, lengths=False).
    """
    weights_BHKL = writer.weights(memory_BKD, x_BSD, mask_BS)
    written = writer.mixed(weights_BHKL, memory_BKD, x_BSD)
    length_BK = forget(written, lengths=True)
    weights_BHKL = writer.heads.gather(weights_BHKL)
    retained_BHK = weights_BHKL[..., 0] / length_BK[:, None].to(weights_BHKL.dtype)
    return Write(weights_BHKL, retained_BHK, forget(written).to(memory_BKD.dtype))


def inputs(segment: Segment, start_token_id: int, config: MemformerConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the decoder reads, int64 [B, N]: the overlap or the start token, x_0 .. x_{S-2}.

    And which of them a query sees, bool [B, 1, N, N]; None: those up to its own place.
    """
    before_BP, seen_BP = before(segment, config.overlap, start_token_id)
    targets_BS = segment.target[:, :-1]
    tokens_BN = torch.cat([before_BP, targets_BS], dim=1)
    # Where the context is whole so is the overlap, and the last token in front of the targets is always there.
    if before_BP.shape[1] == 1 or not segment.ragged:
        return tokens_BN, None
    return tokens_BN, causal_mask(torch.cat([seen_BP, torch.ones_like(targets_BS, dtype=torch.bool)], dim=1))


def respond(
    layers: Iterable[nn.Module],
    y_BND: torch.Tensor,
    seen: torch.Tensor | None,
    context_BSD: torch.Tensor,
    mask_BS: torch.Tensor | None,
    config: MemformerConfig,
) -> torch.Tensor:
    """Decoder layers, [B, N, D] -> [B, N, D], without the norm that follows the last; the last S are of the targets.

    `seen` is that of `inputs`.
    """
    width, length = context_BSD.shape[1], y_BND.shape[1]
    # The last token in front of the targets is at position S, whatever the overlap, which reaches back from there.
    first = width + 1 - config.prefix_length(width)
    rotary = Rotary.kept(0, first + length, config, y_BND)
    context_rotary, rotary = rotary.rows(0, width), rotary.rows(first, first + length)
    mask = None if mask_BS is None else mask_BS[:, None, None, :]
    y_BND = _kept(y_BND, config)
    for layer in layers:
        y_BND = layer(y_BND, context_BSD, mask, context_rotary, rotary, seen)
    return y_BND


def _kept(x_BSD: torch.Tensor, config: MemformerConfig) -> torch.Tensor:
    """The residual stream in the dtype that it is kept in."""
    return as_multiplied(x_BSD) if config.residual_dtype == "compute" else x_BSD
