# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Small models and made-up data for the tests of this folder.

Shapes: B lanes, T segments, S tokens a segment.
"""

import dataclasses
from typing import Any

import torch

from memformer import Memformer, MemformerConfig
from memformer.replay import Rollout, Segment

VOCABULARY = 31
START = 30
SMALL = MemformerConfig(
    num_encoder_layers=2,
    num_decoder_layers=2,
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_memory_slots=3,
    vocab_size=VOCABULARY,
    start_token_id=START,
)


def small_config(**changes: Any) -> MemformerConfig:
    return dataclasses.replace(SMALL, **changes)


def small_model(dtype: torch.dtype = torch.float64, **changes: Any) -> Memformer:
    """A model with the same weights at every call."""
    torch.manual_seed(0)
    return Memformer(small_config(**changes)).to(dtype)


def random_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, START, shape, generator=torch.Generator().manual_seed(seed))


def random_memory(model: Memformer, lanes: int, seed: int = 2) -> torch.Tensor:
    """Slots of unit length that are not the initial ones, in the model's dtype."""
    shape = (lanes, model.config.num_memory_slots, model.config.d_model)
    memory = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(memory, dim=-1).to(model.encoder_norm.weight.dtype)


def full_segment(lanes: int, length: int, seed: int = 3) -> Segment:
    """Every lane in the middle of a document."""
    lengths = torch.full((lanes,), length)
    never = torch.zeros(lanes, dtype=torch.bool)
    context, target = random_tokens(2, lanes, length, seed=seed)
    return Segment(context, lengths, target, lengths, never, ragged=False)


def ragged_rollout(lanes: int = 4, segments: int = 4, length: int = 6, seed: int = 5) -> Rollout:
    """Lane 1 ends a document early and starts another, lane 2 (if any) goes idle, lane 3 is idle throughout."""
    tokens = random_tokens(lanes, segments, length, seed=seed)
    lengths = torch.full((lanes, segments), length)
    resets = torch.zeros(lanes, segments, dtype=torch.bool)
    resets[0, 0] = True
    middle = segments // 2
    if middle:
        lengths[1, middle - 1], resets[1, middle] = 2, True
    lengths[2:3, -1] = 0
    lengths[3:] = 0
    return Rollout.of(tokens, lengths, resets)
