# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many floating-point operations a segment costs, by part of the model.

Counted are matrix products, a multiply-add as 2, for one full segment of one lane; attention counts all L*L pairs,
causal or not, as `memformer/flops.py` beside it does. The matrices of a layer are counted on one without numbers.

Shapes: S tokens, L inputs of the backbone, M write tokens, K slots, P features of a key, D width, V ids.
"""

import dataclasses
import functools

import torch

from memformer.models.backbone.config import FEATURES, BackboneConfig
from memformer.models.backbone.parts import language_model
from memformer.models.family_record import LayerFlops


@dataclasses.dataclass(frozen=True)
class SegmentFlops:
    """Operations of one forward of one lane's segment.

    Attributes:
        layers: All layers, with what they read from the memory.
        advance: The layers that the memory depends on, and its writing.
        forward: All of it, the head included.
    """

    layers: int
    advance: int
    forward: int


@functools.lru_cache(maxsize=64)
def layer_matrices(config: BackboneConfig) -> int:
    """Numbers in the matrices of one layer of the backbone.

    Raises:
        ValueError: transformers is not installed, or refuses the sizes.
    """
    with torch.device("meta"):
        model = language_model(config, **{config.architecture.sizes[0]: 1})
    layers = getattr(getattr(model, config.architecture.body), config.architecture.layers)
    return sum(each.numel() for each in layers.parameters() if each.ndim >= 2)


def segment_flops(config: BackboneConfig, segment_length: int) -> SegmentFlops:
    """The forward operations of a full segment of `segment_length` tokens.

    Raises:
        ValueError: vocab_size is None, or see `layer_matrices`.
    """
    block, reader, writer, head = _parts(config, segment_length)
    writes = len(config.memory_layers) if config.memory.kind == "associative" else 1
    reading, advanced = config.layer_counts()[config.stacks[0]], config.advanced_counts()[config.stacks[0]]
    layers = config.num_layers * block + reading * reader
    advance = config.memory_depth * block + advanced * reader + writes * writer
    return SegmentFlops(layers, advance, layers + writes * writer + head)


def layer_flops(config: BackboneConfig, segment_length: int) -> list[LayerFlops]:
    """The same by layer, of layers with memories of their own (`family_record.Stages.costs`)."""
    block, reader, writer, head = _parts(config, segment_length)
    found = []
    for number in range(config.num_layers):
        reads = number in config.memory_layers
        layer, written = block + reads * reader, reads * writer
        beside = written + (head if number == config.num_layers - 1 else 0)
        found.append(LayerFlops(layer, beside, layer + written if number < config.memory_depth else 0))
    return found


def _parts(config: BackboneConfig, segment_length: int) -> tuple[int, int, int, int]:
    """A layer, what it reads from the memory, one writing of the memory, and the head."""
    memory, d, s = config.memory, config.width, segment_length
    length = config.length_of(s)
    heads = int(config.backbone[config.architecture.sizes[2]])
    head_size = int(config.backbone.get("head_dim") or d // heads)
    block = 2 * length * layer_matrices(config) + 4 * length**2 * heads * head_size
    k, features, columns = memory.num_slots, FEATURES * memory.d_key, config.memory_shape[1]
    reader = writer = 0
    if memory.kind == "associative":
        reader = 2 * length * (d * memory.d_key + columns * features)
        likeness = 2 * memory.back * features  # of the delta rule's keys to one another
        writer = memory.back * (2 * d * (d + memory.d_key + 1) + 4 * columns * features + likeness)
    elif memory.kind == "slots":
        reader = 4 * (length + k) * d**2 + 4 * length * k * d
        writer = 4 * k * d * d + 4 * s * d * d + 4 * k * s * d
    return block, reader, writer, 2 * s * d * config.own_vocabulary
