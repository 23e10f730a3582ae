# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""torch's AdamW with its averages in 16 bits (`optimizer.state_dtype`): half the memory of the states.

The arithmetic is torch's, in float32, on a stretch of the parameters at a time; only what is kept between two steps is
rounded. bfloat16 has 8 bits of mantissa: an average that moves by a thousandth of itself would always be rounded back
to what it was, so each number is rounded up or down at random, with the odds that make its expectation right.
"""

from typing import Any

import torch
from torch.optim.adamw import adamw

STRETCH = 2**22
"""Elements whose averages are in float32 at a time."""

_FIRST, _SECOND, _STEP = -1640531535, -2048144777, 668265263  # odd numbers of 32 bits, as integer hashes have them


def round_into(stored: torch.Tensor, values: torch.Tensor, step: torch.Tensor) -> None:
    """Stores float32 values in bfloat16, each rounded up or down with odds by its distance (stochastic rounding).

    The random bits are a hash of the value and the step. So processes that hold the same number round it alike,
    wherever it lies, a run that resumes rounds as the one that was never stopped, and no generator has a state.

    Args:
        stored: bfloat16, written to.
        values: float32 of the same shape, finite.
        step: One number, the optimizer's step count, on the same device.
    """
    bits = values.contiguous().view(torch.int32)
    noise = (bits ^ (step.to(torch.int32) * _STEP)) * _FIRST
    noise = (noise ^ (noise >> 15)) * _SECOND
    noise = (noise >> 16) & 0xFFFF
    stored.copy_(((bits + noise) & -0x10000).view(torch.float32))


def stretches(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of a tensor's elements, `STRETCH` at a time."""
    return torch.split(tensor.view(-1), STRETCH)


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW whose averages may be stored in bfloat16.

    Args:
        groups: As torch takes them.
        state_dtype: What the averages are stored in.
        options: As torch takes them.
    """

    def __init__(self, groups: list[dict[str, Any]], state_dtype: torch.dtype, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self.state_dtype = state_dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; a closure is not called."""
        if self.state_dtype == torch.float32:
            super().step()
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_in_stretches(parameter, group)

    def state_of(self, parameter: torch.Tensor, *kinds: str) -> dict[str, Any]:
        """The state of a parameter, which is made at its first step: a step count, and a tensor of each kind."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for kind in kinds:
                state[kind] = torch.zeros_like(parameter, dtype=self.state_dtype)
        return state

    def _step_in_stretches(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state_of(parameter, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        before = state["step"].clone()
        state["step"] += 1
        assert parameter.grad is not None
        tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        for weight, gradient, *stored in zip(*map(stretches, tensors), strict=True):
            averages = [each.float() for each in stored]
            adamw(
                [weight],
                [gradient],
                averages[:1],
                averages[1:],
                max_exp_avg_sqs=[],
                state_steps=[before.clone()],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for target, average in zip(stored, averages, strict=True):
                round_into(target, average, state["step"])
