# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of a layer, each against a plain form of it: rotations, norms, what modern blocks are made of."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memformer.models.memformer import layers
from memformer.models.memformer.layers import Attention, FeedForward, HeadNorm, Norm, Rotary, merge_heads
from tests.memformer.examples import SMALL, random_memory, small_config, small_model

LANES, LENGTH = 3, 8


def test_modern_feed_forward_is_swiglu() -> None:
    block = FeedForward(small_config(block="modern")).double()
    assert block.gate is not None
    x = random_memory(small_model(), LANES)
    gate, up, down = (linear.weight for linear in (block.gate, block.up, block.down))
    expected = ((x @ gate.T) * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_modern_attention_looks_at_directions_and_gains() -> None:
    """Queries and keys of any length give the same, which plain attention does not; float64, 1e-5 by the epsilon."""
    for block in ("modern", "paper"):
        torch.manual_seed(0)
        attention = Attention(small_config(block=block, norm_epsilon=1e-9)).double()
        x = random_memory(small_model(), LANES)
        before = attention.attend(x, attention.keys_values(x, None))
        with torch.no_grad():
            attention.query.weight.mul_(7)
            attention.key.weight.mul_(0.3)
        after = attention.attend(x, attention.keys_values(x, None))
        assert torch.allclose(after, before, rtol=0, atol=1e-5) == (block == "modern")


def test_a_gain_is_of_one_head_and_place() -> None:
    norm, x = HeadNorm(SMALL).double(), torch.randn(2, 2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(16))
    expected = x / (x.square().mean(-1, keepdim=True) + SMALL.norm_epsilon).sqrt()
    expected = expected * torch.arange(16).view(1, 2, 1, 8)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


def test_a_kept_table_is_the_one_that_rotating_would_make() -> None:
    """In the dtype of autocast's products where it is on; made once, and fit for a graph after an evaluation."""
    x, rotated = torch.randn(1, LENGTH, 16), torch.randn(1, 2, LENGTH, 8, dtype=torch.bfloat16, requires_grad=True)
    plain = Rotary.table(0, LENGTH, SMALL, x.device)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        kept = Rotary.kept(0, LENGTH, SMALL, x)
        assert Rotary.kept(0, LENGTH, SMALL, x) is kept
        assert Rotary.kept(0, LENGTH, SMALL, x.double()).cos.dtype == torch.float32, "autocast leaves float64"
    assert kept.cos.dtype == torch.bfloat16 and torch.equal(Rotary.kept(0, LENGTH, SMALL, x).cos, plain.cos)
    assert torch.equal(kept.rotate(rotated), plain.rotate(rotated))
    kept.rotate(rotated).sum().backward()


def test_a_graph_that_is_recorded_makes_its_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is launched also when the kept one has made room for others."""
    x = torch.randn(1, LENGTH, 16)
    kept = Rotary.kept(0, LENGTH, SMALL, x)
    monkeypatch.setattr(layers, "recorded", lambda device: device == x.device)
    own = Rotary.kept(0, LENGTH, SMALL, x)
    assert own.cos is not kept.cos and torch.equal(own.cos, kept.cos) and torch.equal(own.sin, kept.sin)


def test_few_tables_are_kept_and_none_without_numbers() -> None:
    x = torch.randn(1, LENGTH, 16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(Rotary.kept(3, 90, SMALL, x).cos, FakeTensor)
    assert not isinstance(Rotary.kept(3, 90, SMALL, x).cos, FakeTensor)
    for stop in range(100, 150):
        Rotary.kept(0, stop, SMALL, x)
    assert len(layers._TABLES) == layers._MOST_TABLES


def test_rotary_positions_are_relative() -> None:
    """Attention does not change when queries and keys move by the same number of positions, but when one does."""
    config = small_config()
    attention = Attention(config).double()
    x_BSD = torch.randn(1, LENGTH, config.d_model, dtype=torch.float64)
    table = Rotary.table(0, 4 * LENGTH, config, x_BSD.device)

    def attend(query_start: int, key_start: int) -> torch.Tensor:
        queries, keys = table.rows(query_start, query_start + LENGTH), table.rows(key_start, key_start + LENGTH)
        return attention.attend(x_BSD, attention.keys_values(x_BSD, keys), queries)

    torch.testing.assert_close(attend(13, 9), attend(4, 0), rtol=0, atol=1e-6)
    assert (attend(5, 0) - attend(4, 0)).abs().max() > 1e-3


def test_a_rotation_has_the_gradient_of_its_products() -> None:
    """Its backward is written by hand; the reference is a matrix of cosines and sines for each position."""
    config, size = small_config(), 6
    config = dataclasses.replace(config, d_model=size * config.num_heads)
    x = torch.randn(2, config.num_heads, LENGTH, size, dtype=torch.float64, requires_grad=True)
    table = Rotary.table(3, 3 + LENGTH, config, x.device)
    cos, sin = (torch.diag_embed(each.double()) for each in table)
    turns = torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)
    expected, got = torch.einsum("sij,bhsj->bhsi", turns, x), table.rotate(x)
    weights = torch.randn_like(got)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, weights), torch.autograd.grad(expected, x, weights), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("heads_first", [False, True])
def test_a_compiled_rotation_is_the_same_in_the_order_that_heads_are_merged_in(heads_first: bool) -> None:
    """Products round in float32 as they do plainly, and sums once more where a plain one is fused into its product."""
    config = small_config()
    table = Rotary.table(3, 3 + LENGTH, config, torch.device("cpu"))
    x = torch.randn(2, LENGTH, config.num_heads, config.d_model // config.num_heads)
    x = (x.transpose(1, 2).contiguous() if heads_first else x.transpose(1, 2)).requires_grad_()
    compiled = torch.compile(table.rotate, backend="aot_eager", fullgraph=True)
    expected, got = table.rotate(x), compiled(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert merge_heads(got).data_ptr() == got.data_ptr(), "no copy"
    weights = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, weights), torch.autograd.grad(expected, x, weights), rtol=0, atol=1e-6
    )


def test_a_norm_of_16_bits_takes_its_mean_and_variance_in_float32() -> None:
    """Rounded where it reads its gain and where it is done: 2^-8 of its largest numbers, and of what is summed back."""
    norm = Norm(64)
    torch.nn.init.normal_(norm.weight)
    x = (100 + torch.randn(8, 64)).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    expected, weights = torch.nn.functional.layer_norm(wide, (64,), norm.weight, norm.bias), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        got = norm(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=2**-7, atol=2**-7)
    wanted = torch.autograd.grad(expected, (wide, norm.weight), weights)
    found = torch.autograd.grad(got, (x, norm.weight), weights.bfloat16())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2**-5, atol=2**-5)
