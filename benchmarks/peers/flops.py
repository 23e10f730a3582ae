# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Operations of reading a document, counted while it is read."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.peers.reader import Reader


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **named: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)
    return count


FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""Attention that the counter does not know: x-transformers chooses its kernel itself, whatever is asked for here."""


@torch.no_grad()
def reading_flops(reader: Reader, tokens_BL: torch.Tensor, segment_length: int) -> int:
    """Floating-point operations of the matrix products of reading documents, a multiply-add as 2.

    Attention runs in its written-out form and an LSTM without the CPU's fused kernel: the counter knows neither. Nor
    does it bear an expanded parameter without a graph, which parameters without gradients give none of.

    Args:
        reader: Any reader.
        tokens_BL: The documents; L is a multiple of the segment length.
        segment_length: S.
    """
    state, trained = None, [parameter for parameter in reader.module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False, custom_mapping=FUSED) as counter,
    ):
        for segment in tokens_BL.split(segment_length, dim=1):
            state = reader.read(segment, state)[1]
    for parameter in trained:
        parameter.requires_grad_(True)
    return counter.get_total_flops()
