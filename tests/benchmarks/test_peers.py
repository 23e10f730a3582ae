# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The readers of benchmarks/peers: none sees the future, all carry something on, all train, all are of one size."""

import copy
import dataclasses
import functools

import pytest
import torch

from benchmarks.peers.flops import reading_flops
from benchmarks.peers.models import KINDS, Sizes, at_parameters, available, make
from benchmarks.peers.reader import MemformerReader, Reader, losses_of, parameters
from benchmarks.training import Recipe, Rollout, chunks, train
from memformer import MemformerConfig
from memformer.models.memformer.flops import segment_flops

VOCABULARY, START, LENGTH, SEGMENTS = 20, 19, 8, 4
SIZES = Sizes(VOCABULARY, START, LENGTH, width=16, heads=2, layers=2, ff=32, memory=8)
CONFIG = MemformerConfig(
    1, 2, d_model=16, num_heads=2, d_ff=32, num_memory_slots=3, vocab_size=VOCABULARY, start_token_id=START,
    segment_length=LENGTH,
)  # fmt: skip


@functools.cache
def reader_of(kind: str) -> Reader:
    if not available(kind):
        pytest.skip(f"{kind}: its library is not installed (make peers)")
    torch.manual_seed(0)
    reader = make(kind, SIZES, CONFIG)
    reader.module.eval()
    return reader


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, START, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def losses(reader: Reader, tokens_BL: torch.Tensor) -> torch.Tensor:
    state, found = None, []
    for segment in tokens_BL.split(LENGTH, dim=1):
        logits, state = reader.read(segment, state)
        found.append(losses_of(logits, segment))
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_changes_no_loss_before_it_and_some_behind_it(kind: str) -> None:
    reader = reader_of(kind)
    tokens = random_tokens(3, SEGMENTS * LENGTH)
    before = losses(reader, tokens)
    for place in (0, 7, 8, 19, 24):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % START
        difference = (losses(reader, changed) - before).abs().amax(0)
        assert (difference[:place] < 1e-6).all()
        assert difference[place] > 1e-3
        if place + 1 < tokens.shape[1]:
            assert difference[place + 1] > 1e-7


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_prediction_sees_its_own_token(kind: str) -> None:
    reader = reader_of(kind)
    first, second = random_tokens(3, 2 * LENGTH).split(LENGTH, dim=1)
    for place in range(LENGTH):
        changed = second.clone()
        changed[:, place] = (changed[:, place] + 1) % START
        predicted, other = (reader.read(segment, reader.read(first, None)[1])[0] for segment in (second, changed))
        torch.testing.assert_close(other[:, : place + 1], predicted[:, : place + 1], rtol=0, atol=1e-6)
        assert place + 1 == LENGTH or not torch.allclose(other[:, place + 1], predicted[:, place + 1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memformer"])
def test_every_parameter_learns_from_the_second_segment_too(kind: str) -> None:
    """In training mode: the Compressive Transformer's forward switches some of its parameters off."""
    reader = reader_of(kind)
    reader.module.train()
    first, second = random_tokens(2, 2, LENGTH).unbind(1)
    share = torch.full((2, 1, LENGTH), 1 / first.numel())
    _, state = reader.backward(first[:, None], None, share)
    reader.module.zero_grad()
    reader.backward(second[:, None], state, share)
    reader.module.eval()
    without = {name for name, p in reader.module.named_parameters() if p.grad is None}
    assert {name for name in without if "compress_mem_fn" not in name} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_reaches_across_segments(kind: str) -> None:
    reader = reader_of(kind)
    tokens = random_tokens(3, SEGMENTS * LENGTH)
    changed = tokens.clone()
    changed[:, LENGTH - 2] = (changed[:, LENGTH - 2] + 1) % START  # not the token that every reader is given anyway
    difference = (losses(reader, changed) - losses(reader, tokens)).abs().amax(0)
    assert difference[LENGTH : 2 * LENGTH].max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_leaves_what_reading_leaves(kind: str) -> None:
    reader = reader_of(kind)
    first, second, third = random_tokens(2, 3 * LENGTH).split(LENGTH, dim=1)
    with torch.no_grad():
        read = reader.read(third, reader.read(second, reader.read(first, None)[1])[1])[0]
        skipped = reader.read(third, reader.skip(second, reader.skip(first, None)))[0]
    torch.testing.assert_close(read, skipped)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_trains_every_parameter_and_leaves_the_state_of_reading(kind: str) -> None:
    reader = reader_of(kind)
    tokens = random_tokens(2, SEGMENTS, LENGTH)
    reader.module.zero_grad()
    found, state = reader.backward(tokens, None, torch.full(tokens.shape, 1 / tokens.numel()))
    torch.testing.assert_close(found.flatten(1), losses(reader, tokens.flatten(1)), rtol=1e-4, atol=1e-5)
    without = {name for name, parameter in reader.module.named_parameters() if parameter.grad is None}
    # The Compressive Transformer's compression learns from its reconstruction loss, which it has in training mode only.
    assert {name for name in without if "compress_mem_fn" not in name} == set()
    following = random_tokens(2, LENGTH)
    with torch.no_grad():
        expected = None
        for segment in tokens.unbind(1):
            expected = reader.read(segment, expected)[1]
        torch.testing.assert_close(
            reader.read(following, state)[0], reader.read(following, expected)[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_choose_what_is_learned(kind: str) -> None:
    reader = reader_of(kind)
    tokens = random_tokens(2, SEGMENTS, LENGTH)
    weights = torch.zeros(tokens.shape)
    weights[:, 1, 3] = 1.0
    reader.module.zero_grad()
    reader.backward(tokens, None, weights)
    got = [p.grad.clone() for p in reader.module.parameters() if p.grad is not None]
    changed = tokens.clone()
    changed[:, 1, 4:] = 0  # what comes after the only token that counts
    changed[:, 2:] = 1
    reader.module.zero_grad()
    reader.backward(changed, None, weights)
    for one, other in zip(got, (p.grad for p in reader.module.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("slots", [3, 0])
def test_a_segment_that_is_not_decoded_since_no_token_counts_changes_no_gradient(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = MemformerReader(dataclasses.replace(CONFIG, num_memory_slots=slots))
    tokens = random_tokens(2, 2 * SEGMENTS, LENGTH)
    weights = torch.zeros(tokens.shape)
    weights[0, 2, 3] = weights[:, 5, 1] = 0.5
    decoded = []
    logits = reader.module.logits
    monkeypatch.setattr(reader.module, "logits", lambda *given: decoded.append(given) or logits(*given))
    gradients, found = [], []
    for given in (weights, weights.clamp(min=1e-30)):  # which counts, and adds nothing to a float32
        reader.module.zero_grad()
        found.append(reader.backward(tokens, None, given)[0])
        gradients.append([parameter.grad.clone() for parameter in reader.module.parameters()])
    # Without slots the first segment is decoded too: a memory that nothing is written into has no graph there.
    assert len(decoded) == (2 if slots else 3) + 2 * SEGMENTS
    assert torch.equal(found[0] * weights, found[1] * weights)
    for skipped, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(skipped, whole, rtol=0, atol=1e-20)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memformer"])
def test_peers_are_built_at_the_parameters_asked_for(kind: str) -> None:
    reader_of(kind)
    target = parameters(reader_of("memformer"))
    assert abs(parameters(at_parameters(kind, SIZES, target)) - target) <= 0.03 * target


def test_a_shorter_cache_carries_no_more_than_asked_for_and_leaves_the_model_as_it_is() -> None:
    whole = reader_of("transformer-xl")
    torch.manual_seed(0)
    short = make("transformer-xl", dataclasses.replace(SIZES, carried=3 * SIZES.layers * SIZES.width + 1), CONFIG)
    short.module.eval()
    for one, other in zip(short.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(one, other)
    tokens = random_tokens(2, 3 * LENGTH)
    last = tokens[:, 2 * LENGTH :]
    with torch.no_grad():
        state = None
        for segment in tokens[:, : 2 * LENGTH].split(LENGTH, dim=1):
            state = short.read(segment, state)[1]
        assert [memory.shape for memory in state[1]] == [(2, 3, SIZES.width)] * SIZES.layers
        # The whole one, its caches cut to the same tokens, predicts the same.
        first = whole.read(tokens[:, :LENGTH], None)[1]
        second = whole.read(tokens[:, LENGTH : 2 * LENGTH], (first[0], [each[:, -3:] for each in first[1]]))[1]
        found = whole.read(last, (second[0], [each[:, -3:] for each in second[1]]))[0]
    torch.testing.assert_close(found, short.read(last, state)[0])


@pytest.mark.parametrize("kind", ["transformer-xl", "transformer-xl-modern"])
def test_modern_blocks_of_a_peer_take_no_notice_of_the_size_of_queries(kind: str) -> None:
    reader = copy.deepcopy(reader_of(kind))
    tokens = random_tokens(2, LENGTH)
    with torch.no_grad():
        before = reader.read(tokens, None)[0]
        for name, parameter in reader.module.named_parameters():
            if name.endswith("to_q.weight"):
                parameter.mul_(4)
        difference = (reader.read(tokens, None)[0] - before).abs().max()
    assert (difference < 1e-5) == (kind == "transformer-xl-modern")
    assert any(isinstance(module, torch.nn.SiLU) for module in reader.module.modules()) == kind.endswith("modern")


def test_one_loop_trains_memformer_and_lstm() -> None:
    pattern = torch.arange(SEGMENTS * LENGTH).remainder(5).expand(4, -1)
    for kind in ("memformer", "lstm"):
        torch.manual_seed(0)
        reader = make(kind, SIZES, CONFIG)
        rollouts = (rollout for _ in range(100) for rollout in chunks(pattern, 2, LENGTH))
        history = train(reader, rollouts, Recipe(steps=60, learning_rate=1e-2))
        assert history.losses[-1] < 0.5 * history.losses[0]


def test_documents_are_cut_into_rollouts_and_only_the_first_starts_them() -> None:
    made = list(chunks(torch.arange(2 * 50).view(2, 50), num_segments=2, segment_length=8))
    assert [rollout.starting for rollout in made] == [True, False, False]
    assert [rollout.tokens.shape for rollout in made] == [(2, 2, 8), (2, 2, 8), (2, 2, 8)]
    assert made[-1].tokens[1, -1, -1] == 50 + 47
    assert isinstance(made[0], Rollout)


def test_memory_reset_forgets_all_but_the_segment_before() -> None:
    torch.manual_seed(0)
    reader = MemformerReader(CONFIG, memory_reset=True)
    reader.module.eval()
    tokens = random_tokens(2, SEGMENTS * LENGTH)
    changed = tokens.clone()
    changed[:, :LENGTH] = 3
    difference = (losses(reader, changed) - losses(reader, tokens)).abs().amax(0)
    assert difference[LENGTH : 2 * LENGTH].max() > 1e-4
    assert difference[2 * LENGTH :].max() == 0


def test_operations_are_counted_as_derived() -> None:
    reader = MemformerReader(CONFIG)
    tokens = random_tokens(2, 3 * LENGTH)
    assert reading_flops(reader, tokens, LENGTH) == 2 * 3 * segment_flops(CONFIG, LENGTH).forward
    lstm = make("lstm", SIZES, CONFIG)
    width, layers = SIZES.width, SIZES.layers
    a_token = 2 * (layers * 8 * width * width + width * VOCABULARY)
    assert reading_flops(lstm, tokens, LENGTH) == 2 * 3 * LENGTH * a_token


def test_operations_of_expanded_parameters_are_counted_and_they_go_on_being_trained() -> None:
    """Those of the write tokens of a matrix, which are more than none; nothing of it stays frozen."""
    reader = copy.deepcopy(reader_of("backbone-associative"))
    tokens = random_tokens(2, 3 * LENGTH)
    assert reading_flops(reader, tokens, LENGTH) > 2 * 3 * LENGTH * 2 * SIZES.width * VOCABULARY
    assert all(parameter.requires_grad for parameter in reader.module.parameters())


def test_attention_of_a_peer_that_chooses_its_own_kernel_is_counted() -> None:
    """What a cache of 8 tokens adds: their keys and values, and products of each query with them."""
    whole = reader_of("transformer-xl")
    short = make("transformer-xl", dataclasses.replace(SIZES, carried=0), CONFIG)
    tokens, width, layers = random_tokens(1, 2 * LENGTH), SIZES.width, SIZES.layers
    more = layers * (LENGTH * 2 * 2 * width * width + LENGTH * LENGTH * 2 * 2 * width)
    assert reading_flops(whole, tokens, LENGTH) - reading_flops(short, tokens, LENGTH) == more
