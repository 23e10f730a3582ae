# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many parameters and floating-point operations a configuration has, before any of it is built."""

import dataclasses
import functools

import torch

from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of
from memformer.replay.kept import KeptMemories


@functools.lru_cache(maxsize=64)
def count_parameters(config: ModelConfig) -> int:
    """Parameters of a model of this configuration, tied ones once; counted on a model without numbers.

    Raises:
        ValueError: config.vocab_size is None.
    """
    if config.vocab_size is None:
        raise ValueError("vocab_size is None: take it from the tokenizer")
    whole = dataclasses.replace(config, start_token_id=0)  # type: ignore[type-var]  # subclasses are dataclasses
    with torch.device("meta"):
        model = family_of(config).build(whole)
    return sum(parameter.numel() for parameter in model.parameters())


def model_flops_per_token(config: ModelConfig, segment_length: int) -> float:
    """Operations a target token costs at least: forward, and a backward of twice that. The numerator of MFU."""
    return 3 * family_of(config).flops(config, segment_length).forward / segment_length


def hardware_flops_per_token(
    config: ModelConfig,
    segment_length: int,
    num_segments: int,
    replay: str,
    activation_checkpointing: str,
    memory_interval: int = 1,
) -> float:
    """Operations a target token really costs, recomputation included. The numerator of HFU.

    Args:
        config: The model.
        segment_length: S.
        num_segments: T of a rollout.
        replay: "mrbp" computes the memory's path of T-1 segments twice; "bptt" computes nothing twice.
        activation_checkpointing: "full" computes every layer once more in its backward; "none" does not.
        memory_interval: Memories of a group of which one is kept, and the others are computed a third time.
    """
    flops = family_of(config).flops(config, segment_length)
    recomputed = 0.0
    if replay == "mrbp":
        again = num_segments - 1 + KeptMemories(num_segments, memory_interval).recomputed
        recomputed += flops.advance * again / num_segments
    if activation_checkpointing == "full":
        recomputed += flops.layers
    return model_flops_per_token(config, segment_length) + recomputed / segment_length


def advance_share(config: ModelConfig, segment_length: int) -> float:
    """f, the part of one forward that the replay's first pass repeats (a Memformer's encoder and writer), 0 .. 1."""
    flops = family_of(config).flops(config, segment_length)
    return flops.advance / flops.forward
