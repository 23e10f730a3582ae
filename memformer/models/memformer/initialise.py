# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Initial values, stated in one place.

| parameter | distribution |
|---|---|
| linear weights | normal, std 1/sqrt(fan_in) |
| last projection of a residual branch | the same, divided by sqrt(number of residual branches of its stack) |
| embedding and head | normal, std 1/sqrt(D); the embedding is multiplied by sqrt(D) on the way in |
| the writer's query | as other linear weights, but correlated with its key: a slot keeps about half of itself |
| the writer's value | as other linear weights; its output is divided by sqrt(D), so a token writes a unit vector |
| slot bias | normal, std 1/sqrt(D): about unit length, so a slot's own direction outweighs an average of tokens |
| layer norms | weight 1, bias 0; the decoder's last one has weight D^-1/4 |

The three rows on the memory keep slots apart and let them hold what they have: slots that all average the same tokens
would otherwise take one direction within some twenty segments, untrained, and do so again early in training.

The last norm's weight: the stream into the tied head still holds the embedding of the input token, whose own logit
would be sqrt(D), and the loss of an untrained model far above log V.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from memformer.models.construction import Construction
from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.layers import Norm
from memformer.models.memformer.memory import BiasedMemoryNormalisation, MemoryWriter

TYPICAL_SEGMENT_LENGTH = 256
MAX_CORRELATION = 0.95


class DrawnParts(Protocol):
    """What of a Memformer is drawn by other rules than a plain linear layer."""

    embedding: Any
    encoder: nn.ModuleList
    decoder: nn.ModuleList
    decoder_norm: Norm
    writer: MemoryWriter | None
    forget: BiasedMemoryNormalisation

    def modules(self) -> Iterator[nn.Module]:
        """`nn.Module.modules`."""


def initialise(model: DrawnParts, config: MemformerConfig, construction: Construction) -> None:
    """Draws every parameter from torch's default CPU generator, in the order of `model.modules()`."""
    factors = _residual_factors(model, config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            with construction.whole([module.weight]):
                _normal(module.weight, module.in_features**-0.5)
                if id(module.weight) in factors:
                    module.weight.data.mul_(factors[id(module.weight)])
    with construction.whole([model.decoder_norm.weight]):
        nn.init.constant_(model.decoder_norm.weight, config.d_model**-0.25)
    with construction.whole([model.embedding.tokens.weight]):
        _normal(model.embedding.tokens.weight, config.d_model**-0.5)
    if model.writer is not None:
        with construction.whole([model.writer.query.weight, model.writer.key.weight]):
            favour_themselves(model.writer, config)
        with construction.whole([model.forget.bias]):
            _normal(model.forget.bias, config.d_model**-0.5)


def _residual_factors(model: DrawnParts, config: MemformerConfig) -> dict[int, float]:
    """What the last projection of each residual branch is multiplied by, by the parameter's id."""
    encoder_branches = (3 if config.num_memory_slots else 2) * config.num_encoder_layers
    decoder_branches = 3 * config.num_decoder_layers
    return {
        id(parameter): branches**-0.5
        for stack, branches in ((model.encoder, encoder_branches), (model.decoder, decoder_branches))
        for name, parameter in stack.named_parameters()
        if name.endswith(("output.weight", "down.weight"))
    }


def _normal(parameter: torch.Tensor, std: float) -> None:
    """Normal numbers, drawn on the CPU wherever the parameter lies, so that they are the same everywhere."""
    if parameter.device.type in ("cpu", "meta"):
        nn.init.normal_(parameter, std=std)
    else:
        parameter.data.copy_(torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").normal_(std=std))


def favour_themselves(writer: MemoryWriter, config: MemformerConfig) -> None:
    """Gives the writer's query and key the correlation at which a slot keeps about half of itself.

    Query and key of a token are independent at first: logits of variance 1/temperature^2, whose exponentials add up
    to about exp(log S + 1/(2 temperature^2)) over S tokens. A slot's own logit is correlation * sqrt(head size) /
    temperature. Equating the two gives the correlation.
    """
    temperature, head_size = config.memory_temperature, config.d_model // config.effective_writer_heads
    tokens = config.segment_length or TYPICAL_SEGMENT_LENGTH
    correlation = temperature * (math.log(tokens) + 0.5 / temperature**2) / head_size**0.5
    correlation = min(correlation, MAX_CORRELATION)
    query = writer.query.weight.data
    query.mul_((1 - correlation**2) ** 0.5).add_(writer.key.weight.data, alpha=correlation)
