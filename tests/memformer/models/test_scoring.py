# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Losses in chunks against the plain form: whole logits, then torch's cross_entropy.

The vocabulary of 37 and the 33 tokens divide by nothing, so that the last chunk is a shorter one.
"""

import functools
import threading
from typing import Any

import pytest
import torch
import torch._dynamo.config
import torch.nn.functional as F

from benchmarks.activations import LiveTensors, SavedActivations
from memformer.models.scoring import CHUNK_BYTES, IGNORE, Head, count_chunks, scored_targets, token_losses
from memformer.replay import Segment

LANES, LENGTH, WIDTH, IDS = 3, 11, 8, 37


def problem(dtype: torch.dtype, bias: bool) -> tuple[Head, torch.Tensor, Segment, torch.Tensor]:
    """A head, its input, a ragged segment with an empty lane, and weights for the losses, negative ones too."""
    torch.manual_seed(0)
    head = Head(WIDTH, IDS, bias=bias, dtype=dtype)
    x_BSD = 3 * torch.randn(LANES, LENGTH, WIDTH, dtype=dtype)
    target = torch.randint(0, IDS, (LANES, LENGTH))
    length = torch.tensor([LENGTH, 4, 0])
    segment = Segment(target, length, target, length, torch.zeros(LANES, dtype=torch.bool), True)
    return head, x_BSD, segment, torch.linspace(-2, 1, LANES * LENGTH, dtype=dtype).view(LANES, LENGTH)


def found(
    chunk_bytes: int, dtype: torch.dtype, bias: bool, autocast: torch.dtype | None, compiled: bool = False
) -> dict[str, Any]:
    """Losses and gradients by chunks of so many bytes; 0 asks for `token_losses` of the head's logits."""
    head, x_BSD, segment, weights = problem(dtype, bias)
    if compiled:
        head.compile_chunks()
    leaf = x_BSD.requires_grad_()
    head.chunk_bytes = chunk_bytes or CHUNK_BYTES
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        losses = head(leaf, scored_targets(segment)) if chunk_bytes else token_losses(head(leaf), segment)
    (losses * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return {"losses": losses.detach(), "x": leaf.grad, **gradients}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.float64, None, 1e-12),
        (torch.float32, None, 2e-6),  # sums of 33 and 37 numbers in another order
        (torch.float32, torch.bfloat16, 1e-2),  # 8 bits: the plain form rounds the gradient of the whole matrix once
        (torch.float32, torch.float16, 2e-3),  # 11 bits
    ],
)
def test_chunks_are_the_plain_form(
    dtype: torch.dtype, autocast: torch.dtype | None, tolerance: float, bias: bool
) -> None:
    plain = found(0, dtype, bias, autocast)
    for rows in (1, 7, 32):
        chunked = found(rows * IDS * dtype.itemsize, dtype, bias, autocast)
        assert chunked.keys() == plain.keys()
        for name, expected in plain.items():
            assert chunked[name].dtype == expected.dtype, name
            error = (chunked[name] - expected).abs().max() / expected.abs().max()
            assert error < tolerance, (name, rows, float(error))
    assert plain["losses"][1, 4:].eq(0).all() and chunked["losses"][1, 4:].eq(0).all() and chunked["x"][2].eq(0).all()


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_compiled_chunks_are_the_plain_form(autocast: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured whole, and nearer to the plain form than 16 bits are; wider logits are left as they were."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    chunk_bytes = 7 * IDS * 4
    plain = found(0, torch.float32, False, autocast)
    for name, value in found(chunk_bytes, torch.float32, False, autocast, compiled=True).items():
        error = (value - plain[name]).abs().max() / plain[name].abs().max()
        assert value.dtype == plain[name].dtype and error < (1e-2 if autocast == torch.bfloat16 else 2e-3), name
    wide = found(chunk_bytes, torch.float32, True, None)
    for name, value in found(chunk_bytes, torch.float32, True, None, compiled=True).items():
        assert torch.equal(value, wide[name]), name


@pytest.mark.parametrize("compiled", [False, True])
def test_a_target_that_is_nearly_certain_keeps_its_gradient_in_16_bits(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its share of 0.9999 is 1 in bfloat16; what it lacks of 1 is the gradient, and is not taken from that."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    head = Head(2, 2, bias=False)
    if compiled:
        head.compile_chunks()
    head.weight.data = torch.tensor([[9.25, 0.0], [0.0, 0.0]])
    head.chunk_bytes = 8
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(x, torch.tensor([[0, 0]])).sum().backward()
    assert x.grad is not None
    expected = 9.25 * torch.tensor(-9.25).sigmoid()
    torch.testing.assert_close(x.grad[0, :, 0], -expected.expand(2), rtol=2**-7, atol=0)


def test_a_compiler_that_fails_in_the_thread_of_a_backward_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not see that it may: settings of torch's compiler are those of a thread."""

    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    x, targets, said = torch.randn(1, 4, WIDTH, requires_grad=True), torch.zeros(1, 4, dtype=torch.int64), list[str]()

    def backward(losses: torch.Tensor) -> None:
        try:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            said.append(str(error))

    with torch._dynamo.config.patch(suppress_errors=True):
        head = Head(WIDTH, IDS, bias=False)
        head.chunk_bytes = 2 * IDS * 4
        head.compile_chunks()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = head(x, targets)
        thread = threading.Thread(target=backward, args=(losses,))
        thread.start()
        thread.join()
    assert not said and x.grad is not None


def test_few_logits_are_whole_to_the_last_bit() -> None:
    whole, plain = found(CHUNK_BYTES, torch.float32, True, None), found(0, torch.float32, True, None)
    assert all(torch.equal(whole[name], plain[name]) for name in plain)


def test_chunks_follow_from_the_bytes_of_the_logits() -> None:
    assert [count_chunks(tokens, IDS, 4, 10 * IDS * 4) for tokens in (1, 10, 11, 30, 31)] == [1, 1, 2, 3, 4]
    assert count_chunks(5, IDS, 4, 1) == 5, "no chunk is less than a token"
    assert [count_chunks(tokens, 50_257) for tokens in (1_335, 1_336)] == [1, 2]
    for dtype, whole in ((torch.bfloat16, True), (torch.float32, True), (torch.float64, False)):
        head = Head(WIDTH, IDS, dtype=dtype)
        head.chunk_bytes = 10 * IDS * 4  # of losses that are taken in float32 or wider
        with SavedActivations(head.parameters()) as saved:
            losses = head(torch.randn(1, 10, WIDTH, dtype=dtype), torch.zeros(1, 10, dtype=torch.int64))
            assert (saved.live_bytes >= 10 * IDS * 4) == whole, dtype
        assert losses.dtype == torch.promote_types(dtype, torch.float32)


def test_a_frozen_head_has_no_gradient_and_gives_that_of_its_input() -> None:
    _, x_BSD, segment, _ = problem(torch.float64, True)
    gradients = []
    for chunk_bytes in (CHUNK_BYTES, 5 * IDS * 8):
        head, leaf = problem(torch.float64, True)[0].requires_grad_(False), x_BSD.clone().requires_grad_()
        head.chunk_bytes = chunk_bytes
        head(leaf, scored_targets(segment)).sum().backward()
        assert head.weight.grad is None and head.bias.grad is None
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_frozen_head_in_16_bits_is_taken_as_it_is() -> None:
    head, x_BSD, segment, _ = problem(torch.float32, False)
    head.to(torch.bfloat16).requires_grad_(False)
    losses = []
    for chunk_bytes in (CHUNK_BYTES, 5 * IDS * 4):
        head.chunk_bytes = chunk_bytes
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(head(x_BSD.requires_grad_(), scored_targets(segment)))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


def test_only_numbers_a_token_are_kept_and_a_chunk_is_all_that_exists() -> None:
    """8 times the tokens of a chunk: what is alive at most is a chunk twice and the head's gradient, not the logits."""
    tokens, ids = 256, 4096
    torch.manual_seed(0)
    head = Head(WIDTH, ids, bias=False)
    x_BSD, targets = torch.randn(1, tokens, WIDTH, requires_grad=True), torch.randint(0, ids, (1, tokens))
    whole, chunk = 4 * tokens * ids, 4 * tokens * ids // 8
    peaks, kept = [], []
    for head.chunk_bytes in (CHUNK_BYTES, chunk):
        head.zero_grad()
        with SavedActivations([*head.parameters(), x_BSD, targets]) as saved:
            losses = head(x_BSD, targets)
            kept.append(saved.live_bytes)
        del losses
        with LiveTensors() as live:
            head(x_BSD, targets).sum().backward()
        peaks.append(live.meter.peak_bytes)
    assert kept[0] > whole and kept[1] < 20 * tokens
    assert peaks[0] > 2 * whole
    assert chunk < peaks[1] < 1.2 * (2 * chunk + 4 * ids * WIDTH)


def test_losses_of_ignored_targets_are_zero_whatever_the_logits() -> None:
    head = Head(2, IDS)
    head.chunk_bytes = 4 * IDS
    targets = torch.full((1, 3), IGNORE)
    x = torch.randn(1, 3, 2, requires_grad=True)
    losses = head(x, targets)
    losses.sum().backward()
    assert losses.eq(0).all() and x.grad is not None and x.grad.eq(0).all()
    plain = F.cross_entropy(head(x)[0], targets[0], ignore_index=IGNORE, reduction="none")
    assert torch.equal(plain, losses[0])
