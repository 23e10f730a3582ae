# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from memformer.config.schema import OptimizerConfig
from memformer.models.protocol import MemoryModel


def parameter_groups(model: MemoryModel, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices, which decay, and the rest (norms, what the model leaves undecayed), which do not."""
    undecayed = model.undecayed()
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        # ds_shape: ZeRO-3's Init has replaced the data by a partition.
        matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
        (decayed if matrix and name not in undecayed else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(model: MemoryModel, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The AdamW that the settings ask for.

    Args:
        model: Its parameters.
        config: The settings.
        device: Where the optimizer steps: the model's device, or the CPU when it is offloaded.
    """
    groups = parameter_groups(model, config.weight_decay)
    options = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.implementation == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        made = DeepSpeedCPUAdam if device.type == "cpu" else FusedAdam
        return made(groups, adam_w_mode=True, **options)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, fused=True, **options)  # type: ignore[arg-type]


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
