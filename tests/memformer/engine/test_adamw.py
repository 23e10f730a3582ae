# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""AdamW's averages in bfloat16: rounding that is right on average, the same everywhere; close steps."""

import pytest
import torch

from memformer.engine import adamw
from memformer.engine.adamw import AdamW, round_into

GROUP = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def rounded(values: torch.Tensor, step: int) -> torch.Tensor:
    """In bfloat16, as float32."""
    stored = torch.empty_like(values, dtype=torch.bfloat16)
    round_into(stored, values, torch.tensor(float(step)))
    return stored.float()


def test_rounding_goes_to_a_neighbour_and_is_right_on_average() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 1e-6
    found = rounded(values, 7)
    unit = 2.0 ** (torch.floor(torch.log2(values.abs())) - 7)
    moved = (found - values) / unit
    assert float(moved.abs().max()) < 1
    assert abs(float(moved.mean())) < 3e-3  # of ups and downs of 0.4 each: three sigma
    assert abs(float((moved * values.sign()).mean())) < 3e-3


def test_a_number_between_two_falls_on_both_in_proportion_from_step_to_step() -> None:
    value = torch.tensor([1 + 0.25 / 128])
    ups = sum(float(rounded(value, step)) > 1 for step in range(1000))
    assert 200 < ups < 300


def test_what_bfloat16_has_is_kept_and_infinity_too() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -3.5, 2.0**-120, float("inf"), -float("inf")])
    assert torch.equal(rounded(values, 3), values)


def test_equal_numbers_are_rounded_alike_wherever_they_lie() -> None:
    """So replicas that cut their parameters otherwise hold the same states."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rounded(values[order], 5), rounded(values, 5)[order])


def descended(state_dtype: torch.dtype, steps: int = 300) -> torch.Tensor:
    """A matrix after steps with noisy gradients towards a target."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(20, 30, generator=generator)
    weight = torch.zeros(20, 30, requires_grad=True)
    optimizer = AdamW([{"params": [weight], **GROUP}], state_dtype)
    for _ in range(steps):
        weight.grad = weight.detach() - target + torch.randn(20, 30, generator=generator)
        optimizer.step()
    return weight.detach()


def test_an_average_that_changes_by_a_thousandth_a_step_does_change() -> None:
    """Without gradients it falls to 0.999 to the power of the steps; rounded to the nearest it would stand still."""
    weight = torch.zeros(400, requires_grad=True)
    optimizer = AdamW([{"params": [weight], **GROUP}], torch.bfloat16)
    weight.grad = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 0.5
    optimizer.step()
    first = optimizer.state[weight]["exp_avg_sq"].float()
    weight.grad = torch.zeros(400)
    for _ in range(500):
        optimizer.step()
    assert float((optimizer.state[weight]["exp_avg_sq"].float() / first).mean()) == pytest.approx(0.999**500, rel=0.05)


def test_steps_stay_close_to_those_with_float32_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the way; seen: 0.4 %."""
    plain = descended(torch.float32)
    monkeypatch.setattr(adamw, "STRETCH", 128)
    assert float((descended(torch.bfloat16) - plain).norm() / plain.norm()) < 0.02


def test_with_float32_states_it_is_torchs() -> None:
    one, other = (torch.ones(4, 5, requires_grad=True) for _ in range(2))
    optimizers = AdamW([{"params": [one], **GROUP}], torch.float32), torch.optim.AdamW([other], fused=True, **GROUP)
    for step in range(3):
        for weight, optimizer in zip((one, other), optimizers, strict=True):
            weight.grad = torch.full((4, 5), step - 0.5)
            optimizer.step()
    assert torch.equal(one, other)


def test_states_are_stored_as_asked() -> None:
    weight = torch.ones(4, requires_grad=True)
    weight.grad = torch.ones(4)
    optimizer = AdamW([{"params": [weight], **GROUP}], torch.bfloat16)
    optimizer.step()
    state = optimizer.state[weight]
    assert {state[kind].dtype for kind in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    assert float(state["step"]) == 1
