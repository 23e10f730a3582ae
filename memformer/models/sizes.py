# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many parameters and floating-point operations a configuration has, before any of it is built."""

import dataclasses
import functools

import torch

from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of
from memformer.replay.kept import kept_memories


@functools.lru_cache(maxsize=64)
def count_parameters(config: ModelConfig, train: str = "all") -> int:
    """Parameters of a model of this configuration, tied ones once; counted on a model without numbers.

    Args:
        config: The model.
        train: The setting `training.train`: counted is what is trained.

    Raises:
        ValueError: config.vocab_size is None.
    """
    if config.vocab_size is None:
        raise ValueError("vocab_size is None: take it from the tokenizer")
    whole = dataclasses.replace(config, start_token_id=0)  # type: ignore[type-var]  # subclasses are dataclasses
    with torch.device("meta"):
        model = family_of(config).build(whole)
    family = family_of(config)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if family.trains(train, name))


def model_flops_per_token(config: ModelConfig, segment_length: int, train: str = "all") -> float:
    """Operations a target token costs at least: forward, and a backward of twice that. The numerator of MFU.

    Where the weights are frozen (`train` is not all) the backward is as much as the forward: gradients of activations
    alone. Those of the memory's weights and of adapters, a few per cent, are left out.
    """
    passes = 3 if train == "all" else 2
    return passes * family_of(config).flops(config, segment_length).forward / segment_length


def hardware_flops_per_token(
    config: ModelConfig,
    segment_length: int,
    num_segments: int,
    replay: str,
    activation_checkpointing: str,
    memory_interval: int = 1,
    train: str = "all",
    decoder_group: int = 1,
    window: int = 0,
) -> float:
    """Operations a target token really costs, recomputation included. The numerator of HFU.

    Args:
        config: The model.
        segment_length: S.
        num_segments: T of a rollout.
        replay: "mrbp" computes the memory's path of T-1 segments twice; "bptt" computes nothing twice.
        activation_checkpointing: "full" computes every layer once more in its backward; "none" does not.
        memory_interval: Memories of a group of which one is kept, and the others are computed a third time.
        train: The setting `training.train`.
        decoder_group: Segments that the decoder takes at once.
        window: Segments that go through the layers along diagonals at a time; 0: none do.
    """
    flops = family_of(config).flops(config, segment_length)
    recomputed = 0.0
    if replay == "mrbp":
        again = num_segments - 1 + kept_memories(num_segments, memory_interval, decoder_group).recomputed
        if window:  # all but the last
            again = num_segments - min(window, num_segments)
        recomputed += flops.advance * again / num_segments
    if activation_checkpointing == "full":
        recomputed += flops.layers
    return model_flops_per_token(config, segment_length, train) + recomputed / segment_length


def advance_share(config: ModelConfig, segment_length: int) -> float:
    """f, the part of one forward that the replay's first pass repeats (a Memformer's encoder and writer), 0 .. 1."""
    flops = family_of(config).flops(config, segment_length)
    return flops.advance / flops.forward
