# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The plain Transformer within its window: what it says of a text's end is what its decoder says of the window alone.

Tolerances in float64: 1e-12, the same products in another order of sums; 1e-6 where a row begins with places that
nothing sees, so that its positions are others and the angles of the rotary table, which is float32, are rounded
otherwise.
"""

import numpy as np
import pytest
import torch

from benchmarks.peers.cached_decoder import KeyValueReader
from benchmarks.peers.window import WindowModel, WindowReader
from benchmarks.training import Recipe, Rollout, train
from data_pipeline.tasks.prompts import Prompt
from memformer.inference.tasks import answer_questions
from memformer.models.evaluation_mode import evaluation_mode
from memformer.replay import Carry
from memformer.replay import Rollout as Segments
from tests.memformer.examples import START, small_config

SEGMENT, WINDOW = 4, 12


def model(seed: int = 0) -> WindowModel:
    torch.manual_seed(seed)
    made = WindowModel(small_config(segment_length=SEGMENT), layers=2, window=WINDOW)
    return made.double().eval()


@torch.no_grad()
def test_the_decoder_at_once_is_the_decoder_with_a_cache() -> None:
    decoder, tokens = model().decoder, torch.randint(0, START, (2, 10))
    reader = KeyValueReader(decoder, 2, 10, 0)
    torch.testing.assert_close(decoder(tokens), reader.read(tokens), rtol=0, atol=1e-12)


@torch.no_grad()
def test_it_sees_the_window_and_nothing_before() -> None:
    """Documents of several lengths side by side; each place is given the start token and the W + S tokens in view."""
    made = model()
    texts = [torch.randint(0, START, (length,)) for length in (23, 9, 3)]
    segments = -(-max(map(len, texts)) // SEGMENT)
    padded = torch.stack([torch.nn.functional.pad(text, (0, segments * SEGMENT - len(text))) for text in texts])
    lengths = torch.tensor([[max(0, min(SEGMENT, len(text) - t * SEGMENT)) for t in range(segments)] for text in texts])
    resets = (torch.arange(segments) == 0).expand(3, -1)
    rollout = Segments.of(padded.view(3, segments, SEGMENT), lengths, resets)
    carry = Carry.empty(made.initial_memory(3), SEGMENT)
    memory = carry.memory
    for t in range(segments):
        segment = rollout.segment(t, carry)
        logits, following = made.logits(segment, memory)
        assert torch.equal(following, made.advance(segment, memory))
        for lane, text in enumerate(texts):
            end = t * SEGMENT + int(lengths[lane, t])
            if lengths[lane, t] == 0:
                continue
            seen = text[max(0, t * SEGMENT - (WINDOW - SEGMENT)) : end]
            row = torch.cat([torch.tensor([START]), seen[:-1]])
            expected = made.decoder(row[None])[0, -int(lengths[lane, t]) :]
            torch.testing.assert_close(logits[lane, : int(lengths[lane, t])], expected, rtol=0, atol=1e-6)
        memory = following


def test_it_learns_inside_its_window_and_guesses_beyond() -> None:
    """The first token again at the end: of 8 tokens all is seen; of 40 the first is long out of sight."""
    made, random = model(), torch.Generator().manual_seed(1)

    def rollouts() -> object:
        while True:
            tokens = torch.randint(0, 4, (32, 1, 8), generator=random)
            tokens[:, 0, -1] = tokens[:, 0, 0]
            weights = torch.zeros(32, 1, 8)
            weights[:, 0, -1] = 1
            yield Rollout(tokens, weights)

    train(WindowReader(made), rollouts(), Recipe(150, 1e-2))  # type: ignore[arg-type]
    shares = []
    for length in (8, 40):
        tokens = torch.randint(0, 4, (200, length), generator=random)
        tokens[:, -1] = tokens[:, 0]
        prompts = [Prompt(np.asarray(row), ((length - 1, length),)) for row in tokens]
        with evaluation_mode(made):
            said = answer_questions(made, prompts, 200)["with_memory"]
        shares.append(sum(each[0].right for each in said) / 200)
    assert shares[0] > 0.95
    assert shares[1] == pytest.approx(0.25, abs=0.13)  # four standard deviations
