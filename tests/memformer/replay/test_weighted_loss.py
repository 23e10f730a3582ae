# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Targets that count by weights: the mean of losses by their weights, exactly, in both families and both algorithms.

The reference is a loop over targets that any reader can check, and one call of `backward`, all in float64.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from memformer.replay import Carry, ReplayBuffer, Rollout, RolloutResult, bptt_backward, memory_replay_backward
from tests.memformer.examples import ragged_rollout, small_model
from tests.memformer.models.backbone import examples as backbone

LENGTH, ONE = 6, 1 << 15
TOLERANCE = 1e-12
MODELS: dict[str, Callable[[], Any]] = {
    "memformer": lambda: small_model(),
    "no memory": lambda: small_model(num_memory_slots=0),
    "backbone": lambda: backbone.make(backbone.config_of("llama", "associative"), moved=0.1),
    "backbone, bos": lambda: backbone.make(backbone.config_of("gpt2", "slots", bos_token_id=5), moved=0.1),
}


def weighted_rollout(weights: torch.Tensor | None = None) -> Rollout:
    """Ragged lanes, one of them with no weight at all; some targets count whole, some in part and some not."""
    plain = ragged_rollout(segments=5, length=LENGTH)
    if weights is None:
        generator = torch.Generator().manual_seed(9)
        weights = torch.randint(0, ONE, plain.tokens.shape, generator=generator).float() / ONE
        weights = torch.where(torch.rand(weights.shape, generator=generator) < 0.4, 0.0, weights)
        weights[0, 1:3] = 1.0
        weights[1] = 0.0
    beyond = torch.arange(LENGTH) >= plain.lengths[..., None]
    return Rollout.of(plain.tokens, plain.lengths, plain.resets, loss_weights=weights.masked_fill(beyond, 0))


def gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone() for p in model.parameters()]
    )


def trained(model: Any, rollout: Rollout, algorithm: Any = memory_replay_backward, **options: Any) -> RolloutResult:
    model.zero_grad()
    carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
    result: RolloutResult = algorithm(model, rollout, carry, **options)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_mean_of_single_losses_by_their_weights(name: str) -> None:
    model, rollout = MODELS[name](), weighted_rollout()
    assert rollout.loss_weights is not None
    total, counted, segments = torch.zeros((), dtype=torch.float64), 0.0, []
    carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
    memory = carry.memory
    for t in range(rollout.num_segments):
        losses, memory = model.losses(rollout.segment(t, carry), memory)
        before = total
        for lane in range(len(losses)):
            for place in range(int(rollout.lengths[lane, t])):
                weight = float(rollout.loss_weights[lane, t, place])
                total, counted = total + weight * losses[lane, place], counted + weight
        segments.append(float((total - before).detach()))
    model.zero_grad()
    (total / counted).backward()
    expected = gradients(model)
    assert float(expected.norm()) > 0 and float(rollout.loss_weights.sum(dtype=torch.float64)) == counted
    for algorithm, interval in ((bptt_backward, 1), (memory_replay_backward, 1), (memory_replay_backward, 2)):
        buffer = ReplayBuffer(interval=interval)
        result = trained(model, rollout, algorithm, denominator=counted, buffer=buffer)
        assert float((gradients(model) - expected).norm() / expected.norm()) < TOLERANCE
        assert result.segment_losses.tolist() == pytest.approx(segments, rel=TOLERANCE)
        assert torch.equal(result.segment_tokens, rollout.lengths.sum(0))  # tokens are counted whatever they weigh


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_one_are_no_weights_to_the_last_bit(name: str) -> None:
    model, rollout = MODELS[name](), weighted_rollout(torch.ones(4, 5, LENGTH))
    ones, expected = trained(model, rollout, denominator=17.0), gradients(model)
    plain = ragged_rollout(segments=5, length=LENGTH)
    without = trained(model, plain, denominator=17.0)
    assert torch.equal(gradients(model), expected)
    assert torch.equal(ones.segment_losses, without.segment_losses)


def test_a_lane_counts_by_its_targets_and_parts_of_the_lanes_add_up() -> None:
    model, whole = small_model(), weighted_rollout()
    trained(model, whole, denominator=3.0)
    expected = gradients(model)
    parts = []
    for lanes in ((0, 1), (1, 2), (2, 4)):
        part = whole.lanes(*lanes)
        assert part.segment(2, Carry.empty(model.initial_memory(len(part.tokens)), LENGTH)).counted.shape == (
            lanes[1] - lanes[0],
        )
        trained(model, part, denominator=3.0)
        parts.append(gradients(model))
    assert float((sum(parts) - expected).norm() / expected.norm()) < TOLERANCE
    assert not parts[1].any(), "the lane without a weight has left a gradient"


@pytest.mark.parametrize("algorithm", [memory_replay_backward, bptt_backward])
def test_where_nothing_counts_there_is_no_loss_and_no_gradient(algorithm: Any) -> None:
    model = small_model()
    result = trained(model, weighted_rollout(torch.zeros(4, 5, LENGTH)), algorithm, denominator=1.0)
    assert not result.segment_losses.any() and not gradients(model).any()
    assert result.carry.memory.isfinite().all() and result.carry.memory.any(), "what does not count is read"
