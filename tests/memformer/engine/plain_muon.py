# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Muon as one reads it in its papers: whole matrices, one process, float64. What every way to spread it is held to."""

import math

import torch

from memformer.config.schema import OptimizerConfig
from memformer.engine.optimizer import hidden_matrices, learning_rate
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of


def plain_direction(update: torch.Tensor) -> torch.Tensor:
    """The quintic iteration of the post, five times, for [rows, columns]; float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.double()
    x = x / max(float(torch.linalg.matrix_norm(x)), 1e-7)
    for _ in range(5):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


class PlainMuon(torch.optim.Optimizer):
    """Muon for hidden matrices, and AdamW for the rest by torch's plain loop.

    Args:
        model: Its trained parameters.
        config: The settings; the learning rate stays at its peak.
    """

    def __init__(self, model: MemoryModel, config: OptimizerConfig) -> None:
        names, of_memory = hidden_matrices(model), family_of(model.config).memory
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        super().__init__([p for _, p in trained], {})
        self._config = config
        self._matrices, others = [], []
        for name, parameter in trained:
            apart = config.memory_learning_rate is not None and of_memory is not None and of_memory(name)
            rate = learning_rate(10**9, config.model_copy(update={"schedule": "constant"}), 10**9)
            rate *= config.memory_factor if apart else 1.0
            decay = config.weight_decay if parameter.dim() >= 2 and name not in model.undecayed() else 0.0
            if name in names:
                self._matrices.append((parameter, rate))
            else:
                others.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        self._momenta = [torch.zeros_like(parameter, dtype=torch.float64) for parameter, _ in self._matrices]
        self._others = torch.optim.AdamW(
            others, betas=(config.beta1, config.beta2), eps=config.epsilon, foreach=False, fused=False
        )

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step."""
        self._others.step()
        for (parameter, rate), momentum in zip(self._matrices, self._momenta, strict=True):
            gradient = torch.zeros_like(momentum) if parameter.grad is None else parameter.grad.double()
            momentum.mul_(self._config.momentum).add_(gradient)
            direction = plain_direction(gradient + self._config.momentum * momentum)
            scale = 0.2 * math.sqrt(max(parameter.shape))
            parameter.mul_(1 - rate * self._config.weight_decay).sub_((rate * scale * direction).float())
