# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The associative memory does what the delta rule and ARMT's say, and not only the same in every way to train."""

import pytest
import torch

from memformer.models.backbone.associative import AssociativeReader, AssociativeWriter, features
from tests.memformer.models.backbone.examples import config_of

LANES, WIDTH = 2, 16


def test_features_are_dpfp_3_of_length_one() -> None:
    x = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)
    both = [2.0, 0.0, 3.0, 0.0, 1.0, 0.0]  # the positive parts of x, then of -x
    expected = torch.tensor([both[i] * both[i - shift] for shift in (1, 2, 3) for i in range(6)], dtype=torch.float64)
    assert torch.allclose(features(x), expected / expected.norm(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("gate", [0.0, 0.25, 1.0])
def test_a_write_moves_what_its_key_reads_towards_its_value(gate: float) -> None:
    """By the share `gate`, from whatever stood there; what other keys read moves by their likeness to this one."""
    torch.manual_seed(0)
    writer = AssociativeWriter(config_of(), 0).double()
    with torch.no_grad():
        writer.value.weight.normal_()
        writer.gate.weight.zero_()
        writer.gate.bias.fill_(torch.logit(torch.tensor(gate, dtype=torch.float64)).clamp(-60, 60))
        x = torch.randn(LANES, 1, WIDTH, dtype=torch.float64)
        before = torch.randn(LANES, *config_of().memory_shape, dtype=torch.float64)
        after = writer(x, before)
        key, value = features(writer.key(writer.norm(x))), writer.value(writer.norm(x))
        other = torch.nn.functional.normalize(torch.randn_like(key), dim=-1)
    before = before[:, writer.rows]
    moved = gate * (value - key @ before)
    assert torch.allclose(key @ after, key @ before + moved, rtol=0, atol=1e-12)
    assert torch.allclose(other @ after, other @ before + (other @ key.mT) * moved, rtol=0, atol=1e-12)


def test_write_tokens_are_written_one_after_another() -> None:
    """The second sees what the first has written."""
    torch.manual_seed(0)
    writer = AssociativeWriter(config_of(), 0).double()
    with torch.no_grad():
        writer.value.weight.normal_()
        x = torch.randn(LANES, 2, WIDTH, dtype=torch.float64)
        memory = torch.randn(LANES, *config_of().memory_shape, dtype=torch.float64)
        first = memory.clone()
        first[:, writer.rows] = writer(x[:, :1], memory)
        assert torch.allclose(writer(x, memory), writer(x[:, 1:], first), rtol=0, atol=1e-12)


def armt_state() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and a memory of ARMT's rule: matrices, and sums of features, which are not negative."""
    torch.manual_seed(1)
    memory = torch.randn(LANES, *config_of(memory="armt").memory_shape, dtype=torch.float64)
    memory[..., -1] = memory[..., -1].abs()
    assert memory.shape[-1] == WIDTH + 1
    return torch.randn(LANES, 3, WIDTH, dtype=torch.float64), memory


@torch.no_grad()
def test_armt_writes_as_its_paper_says() -> None:
    """One lane, token and feature at a time; the second layer's matrix."""
    writer, (x, memory) = AssociativeWriter(config_of(memory="armt"), 1).double(), armt_state()
    writer.value.weight.normal_()
    written = writer(x, memory)
    normed = writer.norm(x)
    shares = []
    for lane in range(LANES):
        matrix, sums = memory[lane, writer.rows, :-1], memory[lane, writer.rows, -1]
        expected, expected_sums = matrix.clone(), sums.clone()
        for token in normed[lane]:
            key, value = features(writer.key.weight @ token), writer.value.weight @ token
            gate = 1 / (1 + torch.exp(-(writer.gate.weight[0] @ token + writer.gate.bias[0])))
            known = float(sum(sums[p] * key[p] for p in range(len(key))))
            old = sum(key[p] * matrix[p] for p in range(len(key))) / (known + 1e-5)
            for p in range(len(key)):
                expected[p] += gate * (value - old) * key[p]
                expected_sums[p] += min(1.0, max(0.0, 1 - known)) * key[p]
            shares.append(known)
        assert torch.allclose(written[lane, :, :-1], expected, rtol=0, atol=1e-12)
        assert torch.allclose(written[lane, :, -1], expected_sums, rtol=0, atol=1e-12)
    assert min(shares) < 1 < max(shares)  # both a key that is partly new and one that is known


@torch.no_grad()
def test_armt_reads_the_mean_of_what_alike_keys_wrote() -> None:
    reader, (x, memory) = AssociativeReader(config_of(memory="armt"), 1).double(), armt_state()
    found = reader(x, memory)
    for lane in range(LANES):
        for place, token in enumerate(reader.norm(x)[lane]):
            query = features(reader.query.weight @ token)
            rows = memory[lane, reader.rows]
            weights = query * rows[:, -1]
            expected = sum(query[p] * rows[p, :-1] for p in range(len(query))) / (weights.sum() + 1e-5)
            assert torch.allclose(found[lane, place], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_armt_gives_back_what_it_was_told_once() -> None:
    """From an empty memory: one value under one key, whatever its gate has made of it."""
    config = config_of(memory="armt")
    torch.manual_seed(0)
    writer, memory = AssociativeWriter(config, 0).double(), torch.zeros(1, *config.memory_shape).double()
    writer.value.weight.normal_()
    x = torch.randn(1, 1, WIDTH).double()
    memory[:, writer.rows] = writer(x, memory)
    key, gate = features(writer.key(writer.norm(x))), torch.sigmoid(writer.gate(writer.norm(x)))
    found = key @ memory[:, writer.rows]
    expected = gate * writer.value(writer.norm(x)) / (1 + 1e-5)
    assert torch.allclose(found[..., :-1] / (found[..., -1:] + 1e-5), expected, rtol=0, atol=1e-12)
