# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Rollouts, carries and segments: what a segment is given as context, and parts of the lanes.

Covers: memformer/replay/segment.py
"""

import pytest
import torch

from memformer.replay import Carry, Rollout, Segment

LANES, SEGMENTS, LENGTH = 4, 3, 5


def example() -> tuple[Rollout, Carry]:
    """Lane 1 is ragged in segment 1, lane 2 begins a document in segment 2; the carry of lane 3 is short."""
    tokens = torch.arange(LANES * SEGMENTS * LENGTH).view(LANES, SEGMENTS, LENGTH)
    lengths = torch.full((LANES, SEGMENTS), LENGTH)
    lengths[1, 1] = 2
    resets = torch.zeros(LANES, SEGMENTS, dtype=torch.bool)
    resets[2, 2] = True
    memory = torch.randn(LANES, 2, 3, generator=torch.Generator().manual_seed(0))
    before = torch.tensor([LENGTH, LENGTH, LENGTH, 1])
    rollout = Rollout.of(tokens, lengths, resets, loss_weights=tokens / 64)
    return rollout, Carry(memory, -tokens[:, 0], before, ragged=True)


def same(ours: Segment, theirs: Segment) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("index", range(SEGMENTS))
def test_a_part_of_the_lanes_reads_what_it_reads_among_all(index: int) -> None:
    rollout, carry = example()
    whole = rollout.segment(index, carry).lanes(1, 3)
    part = rollout.lanes(1, 3).segment(index, carry.lanes(1, 3))
    assert same(part, whole)
    assert part.target.tolist() == rollout.tokens[1:3, index].tolist()
    assert part.loss_weights is not None and torch.equal(part.loss_weights, part.target / 64)


def test_a_part_of_a_carry_is_of_the_same_lanes() -> None:
    rollout, carry = example()
    part = carry.lanes(3, 4)
    assert torch.equal(part.memory, carry.memory[3:])
    assert part.length.tolist() == [1]
    assert torch.equal(part.tokens, carry.tokens[3:])
    after = rollout.carry(carry.memory).lanes(0, 2)
    ours = rollout.lanes(0, 2).carry(carry.memory[:2])
    assert torch.equal(after.tokens, ours.tokens)
    assert torch.equal(after.length, ours.length)


def test_the_context_is_the_segment_before_and_is_masked_where_it_must_be() -> None:
    rollout, carry = example()
    first, second, third = (rollout.segment(index, carry) for index in range(SEGMENTS))
    assert torch.equal(first.context, carry.tokens)
    assert torch.equal(second.context, rollout.tokens[:, 0])
    assert third.context_length.tolist() == [LENGTH, 2, LENGTH, LENGTH]
    assert [each.ragged for each in (first, second, third)] == [True, False, True]


def test_lanes_that_have_read_nothing_have_an_empty_context() -> None:
    carry = Carry.empty(torch.ones(2, 3, 4, requires_grad=True), LENGTH)
    assert carry.length.tolist() == [0, 0]
    assert carry.tokens.shape == (2, LENGTH)
    assert not carry.memory.requires_grad
