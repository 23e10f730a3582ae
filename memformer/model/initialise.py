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
from typing import TYPE_CHECKING

from torch import nn

from memformer.model.config import MemformerConfig

if TYPE_CHECKING:
    from memformer.model.memformer import Memformer
    from memformer.model.memory import MemoryWriter

TYPICAL_SEGMENT_LENGTH = 256
MAX_CORRELATION = 0.95


def initialise(model: "Memformer", config: MemformerConfig) -> None:
    """Draws every parameter from torch's default generator, in the order of `model.modules()`."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    encoder_branches = (3 if config.num_memory_slots else 2) * config.num_encoder_layers
    decoder_branches = 3 * config.num_decoder_layers
    for stack, branches in ((model.encoder, encoder_branches), (model.decoder, decoder_branches)):
        for name, parameter in stack.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                parameter.data.mul_(branches**-0.5)
    nn.init.constant_(model.decoder_norm.weight, config.d_model**-0.25)
    nn.init.normal_(model.embedding.tokens.weight, std=config.d_model**-0.5)
    if model.writer is not None:
        _favour_themselves(model.writer, config)
        nn.init.normal_(model.forget.bias, std=config.d_model**-0.5)


def _favour_themselves(writer: "MemoryWriter", config: MemformerConfig) -> None:
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
