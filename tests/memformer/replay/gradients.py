# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs of a replay whose results are compared: gradients, losses, carry."""

from collections.abc import Callable
from typing import Any

import torch

from memformer import Memformer
from memformer.replay import Carry, Rollout, RolloutResult
from tests.memformer.examples import random_memory, random_tokens

TOLERANCE = 1e-12
Gradients = dict[str, torch.Tensor]


def carry_of(model: Memformer, rollout: Rollout) -> Carry:
    """Lanes in the middle of a document, with a memory of their own; the last lane has read nothing."""
    lanes, _, length = rollout.tokens.shape
    lengths = torch.full((lanes,), length)
    lengths[-1] = 0
    return Carry(random_memory(model, lanes), random_tokens(lanes, length, seed=21), lengths)


def gradients_of(model: Memformer) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(
    algorithm: Callable[..., RolloutResult], model: Memformer, rollout: Rollout, carry: Carry, **options: Any
) -> tuple[RolloutResult, Gradients]:
    model.zero_grad()
    result = algorithm(model, rollout, carry, **{"denominator": 17.0, "seed": 4} | options)
    return result, gradients_of(model)


def error(got: Gradients, expected: Gradients) -> float:
    """||got - expected|| / ||expected|| over all parameters; one that only one side has counts as zero there."""
    names = got.keys() | expected.keys()
    pairs = [(got.get(n, torch.zeros(())), expected.get(n, torch.zeros(()))) for n in names]
    difference = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    size = sum(float(b.square().sum()) for _, b in pairs) ** 0.5
    return difference / size if size else difference


def assert_same(replayed: tuple[RolloutResult, Gradients], reference: tuple[RolloutResult, Gradients]) -> None:
    (got, gradients), (expected, expected_gradients) = replayed, reference
    assert error(gradients, expected_gradients) <= TOLERANCE
    torch.testing.assert_close(got.segment_losses, expected.segment_losses, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(got.segment_tokens, expected.segment_tokens)
    torch.testing.assert_close(got.memory_gradient_norms, expected.memory_gradient_norms, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(got.carry.memory, expected.carry.memory, rtol=TOLERANCE, atol=TOLERANCE)
    assert not got.carry.memory.requires_grad and not expected.carry.memory.requires_grad
    assert torch.equal(got.carry.tokens, expected.carry.tokens)
    assert torch.equal(got.carry.length, expected.carry.length)


def scaled_backward(objective: torch.Tensor, remaining: int) -> None:
    """What an engine with a loss scale of 256 does."""
    (objective * 256).backward()
