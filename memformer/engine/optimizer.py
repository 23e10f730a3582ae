# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from memformer.config.schema import OptimizerConfig
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of


def parameter_groups(model: MemoryModel, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Matrices, which decay, and the rest (norms, biases, what the model leaves undecayed), which does not.

    With a learning rate of the memory's own its parameters are two further groups of this kind. What is frozen is in
    none, and a group that would be empty is left out.

    Returns:
        `params`, `weight_decay`, and `rate_factor`, which the learning rate is multiplied by.
    """
    undecayed = model.undecayed()
    of_memory = None if config.memory_learning_rate is None else family_of(model.config).memory
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (apart, decays): [] for apart in (False, True) for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        # ds_shape: ZeRO-3's Init has replaced the data by a partition.
        matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
        apart = of_memory is not None and of_memory(name)
        if parameter.requires_grad:
            found[apart, matrix and name not in undecayed].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "rate_factor": config.memory_factor if apart else 1.0,
        }
        for (apart, decays), parameters in found.items()
        if parameters
    ]


def make_optimizer(model: MemoryModel, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The AdamW that the settings ask for.

    Args:
        model: Its parameters.
        config: The settings.
        device: Where the optimizer steps: the model's device, or the CPU when it is offloaded.
    """
    groups = parameter_groups(model, config)
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.implementation == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        made = DeepSpeedCPUAdam if device.type == "cpu" else FusedAdam
        return made(groups, adam_w_mode=True, **options)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, fused=True, **options)


def learning_rate(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """The learning rate of optimizer step `step` (1-based).

    Linear warm-up over `warmup_steps` (the step after it has the peak), then the schedule, which reaches
    `final_fraction` of the peak at `max_steps`.
    """
    peak, floor = config.learning_rate, config.learning_rate * config.final_fraction
    if step <= config.warmup_steps:
        return peak * step / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, max_steps - max(1, round(config.decay_fraction * max_steps)))
    progress = min(1.0, max(0.0, (step - start) / max(1, max_steps - start)))
    if config.schedule == "wsd":
        return peak + (floor - peak) * progress
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
