# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The associative memory does what the delta rule says, and not only the same in every way to train."""

import pytest
import torch

from memformer.models.backbone.associative import AssociativeWriter, features
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
