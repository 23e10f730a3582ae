# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The wrapped models, all tiny: what they say at first, their gradients by replay, what `advance` gives, no leak.

Covers: memformer/models/backbone/memory.py, memformer/models/backbone/reading.py
"""

import dataclasses

import pytest
import torch

from memformer.models.backbone.model import Backbone
from memformer.models.backbone.reading import read
from memformer.replay import Carry, ReplayBuffer, Rollout, Segment, bptt_backward, memory_replay_backward
from tests.memformer.examples import ragged_rollout
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, START, config_of, make, plain_of

LENGTH = 6


def full_rollout(lanes: int = 2, segments: int = 3) -> Rollout:
    """Documents that begin with the rollout and fill it."""
    tokens = torch.randint(0, START, (lanes, segments, LENGTH), generator=torch.Generator().manual_seed(4))
    resets = torch.zeros(lanes, segments, dtype=torch.bool)
    resets[:, 0] = True
    return Rollout.of(tokens, torch.full((lanes, segments), LENGTH), resets)


@torch.no_grad()
def both(model: Backbone, rollout: Rollout) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """By segment, the valid targets' logits of the model and of transformers' own, the memory written in between."""
    model.eval()
    plain, carry = plain_of(model), Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
    memory, found = carry.memory, []
    for t in range(rollout.num_segments):
        segment, config = rollout.segment(t, carry), model.config
        logits, memory = model.logits(segment, memory)
        reading = read(segment, config.overlap_of(LENGTH), model.bos, config.segment_bos, START)
        masked = {}
        if reading.seen is not None:
            places = (reading.seen.cumsum(1) - 1).clamp(min=0)
            masked = {"attention_mask": reading.seen.long(), "position_ids": places}
        expected = plain(input_ids=reading.tokens, use_cache=False, logits_to_keep=LENGTH, **masked).logits
        valid = torch.arange(LENGTH) < segment.target_length[:, None]
        found.append((logits[valid], expected[valid]))
    return found


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("memory", ["associative", "armt", "slots"])
def test_at_first_it_says_what_the_backbone_says_alone(kind: str, memory: str) -> None:
    """At every segment, whatever has been written; in float64, with lanes that end, begin and idle."""
    for logits, expected in both(make(config_of(kind, memory)), ragged_rollout(length=LENGTH)):
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SIZES)
def test_first_values_fit_the_number_of_inputs_where_that_is_asked_for(kind: str) -> None:
    """Of every supported model; wide enough that standard deviations are known to 5 %."""
    sizes = {"hidden_size": 128, "n_embd": 128, "intermediate_size": 192, "head_dim": 64}
    wide = SIZES[kind] | {key: size for key, size in sizes.items() if key in SIZES[kind]}
    torch.manual_seed(0)
    model = Backbone(dataclasses.replace(config_of(kind), backbone=wide, initial_values="fan_in"))
    outputs = {"gpt_neox": ("dense", "dense_4h_to_h"), "gpt2": ("c_proj",)}.get(kind, ("o_proj", "down_proj"))
    seen = 0
    for name, weight in model.named_parameters():
        if ".block." in name and weight.ndim == 2:
            inputs, last = weight.shape[0 if kind == "gpt2" else 1], name.split(".")[-2] in outputs
            expected = (inputs * (2 * 3 if last else 1)) ** -0.5
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05), name
            seen += last
    assert seen == 2 * 3
    assert float(model.embedding.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.05)
    assert torch.equal(model.norm.weight, torch.full((128,), 128**-0.25))


@pytest.mark.parametrize("kind", SIZES)
def test_slots_say_it_to_the_last_bit(kind: str) -> None:
    """In float32; the second segment has overlap in every lane."""
    model = make(config_of(kind, "slots"), torch.float32)
    for logits, expected in both(model, full_rollout())[1:]:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_memory_takes_part_once_it_is_moved(memory: str) -> None:
    """Otherwise the tests above could not fail."""
    found = both(make(config_of("llama", memory), moved=0.3), full_rollout())
    assert float((found[1][0] - found[1][1]).abs().max()) > 1e-3


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_starts_from_zero_is_no_dead_start(memory: str) -> None:
    """After one step the whole memory learns: zeros on both sides of a product would have no gradient for ever."""
    model, rollout = make(config_of("llama", memory)), full_rollout(segments=4)
    for _ in range(2):
        model.zero_grad()
        memory_replay_backward(model, rollout, Carry.empty(model.initial_memory(2), LENGTH), denominator=48.0)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    own = {name: each for name, each in gradients.items() if name.startswith("memory.") or ".reader." in name}
    still = [name for name, each in own.items() if each is None or float(each.abs().max()) < 1e-12]
    assert own and not still


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_replay_equals_bptt(kind: str, memory: str) -> None:
    """In float64, to rounding, with resets, ragged and idle lanes, overlap, dropout; memories kept all or in twos."""
    gradients, memories = [], []
    for algorithm, interval in ((bptt_backward, 1), (memory_replay_backward, 1), (memory_replay_backward, 2)):
        model = make(config_of(kind, memory, dropout=0.1), moved=0.1).train()
        rollout = ragged_rollout(segments=5, length=LENGTH)
        carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
        buffer = ReplayBuffer(interval=interval)
        result = algorithm(model, rollout, carry, denominator=17.0, seed=3, buffer=buffer)
        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        memories.append(result.memory_gradient_norms)
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-12
    assert torch.equal(gradients[1], gradients[2])
    assert bool((memories[1] > 1e-6).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_advance_gives_the_memory_of_forward(memory: str, dtype: torch.dtype) -> None:
    """Bitwise, also where it stops half-way, with dropout."""
    model, rollout = (
        make(config_of("gpt2", memory, dropout=0.2), dtype, moved=0.1).train(),
        ragged_rollout(length=LENGTH),
    )
    carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
    before = carry.memory
    for t in range(rollout.num_segments):
        torch.manual_seed(t)
        after = model.advance(rollout.segment(t, carry), before)
        torch.manual_seed(t)
        assert torch.equal(model(rollout.segment(t, carry), before)[2], after)
        assert after.shape[1:] == model.config.memory_shape
        before = after


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_no_token_reaches_an_earlier_logit(kind: str, memory: str) -> None:
    """Its own logit included; it does reach the next segments."""
    model, rollout = make(config_of(kind, memory), moved=0.2).eval(), full_rollout(1)

    def all_logits(tokens: torch.Tensor) -> torch.Tensor:
        changed = dataclasses.replace(rollout, tokens=tokens)
        carry = Carry.empty(model.initial_memory(1), LENGTH)
        found, before = [], carry.memory
        for t in range(rollout.num_segments):
            logits, before = model.logits(changed.segment(t, carry), before)
            found.append(logits[0])
        return torch.cat(found)

    plain = all_logits(rollout.tokens)
    for at in range(rollout.tokens.numel()):
        tokens = rollout.tokens.clone()
        tokens.view(-1)[at] = (tokens.view(-1)[at] + 1) % START
        changed = (all_logits(tokens) - plain).abs().amax(-1) > 1e-9
        assert not changed[: at + 1].any()
        if at < LENGTH - 1:
            assert changed[at + 1] and changed[2 * LENGTH :].all()  # beyond the overlap: through the memory


@torch.no_grad()
def test_a_lane_is_computed_as_it_is_alone() -> None:
    """Whatever the lanes beside it are: padding is seen by nothing."""
    model, rollout = make(config_of("gpt2"), moved=0.2).eval(), ragged_rollout(length=LENGTH)
    carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
    for lane in range(2):
        alone = rollout.lanes(lane, lane + 1)
        whole, own = carry.memory, carry.memory[:1]
        for t in range(rollout.num_segments):
            together, whole = model.losses(rollout.segment(t, carry), whole)
            single, own = model.losses(alone.segment(t, carry.lanes(lane, lane + 1)), own)
            assert torch.allclose(together[lane], single[0], atol=1e-12)
            assert torch.allclose(whole[lane], own[0], atol=1e-12)


@torch.no_grad()
def test_rotary_positions_are_not_rounded_with_the_weights() -> None:
    """In bfloat16 the frequencies alone would make positions of a few hundred meaningless."""
    model = make(config_of("llama"), torch.float32)
    assert model.rotary is not None
    places, x = torch.tensor([[500]]), torch.zeros(1, 1, 16)
    before = model.rotary(x, position_ids=places)[0]
    model.to(torch.bfloat16)
    assert torch.equal(model.rotary(x, position_ids=places)[0], before)
    assert not list(model.buffers())


def test_a_segment_is_read_with_its_overlap() -> None:
    """Lanes: in the middle of a document, at its start, after a short segment, and idle before."""
    context = torch.arange(1, 5).repeat(4, 1)
    target = torch.arange(11, 15).repeat(4, 1)
    lengths, resets = torch.tensor([4, 4, 1, 0]), torch.tensor([False, True, False, False])
    short = torch.tensor([4, 4, 2, 0])
    reading = read(Segment(context, lengths, target, short, resets), 2, 90, True, 99)
    assert reading.tokens[0].tolist() == [90, 3, 4, 11, 12, 13]
    assert reading.seen is not None and reading.scored is not None
    rows = [row[seen].tolist() for row, seen in zip(reading.tokens, reading.seen, strict=True)]
    assert rows == [[90, 3, 4, 11, 12, 13], [90, 11, 12, 13], [90, 1, 11], [90]]
    assert reading.scored.sum(1).tolist() == short.tolist()
    without = read(Segment(context, lengths, target, short, resets), 2, 90, False, 99)
    assert without.seen is not None
    rows = [row[seen].tolist() for row, seen in zip(without.tokens, without.seen, strict=True)]
    assert rows == [[3, 4, 11, 12, 13], [90, 11, 12, 13], [1, 11], [90]]
    full = read(
        Segment(context, torch.full((4,), 4), target, torch.full((4,), 4), resets & False, False, False),
        0,
        90,
        True,
        11,
    )
    assert full.seen is None
    assert full.tokens[0].tolist() == [90, 90, 12, 13]  # the data's start token is the backbone's
