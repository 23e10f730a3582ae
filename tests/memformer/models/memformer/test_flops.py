# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Counted operations and parameters against the real model.

Covers: memformer/models/sizes.py
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memformer import Memformer, MemformerConfig
from memformer.models.memformer.flops import segment_flops
from memformer.models.sizes import advance_share, count_parameters, hardware_flops_per_token, model_flops_per_token
from memformer.replay import Segment

SMALL = MemformerConfig(
    num_encoder_layers=2,
    num_decoder_layers=3,
    d_model=32,
    num_heads=4,
    d_ff=48,
    num_memory_slots=5,
    vocab_size=41,
    start_token_id=40,
)
VARIANTS = {
    "small": {},
    "no-memory": {"num_memory_slots": 0},
    "untied": {"tie_embeddings": False},
    "read-norm": {"memory_read_norm": True},
    "one-writer-head": {"writer_heads": 1},
    "wide": {"d_ff": 200, "num_memory_slots": 17},
    "overlap": {"overlap": 5},
    "modern": {"overlap": 5, "block": "modern"},
    "overlap-above-a-segment": {"overlap": 99},
}
LANES, LENGTH = 3, 24


def variant(name: str) -> MemformerConfig:
    return dataclasses.replace(SMALL, **VARIANTS[name])


@pytest.fixture(autouse=True)
def _attention_as_matrix_products() -> Iterator[None]:
    """The counter does not know the fused kernel of the CPU; the written-out form it counts."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def full_segment() -> Segment:
    tokens = torch.randint(0, 40, (LANES, LENGTH))
    length = torch.full((LANES,), LENGTH)
    return Segment(tokens, length, tokens, length, torch.zeros(LANES, dtype=torch.bool), ragged=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_equal_the_models(name: str) -> None:
    config = variant(name)
    assert count_parameters(config) == sum(p.numel() for p in Memformer(config).parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_and_advance_equal_the_counter(name: str) -> None:
    """Within 0.5 %: both count matrix products alone, so only a product written as a sum can differ."""
    config = variant(name)
    model, segment = Memformer(config), full_segment()
    memory = model.initial_memory(LANES)
    counted = segment_flops(config, LENGTH)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(segment, memory)
    assert forward.get_total_flops() == pytest.approx(LANES * counted.forward, rel=5e-3)
    with torch.no_grad(), FlopCounterMode(display=False) as advance:
        model.advance(segment, memory)
    assert advance.get_total_flops() == pytest.approx(LANES * counted.advance, rel=5e-3)


def test_a_training_step_costs_three_forwards() -> None:
    """Within 1 %."""
    model, segment = Memformer(SMALL), full_segment()
    with FlopCounterMode(display=False) as step:
        loss, _, next_memory = model(segment, model.initial_memory(LANES))
        (loss + next_memory.sum()).backward()
    expected = model_flops_per_token(SMALL, LENGTH) * LENGTH * LANES
    assert step.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_hardware_operations_add_what_is_recomputed() -> None:
    flops, model = segment_flops(SMALL, LENGTH), model_flops_per_token(SMALL, LENGTH)
    layers = flops.encoder + flops.decoder
    assert hardware_flops_per_token(SMALL, LENGTH, 8, "bptt", "none") == model
    assert hardware_flops_per_token(SMALL, LENGTH, 1, "mrbp", "none") == model
    replayed = hardware_flops_per_token(SMALL, LENGTH, 4, "mrbp", "none")
    assert replayed - model == pytest.approx(0.75 * flops.advance / LENGTH)
    assert replayed / model == pytest.approx(1 + 0.75 * advance_share(SMALL, LENGTH) / 3)
    in_twos = hardware_flops_per_token(SMALL, LENGTH, 8, "mrbp", "none", memory_interval=2)
    assert in_twos - hardware_flops_per_token(SMALL, LENGTH, 8, "mrbp", "none") == pytest.approx(
        2 / 8 * flops.advance / LENGTH  # 7 memories, 5 of them kept
    )
    both = hardware_flops_per_token(SMALL, LENGTH, 4, "mrbp", "full")
    assert both - replayed == pytest.approx(layers / LENGTH)


def test_the_vocabulary_must_be_known() -> None:
    with pytest.raises(ValueError, match="vocab_size is None"):
        count_parameters(MemformerConfig())
