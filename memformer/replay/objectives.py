# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Scalars whose backward hands on gradients that another graph left behind.

An engine knows one backward, on a scalar that it scales (fp16). What comes from another graph carries that scale
already, so it is handed to its tensor as it is, and not multiplied into the objective.
"""

from typing import Any

import torch


class _WithGradient(torch.autograd.Function):
    """The identity on a loss whose backward also hands a given gradient to a tensor."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, tensor: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return grad_outputs[0], ctx.saved_tensors[0], None


class _Given(torch.autograd.Function):
    """A zero whose backward hands given gradients to tensors."""

    @staticmethod
    def forward(ctx: Any, *tensors_and_gradients: torch.Tensor) -> torch.Tensor:
        half = len(tensors_and_gradients) // 2
        ctx.save_for_backward(*tensors_and_gradients[half:])
        return tensors_and_gradients[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return (*gradients, *([None] * len(gradients)))


def with_gradient(loss: torch.Tensor, tensor: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The loss, whose backward also hands `gradient` to `tensor`: <tensor, gradient> without its value."""
    return _WithGradient.apply(loss, tensor, gradient)  # type: ignore[no-any-return,no-untyped-call]


def given(tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> torch.Tensor:
    """The objective of what has no loss: a zero whose backward hands `gradients` to `tensors`."""
    return _Given.apply(*tensors, *gradients)  # type: ignore[no-any-return,no-untyped-call]
