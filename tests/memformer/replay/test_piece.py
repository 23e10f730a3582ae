# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A rollout in pieces, as several processes would train it, against full back-propagation in float64."""

import functools
from typing import Any

import pytest
import torch

from memformer.replay import Carry, ReplayBuffer, Rollout, RolloutResult, bptt_backward
from memformer.replay.piece import RolloutPiece
from tests.memformer.examples import ragged_rollout, small_model
from tests.memformer.replay.gradients import assert_same, carry_of, run, scaled_backward


def in_pieces(
    model: Any, rollout: Rollout, carry: Carry, *, cuts: tuple[int, ...], group: int | None, **options: Any
) -> RolloutResult:
    """All pieces in one process; each is shown only the tokens that it may need."""
    ends = (*cuts, rollout.num_segments)
    pieces = []
    for start, stop in zip((0, *cuts), ends, strict=True):
        known = torch.zeros(rollout.num_segments, dtype=torch.bool)
        known[max(0, start - 1) : stop] = True
        shown = rollout.tokens.where(known[None, :, None], 0)
        own = Rollout(shown, *(getattr(rollout, name) for name in ("lengths", "resets", "full", "starting")))
        pieces.append(
            RolloutPiece(model, own, carry, range(start, stop), buffer=ReplayBuffer(), group=group, **options)
        )
    memory = carry.memory
    for piece in pieces:
        memory = piece.advance(memory)
        if group is not None:
            # Before the rollout's memory has come to its end; at once, or in parts.
            for batches in (1, None) if len(piece._undecoded) > 1 else (None,):
                piece.decode(batches)
    gradient: torch.Tensor | None = None
    for piece in reversed(pieces):
        gradient = piece.replay(gradient)
        assert piece.buffer.stored_bytes == 0
        assert piece.buffer.peak_bytes == len(piece._span) * memory.numel() * memory.element_size()
    assert gradient is not None and not gradient.any(), "truncation cuts before the rollout"
    losses, squares = (sum(getattr(each, name) for each in pieces) for name in ("segment_losses", "squared_norms"))
    return RolloutResult(losses, rollout.lengths.sum(0), squares.sqrt(), rollout.carry(memory))


@pytest.mark.parametrize("cuts", [(), (2,), (1, 2, 4)])
@pytest.mark.parametrize("group", [None, 1, 2])
@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"tie_embeddings": False, "overlap": 3, "block": "modern"}])
def test_gradients_equal_those_of_full_backpropagation(
    cuts: tuple[int, ...], group: int | None, changes: dict[str, Any]
) -> None:
    """Resets in the middle, a lane that ends early, one that goes idle and one that is idle throughout."""
    model, rollout = small_model(num_encoder_layers=1, num_decoder_layers=1, **changes), ragged_rollout(segments=5)
    carry = carry_of(model, rollout)
    cut = functools.partial(in_pieces, cuts=cuts, group=group)
    assert_same(run(cut, model, rollout, carry), run(bptt_backward, model, rollout, carry))


def test_what_crosses_a_seam_carries_the_loss_scale() -> None:
    model, rollout = small_model(), ragged_rollout(segments=3)
    carry = carry_of(model, rollout)
    expected = run(bptt_backward, model, rollout, carry, backward=scaled_backward)
    for group in (None, 1):
        cut = functools.partial(in_pieces, cuts=(1,), group=group)
        assert_same(run(cut, model, rollout, carry, backward=scaled_backward), expected)
