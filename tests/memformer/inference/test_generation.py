# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Generation against the teacher-forced model: token by token, in odd pieces, across many segments.

Covers: memformer/models/memformer/reader.py
"""

import pytest
import torch

from memformer import Memformer, MemformerConfig
from memformer.inference.generation import choose, generate
from memformer.models.memformer.reader import MemformerReader
from memformer.replay import Carry, Rollout

LENGTH = 8


@pytest.fixture(scope="module", params=[(5, 0, "paper"), (5, 3, "modern"), (0, LENGTH, "paper")], ids=str)
def model(request: pytest.FixtureRequest) -> Memformer:
    torch.manual_seed(0)
    slots, overlap, block = request.param
    config = MemformerConfig(
        num_encoder_layers=2,
        num_decoder_layers=3,
        d_model=32,
        num_heads=4,
        d_ff=64,
        num_memory_slots=slots,
        overlap=overlap,
        block=block,
        vocab_size=41,
        start_token_id=40,
        segment_length=LENGTH,
    )
    return Memformer(config).double().eval().requires_grad_(False)


def teacher_forced(model: Memformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, n, V] of every token of documents [B, n], n a multiple of S, as training computes them."""
    lanes, count = tokens.shape
    lengths = torch.full((lanes, count // LENGTH), LENGTH)
    resets = torch.zeros_like(lengths, dtype=torch.bool)
    resets[:, 0] = True
    rollout = Rollout.of(tokens.view(lanes, -1, LENGTH), lengths, resets)
    carry = Carry.empty(model.initial_memory(lanes), LENGTH)
    memory, found = carry.memory, []
    for t in range(rollout.num_segments):
        logits, memory = model.logits(rollout.segment(t, carry), memory)
        found.append(logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("pieces", [[1] * 40, [3, 13, 1, 8, 15], [40], [8] * 5, [7, 1, 9, 23]])
def test_logits_equal_the_teacher_forced_ones(model: Memformer, pieces: list[int]) -> None:
    """After each piece, the logits of the token that follows it; float64, 1e-12."""
    torch.manual_seed(1)
    tokens = torch.randint(0, 40, (3, 48))
    expected = teacher_forced(model, tokens)
    reader = MemformerReader(model, batch_size=3)
    torch.testing.assert_close(reader.logits, expected[:, 0], rtol=0, atol=1e-12)
    done = 0
    for piece in pieces:
        reader.read(tokens[:, done : done + piece])
        done += piece
        torch.testing.assert_close(reader.logits, expected[:, done], rtol=0, atol=1e-12)


def test_greedy_continuation_is_the_teacher_forced_argmax(model: Memformer) -> None:
    prompt = [3, 1, 4, 1, 5]
    produced = list(generate(model, prompt, 27, temperature=0))
    document = torch.tensor([prompt + produced])
    logits = teacher_forced(model, document)[0]
    logits[:, model.start_token_id] = float("-inf")
    assert logits.argmax(-1)[len(prompt) :].tolist() == produced


def test_state_does_not_grow(model: Memformer) -> None:
    """What the reader keeps in the tenth segment is what it keeps in the second, in the same memory."""
    reader = MemformerReader(model)
    places: list[dict[int, int]] = []
    for _ in range(10 * LENGTH):
        reader.read(torch.zeros(1, 1, dtype=torch.int64))
        assert reader.logits is not None
        places.append({each.data_ptr(): each.untyped_storage().nbytes() for each in reader.tensors()})
    assert len({sum(each.values()) for each in places[LENGTH:]}) == 1
    keys = {each.data_ptr() for each in reader._cache.tensors()}
    assert len(keys) == 2 * 3 and all(keys <= set(each) for each in places)


def test_seed_decides_the_draws(model: Memformer) -> None:
    assert list(generate(model, [], 20, seed=1)) == list(generate(model, [], 20, seed=1))
    assert list(generate(model, [], 20, seed=1)) != list(generate(model, [], 20, seed=2))


def test_top_k_and_top_p_leave_out_the_rest() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, -1)
    source = torch.Generator().manual_seed(0)
    assert set(choose(logits, top_k=2, generator=source).tolist()) == {0, 1}
    assert set(choose(logits, top_p=0.79, generator=source).tolist()) == {0, 1}
    assert set(choose(logits, top_p=0.81, generator=source).tolist()) == {0, 1, 2}
    assert set(choose(logits, temperature=0).tolist()) == {0}
    drawn = choose(logits, generator=source).bincount(minlength=4) / 2000
    torch.testing.assert_close(drawn, logits[0].exp(), rtol=0, atol=0.04)


@pytest.mark.parametrize("temperature", [1e-300, 1e300], ids=["tiny", "huge"])
def test_a_temperature_beyond_float32_is_the_nearest_that_it_has(temperature: float) -> None:
    logits = torch.tensor([[1.0, 9.0, float("-inf")]] * 64)
    drawn = set(choose(logits, temperature, generator=torch.Generator().manual_seed(0)).tolist())
    assert drawn == ({1} if temperature < 1 else {0, 1})
