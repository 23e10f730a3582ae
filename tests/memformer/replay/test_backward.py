# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay against full back-propagation through time, in float64: gradients, losses, carry, randomness.

The reference of the reference is `plain_gradients`: a loop that any reader can check, and one call of `backward`.

Covers: memformer/replay/buffer.py, memformer/replay/kept.py, memformer/replay/random_state.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memformer import Memformer
from memformer.models.configuration import FORGETTING
from memformer.replay import (
    Carry,
    KeptMemories,
    ReplayBuffer,
    Rollout,
    RolloutResult,
    Segment,
    bptt_backward,
    memory_replay_backward,
)
from memformer.replay import backward as backward_module
from memformer.replay.random_state import segment_seeds
from tests.memformer.examples import START, ragged_rollout, random_memory, random_tokens, small_model
from tests.memformer.replay.gradients import (
    TOLERANCE,
    Gradients,
    assert_same,
    carry_of,
    error,
    gradients_of,
    run,
    scaled_backward,
)


def plain_gradients(model: Memformer, rollout: Rollout, carry: Carry) -> tuple[torch.Tensor, Gradients]:
    """Losses by segment, and the gradients of sum(losses) / 17, without dropout."""
    model.zero_grad()
    memory, losses = carry.memory, []
    context, length = carry.tokens, carry.length
    for t in range(rollout.num_segments):
        target, target_length = rollout.tokens[:, t], rollout.lengths[:, t]
        loss, _, memory = model(Segment(context, length, target, target_length, rollout.resets[:, t]), memory)
        losses.append(loss)
        context, length = target, target_length
    (sum(losses) / 17).backward()  # type: ignore[union-attr]
    return torch.stack(losses).detach(), gradients_of(model)


@pytest.mark.parametrize("segments", [1, 2, 5, 32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"num_memory_slots": 0},
        {"memory_forgetting": "off"},
        {"memory_forgetting": "written"},
        {"memory_forgetting": "off", "memory_write_threshold": 0.3},
        {"memory_read_norm": True, "writer_heads": 1, "rotary_cross_attention": False},
        {"overlap": 3, "block": "modern"},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_gradients_equal_those_of_plain_autograd(segments: int, changes: dict[str, Any]) -> None:
    """Resets in the middle, a lane that ends early, one that goes idle and one that is idle throughout."""
    model = small_model(**changes)
    rollout = ragged_rollout(segments=segments)
    carry = carry_of(model, rollout)
    losses, expected = plain_gradients(model, rollout, carry)
    for algorithm in (memory_replay_backward, bptt_backward):
        result, gradients = run(algorithm, model, rollout, carry)
        assert error(gradients, expected) <= TOLERANCE, algorithm.__name__
        torch.testing.assert_close(result.segment_losses, losses, rtol=TOLERANCE, atol=TOLERANCE)
        assert result.memory_gradient_norms.shape == (segments - 1,)
        assert torch.equal(result.segment_tokens, rollout.lengths.sum(0))


def test_the_memory_carries_gradient() -> None:
    """The comparison above is not one of zeros: the first segments' writer learns from the last segment's loss."""
    model = small_model()
    rollout = ragged_rollout(lanes=2, segments=4)
    result, gradients = run(memory_replay_backward, model, rollout, carry_of(model, rollout))
    assert (result.memory_gradient_norms > 1e-6).all()
    assert gradients["writer.value.weight"].norm() > 1e-6


class Watched(ReplayBuffer):
    """Sees the memories that are brought back."""

    def __init__(self, interval: int) -> None:
        super().__init__(interval=interval)
        self.returned = 0

    def pop(self, ahead: bool = True) -> torch.Tensor:
        self.returned += 1
        return super().pop(ahead)


@pytest.mark.parametrize("interval", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("segments", [1, 2, 7, 8])
def test_memories_that_are_computed_again_are_the_same(segments: int, interval: int) -> None:
    """To the bit, with dropout, resets and ragged lanes: kept all or in groups, and as full back-propagation has it."""
    model = small_model(dropout=0.3, num_encoder_layers=1, num_decoder_layers=1)
    rollout = ragged_rollout(segments=segments)
    carry = carry_of(model, rollout)
    buffer = Watched(interval)
    result, gradients = run(memory_replay_backward, model, rollout, carry, buffer=buffer)
    assert_same((result, gradients), run(bptt_backward, model, rollout, carry))
    plain, expected = run(memory_replay_backward, model, rollout, carry)
    assert torch.equal(result.segment_losses, plain.segment_losses)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert buffer.stored_bytes == 0 and buffer.returned >= segments - 1


@pytest.mark.parametrize("segments", range(1, 12))
@pytest.mark.parametrize("interval", [1, 2, 3, 5, 11, 12])
def test_which_memories_are_kept(segments: int, interval: int) -> None:
    """Played through: pass 1 keeps what `count` says, and pass 2 finds every memory, by `recomputed` advances."""
    kept = KeptMemories(segments, interval)
    there = [t for t in range(segments - 1) if kept.keeps(t)]
    assert len(there) == kept.count <= segments / interval + interval
    most, advances = len(there), 0
    for t in range(segments - 2, -1, -1):
        start = kept.missing_from(t)
        if start is not None:
            assert there[-1] == start < t
            there += range(start + 1, t + 1)
            advances += t - start
        most = max(most, len(there))
        assert there.pop() == t
    assert not there and most <= kept.count + 1 and advances == kept.recomputed


@pytest.mark.parametrize("segments", [1, 4, 32])
@pytest.mark.parametrize("tied", [True, False])
def test_dropout_draws_the_same_masks_again(segments: int, tied: bool) -> None:
    model = small_model(dropout=0.3, tie_embeddings=tied)
    rollout = ragged_rollout(segments=segments)
    carry = carry_of(model, rollout)
    assert_same(run(memory_replay_backward, model, rollout, carry), run(bptt_backward, model, rollout, carry))
    other = run(memory_replay_backward, model, rollout, carry, seed=5)[1]
    assert error(other, run(bptt_backward, model, rollout, carry)[1]) > 1e-3


def test_segments_draw_different_masks() -> None:
    """With equal segments, no two losses are equal."""
    model = small_model(dropout=0.3, num_memory_slots=0)
    tokens = random_tokens(2, 1, 6).expand(2, 5, 6)
    rollout = Rollout.of(tokens, torch.full((2, 5), 6), torch.zeros(2, 5, dtype=torch.bool))
    carry = Carry(random_memory(model, 2), tokens[:, 0], torch.full((2,), 6), ragged=False)
    losses = run(memory_replay_backward, model, rollout, carry)[0].segment_losses
    assert len(set(losses.tolist())) == 5


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], Rollout]:
    lanes, segments, length = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 6))
    grid = st.lists(st.integers(0, length), min_size=lanes * segments, max_size=lanes * segments)
    flags = st.lists(st.booleans(), min_size=lanes * segments, max_size=lanes * segments)
    lengths = torch.tensor(draw(grid)).view(lanes, segments)
    resets = torch.tensor(draw(flags)).view(lanes, segments)
    tokens = random_tokens(lanes, segments, length, seed=draw(st.integers(0, 99)))
    changes = {
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "num_memory_slots": draw(st.integers(0, 4)),
        "tie_embeddings": draw(st.booleans()),
        "memory_forgetting": draw(st.sampled_from(FORGETTING)),
        "memory_write_threshold": draw(st.sampled_from([0.0, 0.3])),
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
    }
    return changes, Rollout.of(tokens, lengths, resets)


@given(cases())
@settings(max_examples=40, derandomize=True)
def test_any_rollout(case: tuple[dict[str, Any], Rollout]) -> None:
    changes, rollout = case
    model = small_model(**changes)
    carry = carry_of(model, rollout)
    assert_same(run(memory_replay_backward, model, rollout, carry), run(bptt_backward, model, rollout, carry))


@pytest.mark.parametrize("algorithm", [memory_replay_backward, bptt_backward])
def test_truncation_truncates(algorithm: Callable[..., RolloutResult]) -> None:
    """The carried memory changes the losses, yet no gradient reaches it, nor what it was computed from."""
    model = small_model()
    rollout = ragged_rollout(lanes=2, segments=3)
    carry = carry_of(model, rollout)
    source = carry.memory.clone().requires_grad_()
    attached = Carry(source * 1.0, carry.tokens, carry.length)
    result = run(algorithm, model, rollout, attached)[0]
    assert source.grad is None
    moved = Carry(random_memory(model, 2, seed=30), carry.tokens, carry.length)
    assert not torch.allclose(run(algorithm, model, rollout, moved)[0].segment_losses, result.segment_losses)


def test_two_rollouts_are_not_one_longer_rollout() -> None:
    """Losses go on as if nothing had been cut; gradients across the cut are missing."""
    model = small_model()
    tokens = random_tokens(2, 4, 6)
    lengths, resets = torch.full((2, 4), 6), torch.zeros(2, 4, dtype=torch.bool)
    whole = Rollout.of(tokens, lengths, resets)
    halves = [Rollout.of(tokens[:, s], lengths[:, s], resets[:, s]) for s in (slice(0, 2), slice(2, 4))]
    carry = Carry(random_memory(model, 2), random_tokens(2, 6, seed=21), torch.full((2,), 6))
    expected, gradients = run(bptt_backward, model, whole, carry)
    model.zero_grad()
    first = memory_replay_backward(model, halves[0], carry, denominator=17.0)
    second = memory_replay_backward(model, halves[1], first.carry, denominator=17.0)
    losses = torch.cat([first.segment_losses, second.segment_losses])
    torch.testing.assert_close(losses, expected.segment_losses, rtol=TOLERANCE, atol=0)
    assert 1e-6 < error(gradients_of(model), gradients) < 0.9


def test_groups_of_lanes_add_up() -> None:
    model = small_model()
    rollout = ragged_rollout()
    carry = carry_of(model, rollout)
    expected = run(memory_replay_backward, model, rollout, carry)[1]
    model.zero_grad()
    for start, stop in ((0, 3), (3, 4)):
        memory_replay_backward(model, rollout.lanes(start, stop), carry.lanes(start, stop), denominator=17.0)
    assert error(gradients_of(model), expected) <= TOLERANCE


@pytest.mark.parametrize("algorithm", [memory_replay_backward, bptt_backward])
def test_loss_scaling_scales_every_gradient_once(algorithm: Callable[..., RolloutResult]) -> None:
    model = small_model()
    rollout = ragged_rollout(segments=5)
    carry = carry_of(model, rollout)
    expected = run(bptt_backward, model, rollout, carry)[1]
    scaled = run(algorithm, model, rollout, carry, backward=scaled_backward)[1]
    assert error({name: gradient / 256 for name, gradient in scaled.items()}, expected) <= TOLERANCE


def test_a_gradient_scaled_twice_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The obvious objective, loss + <memory, gradient>, is right without a scale and wrong with one."""
    model = small_model()
    rollout = ragged_rollout(segments=5)
    carry = carry_of(model, rollout)
    expected = run(bptt_backward, model, rollout, carry)[1]
    monkeypatch.setattr(backward_module, "with_gradient", lambda loss, memory, g: loss + (memory * g).sum())
    assert error(run(memory_replay_backward, model, rollout, carry)[1], expected) <= TOLERANCE
    scaled = run(memory_replay_backward, model, rollout, carry, backward=scaled_backward)[1]
    assert error({name: gradient / 256 for name, gradient in scaled.items()}, expected) > 1


def test_the_callback_gets_the_segments_objective_and_what_remains() -> None:
    model = small_model()
    rollout = ragged_rollout(segments=4)
    seen: list[tuple[float, int]] = []

    def backward(objective: torch.Tensor, remaining: int) -> None:
        seen.append((objective.item(), remaining))
        objective.backward()

    result = run(memory_replay_backward, model, rollout, carry_of(model, rollout), backward=backward)[0]
    assert [remaining for _, remaining in seen] == [3, 2, 1, 0]
    assert [value for value, _ in reversed(seen)] == pytest.approx((result.segment_losses / 17).tolist())


@pytest.mark.parametrize("algorithm", [memory_replay_backward, bptt_backward])
def test_the_callers_random_numbers_are_left_alone(algorithm: Callable[..., RolloutResult]) -> None:
    """With a seed nothing moves; without one, exactly one number is drawn, whatever the algorithm."""
    model = small_model(dropout=0.3)
    rollout = ragged_rollout()
    carry = carry_of(model, rollout)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run(algorithm, model, rollout, carry)
    assert torch.equal(torch.get_rng_state(), before)
    first = run(algorithm, model, rollout, carry, seed=None)[1]
    moved = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.randint(2**62, ())
    assert torch.equal(torch.get_rng_state(), moved)
    assert error(run(algorithm, model, rollout, carry, seed=None)[1], first) > 1e-3
    torch.set_rng_state(before)
    assert error(run(algorithm, model, rollout, carry, seed=None)[1], first) <= TOLERANCE


class Doubling:
    """A cell that is no Memformer: m' = a*m + x, loss = sum(m'). Its gradient can be written down."""

    def __init__(self) -> None:
        self.a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        return self.a * memory + segment.target.sum()

    def __call__(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        memory = self.advance(segment, memory)
        return memory.sum(), segment.target_length.sum(), memory


@pytest.mark.parametrize("algorithm", [memory_replay_backward, bptt_backward])
def test_any_cell(algorithm: Callable[..., RolloutResult]) -> None:
    """m1 = a*m0 + 1, m2 = a*m1 + 2, m3 = a*m2 + 3 with m0 = 4; d(m1 + m2 + m3)/da by hand."""
    cell = Doubling()
    tokens = torch.tensor([[[1], [2], [3]]])
    rollout = Rollout.of(tokens, torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.bool))
    carry = Carry(torch.full((1, 1, 1), 4.0, dtype=torch.float64), tokens[:, 0], torch.ones(1, dtype=torch.int64))
    result = algorithm(cell, rollout, carry, denominator=1.0)
    m1, m2, m3 = 3.0, 3.5, 4.75
    d1 = 4.0
    d2 = m1 + 0.5 * d1
    d3 = m2 + 0.5 * d2
    assert result.segment_losses.tolist() == [m1, m2, m3]
    assert cell.a.grad is not None and cell.a.grad.item() == pytest.approx(d1 + d2 + d3)
    assert result.memory_gradient_norms.tolist() == [pytest.approx(0.5 + 0.25), pytest.approx(0.5)]


def test_seeds_of_segments_touch_the_generators_that_are_restored_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def other_devices(seed: int) -> None:
        raise AssertionError("generators of devices that the rollout is not on were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", other_devices)
    drawn: dict[int, list[torch.Tensor]] = {}
    for _ in range(2):
        with segment_seeds(7, torch.device("cpu")) as seed_segment:
            for segment in (3, 4, 3):
                seed_segment(segment)
                drawn.setdefault(segment, []).append(torch.rand(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(each, same[0]) for same in drawn.values() for each in same)
    assert not torch.equal(drawn[3][0], drawn[4][0])


def test_rollout_knows_what_is_full_and_what_starts() -> None:
    rollout = ragged_rollout(lanes=3)
    assert rollout.full == (True, False, True, False)
    assert rollout.starting == (True, False, True, False)
    carry = Carry(torch.zeros(3, 1, 1), random_tokens(3, 6), torch.full((3,), 6), ragged=False)
    assert [rollout.segment(t, carry).ragged for t in range(4)] == [True, False, True, False]
    assert rollout.carry(carry.memory).ragged
    assert torch.equal(rollout.segment(2, carry).context, rollout.tokens[:, 1])
    assert torch.equal(rollout.segment(0, carry).context, carry.tokens)


def test_an_empty_carry_hides_its_tokens() -> None:
    model = small_model()
    carry = Carry.empty(model.initial_memory(2), 6)
    assert carry.length.tolist() == [0, 0] and carry.tokens.shape == (2, 6) and carry.ragged
    assert not carry.memory.requires_grad


def test_the_buffer_gives_back_the_newest_first() -> None:
    for in_host_memory in (False, True):
        buffer = ReplayBuffer(in_host_memory)
        memories = [torch.full((2, 3, 4), float(i)) for i in range(3)]
        for memory in memories:
            buffer.push(memory)
        assert buffer.stored_bytes == 3 * 2 * 3 * 4 * 4
        assert [buffer.pop()[0, 0, 0].item() for _ in range(3)] == [2, 1, 0]
        assert buffer.stored_bytes == 0


def test_tokens_beyond_the_length_do_not_matter() -> None:
    model = small_model()
    rollout = ragged_rollout()
    carry = carry_of(model, rollout)
    expected = run(memory_replay_backward, model, rollout, carry)[1]
    valid = torch.arange(6) < rollout.lengths[..., None]
    noisy = Rollout.of(torch.where(valid, rollout.tokens, START), rollout.lengths, rollout.resets)
    assert error(run(memory_replay_backward, model, noisy, carry)[1], expected) <= TOLERANCE
