# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Replay whose decoder takes several segments at once, against full back-propagation through time, in float64.

Random numbers included: with dropout on, masks are those of the reference, segment by segment.

Covers: memformer/replay/objectives.py
"""

import functools
from typing import Any

import pytest
import torch

from memformer.models.configuration import FORGETTING
from memformer.replay import ReplayBuffer, Segment, bptt_backward, grouped_replay_backward, memory_replay_backward
from memformer.replay import grouped as grouped_module
from memformer.replay.kept import DecoderGroups
from memformer.replay.random_state import redrawing, stream_of, streams_of_parts
from tests.memformer.examples import ragged_rollout, small_model
from tests.memformer.replay.gradients import TOLERANCE, assert_same, carry_of, error, run, scaled_backward


def grouped(group: int) -> Any:
    return functools.partial(grouped_replay_backward, group=group)


@pytest.mark.parametrize(("segments", "group"), [(1, 2), (2, 2), (5, 1), (5, 2), (5, 3), (8, 3), (8, 8)])
@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3},
        {"dropout": 0.3, "tie_embeddings": False, "overlap": 3, "block": "modern"},
        {"num_memory_slots": 0},
        *({"memory_forgetting": mode} for mode in FORGETTING),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_gradients_equal_those_of_full_backpropagation(segments: int, group: int, changes: dict[str, Any]) -> None:
    """Resets in the middle, a lane that ends early, one that goes idle and one that is idle throughout."""
    model = small_model(num_encoder_layers=1, num_decoder_layers=1, **changes)
    rollout = ragged_rollout(segments=segments)
    carry = carry_of(model, rollout)
    buffer = ReplayBuffer()
    replayed = run(grouped(group), model, rollout, carry, buffer=buffer)
    assert_same(replayed, run(bptt_backward, model, rollout, carry))
    kept = -(-segments // group) - 1
    assert buffer.stored_bytes == 0 and buffer.peak_bytes == kept * carry.memory.numel() * 8


@pytest.mark.parametrize("group", [2, 4])
def test_loss_weights_and_a_loss_scale(group: int) -> None:
    model = small_model()
    plain = ragged_rollout(segments=4)
    weights = torch.rand(plain.tokens.shape, generator=torch.Generator().manual_seed(8))
    weights[torch.arange(6) >= plain.lengths[..., None]] = 0
    rollout = type(plain).of(plain.tokens, plain.lengths, plain.resets, loss_weights=weights)
    carry = carry_of(model, rollout)
    expected = run(bptt_backward, model, rollout, carry)
    assert_same(run(grouped(group), model, rollout, carry), expected)
    scaled = run(grouped(group), model, rollout, carry, backward=scaled_backward)[1]
    assert error({name: gradient / 256 for name, gradient in scaled.items()}, expected[1]) <= TOLERANCE
    assert error(run(grouped(group), model, plain, carry)[1], expected[1]) > 1e-2, "the weights count"


@pytest.mark.parametrize("group", [1, 3, 4, 16])
def test_what_is_computed(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder call a group; encoders with a graph once a segment, without one at most 2 - 1/G times."""
    model = small_model()
    rollout = ragged_rollout(segments=7)
    carry = carry_of(model, rollout)
    decoded: list[int] = []
    encoded = {True: 0, False: 0}
    score, encode = model.score, model.encode

    def scored(segment: Segment, context: torch.Tensor) -> torch.Tensor:
        decoded.append(len(context))
        return score(segment, context)

    def read(*inputs: Any) -> Any:
        encoded[torch.is_grad_enabled()] += 1
        return encode(*inputs)

    monkeypatch.setattr(model, "score", scored)
    monkeypatch.setattr(model, "encode", read)
    left: list[int] = []

    def backward(objective: torch.Tensor, remaining: int) -> None:
        left.append(remaining)
        objective.backward()

    run(grouped(group), model, rollout, carry, backward=backward)
    spans = DecoderGroups(7, group).spans
    assert decoded == [4 * len(span) for span in reversed(spans)]
    assert encoded == {True: 7, False: 6 + DecoderGroups(7, group).recomputed}
    assert left == list(range(7 + len(spans) - 1, -1, -1))


def test_groups_are_filled_from_the_end() -> None:
    for segments in range(1, 12):
        for group in (1, 2, 3, 5, 20):
            spans = DecoderGroups(segments, group).spans
            assert [t for span in spans for t in span] == list(range(segments))
            assert all(len(span) == min(group, segments) for span in spans[1:]) and len(spans[0]) <= group


def test_masks_of_one_stream_for_all_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with dropout is not one of zeros: a batch that is drawn as one has another gradient."""
    model = small_model(dropout=0.3)
    rollout = ragged_rollout(segments=4)
    carry = carry_of(model, rollout)
    expected = run(memory_replay_backward, model, rollout, carry)[1]
    assert error(run(grouped(2), model, rollout, carry)[1], expected) <= TOLERANCE
    monkeypatch.setattr(grouped_module, "streams_of_parts", lambda *_: torch.enable_grad())
    assert error(run(grouped(2), model, rollout, carry)[1], expected) > 1e-2


def test_what_is_recomputed_draws_again_by_part() -> None:
    device, streams = torch.device("cpu"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        streams.append(stream_of(device))
    x = torch.ones(4, 50)
    layer = small_model(dropout=0.5).encoder[0].dropout
    with streams_of_parts(device, streams):
        twice = redrawing(layer)
        first, between, again = twice(x), layer(x), twice(x)
    assert torch.equal(first, again) and not torch.equal(first, between)
    torch.manual_seed(2)
    assert torch.equal(first[2:], layer(x[2:]))
