# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Muon: the momentum of each matrix, made orthogonal, is its step; all else is stepped by AdamW.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
(kellerjordan.github.io/posts/muon); the size of a step, 0.2 sqrt(max(rows, columns)), which makes it as large as
AdamW's, so that one learning rate and one weight decay serve both, is that of J. Liu et al., "Muon is Scalable for LLM
Training" (arXiv 2502.16982). `torch.optim.Muon` with adjust_lr_fn "match_rms_adamw" is the same rule for whole matrices
on one process; here a matrix is whole on none.

A step of a matrix W with gradient G, momentum M, learning rate lr, decay wd and m = optimizer.momentum:

    M <- m M + G        O <- orthogonalised(G + m M)        W <- (1 - lr wd) W - 0.2 lr sqrt(max(rows, columns)) O

DeepSpeed 0.19.8 has a Muon of its own, which is not used: it makes each tensor-parallel part orthogonal by itself, it
takes norm and clipping from its update at stage 3, and with it stage 3 takes no scattered reduction.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from memformer.engine.adamw import AdamW, round_into, stretches
from memformer.engine.matrix_exchange import MatrixExchange
from memformer.engine.parameter_state import Piece

MOMENTUM = "momentum_buffer"
"""Kind of the state of a matrix, beside its step count."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic, chosen by Jordan et al. for its slope at 0: singular values end between 0.68 and 1.21."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7
"""A matrix below this norm is not blown up to full size: it is rounding."""
RMS = 0.2
"""Of a step's elements for a learning rate of 1, as AdamW's are in training."""


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, roughly: all singular values become about 1 (Newton-Schulz, five iterations).

    Args:
        matrix: [rows, columns], of any float dtype, which is what it is computed in.

    Returns:
        U S V^T for matrix = U D V^T, with S between 0.68 and 1.21 where D is above 0.0015 of its norm, and smaller
        below; zeros for zeros.
    """
    a, b, c = COEFFICIENTS
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


class Muon(AdamW):
    """Muon for the groups whose `muon` is true, AdamW for the others.

    Args:
        groups: As `parameter_groups` makes them; matrices may lie in flat tensors, in pieces.
        momentum: m above.
        state_dtype: What momentum and averages are stored in.
        options: As torch's AdamW takes them.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, state_dtype: torch.dtype, **options: Any) -> None:
        super().__init__(groups, state_dtype, **options)
        self._momentum = momentum
        self._exchange: Callable[..., None] = self._unspread

    def spread(self, exchange: MatrixExchange) -> None:
        """Says where the matrices lie, once that is known."""
        self._exchange = exchange.work

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. Called by all processes of a stage together, each with its pieces of the same matrices."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"] and group["params"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        rate, flats = group["lr"], group["params"]
        for flat in flats:
            self._move_momentum(flat)
            flat.mul_(1 - rate * group["weight_decay"])

        def give(piece: Piece) -> torch.Tensor:
            ahead: torch.Tensor = self.state[piece.flat][MOMENTUM].view(-1)[_stretch(piece)].float() * self._momentum
            return ahead if piece.flat.grad is None else ahead.add_(piece.flat.grad.view(-1)[_stretch(piece)])

        def take(piece: Piece, direction: torch.Tensor) -> None:
            size = RMS * math.sqrt(max(piece.region.shape))
            weight = piece.flat.view(-1)[_stretch(piece)]
            weight.add_(direction.to(weight.device, weight.dtype), alpha=-rate * size)

        self._exchange(flats, give, orthogonalised, take)

    def _move_momentum(self, flat: torch.Tensor) -> None:
        """Without a gradient as with zeros, which is what ZeRO gives a parameter that a rollout does not use."""
        state = self.state_of(flat, MOMENTUM)
        state["step"] += 1
        if self.state_dtype == torch.float32:
            state[MOMENTUM].mul_(self._momentum)
            if flat.grad is not None:
                state[MOMENTUM].add_(flat.grad)
            return
        gradient = torch.zeros_like(flat) if flat.grad is None else flat.grad
        for momentum, part in zip(stretches(state[MOMENTUM]), stretches(gradient), strict=True):
            round_into(momentum, momentum.float().mul_(self._momentum).add_(part), state["step"])

    @staticmethod
    def _unspread(*_: Any) -> None:
        raise RuntimeError("Muon.step before Muon.spread: nothing is known of where the matrices lie")


def _stretch(piece: Piece) -> slice:
    return slice(piece.offset, piece.offset + piece.region.stop - piece.region.start)
