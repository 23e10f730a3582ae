# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Initial values, stated in one place.

| parameter | distribution |
|---|---|
| linear weights | normal, std 1/sqrt(fan_in) |
| last projection of a residual branch | the same, divided by sqrt(number of residual branches of its stack) |
| embedding and head | normal, std 1/sqrt(D); the embedding is multiplied by sqrt(D) on the way in |
| the writer's value | normal, std 1/D: a layer-normed token of length sqrt(D) writes a vector of about unit length |
| slot bias | normal, std 1/sqrt(D): about unit length, so a slot's own direction outweighs an average of tokens |
| layer norms | weight 1, bias 0 |

The last two rows keep slots apart: without training, slots that all average the same tokens would otherwise take
one and the same direction within some twenty segments.
"""

from typing import TYPE_CHECKING

from torch import nn

from memformer.model.config import MemformerConfig

if TYPE_CHECKING:
    from memformer.model.memformer import Memformer


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
    nn.init.normal_(model.embedding.tokens.weight, std=config.d_model**-0.5)
    if model.writer is not None:
        nn.init.normal_(model.writer.value.weight, std=1 / config.d_model)
        nn.init.normal_(model.forget.bias, std=config.d_model**-0.5)
