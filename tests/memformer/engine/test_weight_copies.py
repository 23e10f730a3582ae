# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Training with 16-bit copies of weights gives the gradients that autocast gives, to the last bit."""

import contextlib
from typing import Any

import pytest
import torch

from memformer.engine import weight_copies
from memformer.engine.weight_copies import WeightCopies, copied_weights
from memformer.parallel.activation_checkpointing import recomputed
from memformer.replay import Carry, memory_replay_backward
from memformer.replay.backward import Backward, autograd_backward
from tests.distributed.short_runs import LANES, LENGTH, Case, model_of, rollout_of, trained

CASES = [
    Case(1, "bf16"),
    Case(1, "fp16", tie_embeddings=False, block="modern", memory_forgetting="written", dropout=0.2),
    Case(1, "bf16", tie_embeddings=False, chunked=True, mode="full"),
    Case(1, "bf16", backbone="matrices"),
    Case(1, "bf16", backbone="adapters", train="lora"),
]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def made(case: Case) -> Any:
    model = model_of(case)
    if case.chunked:
        model.head.chunk_bytes = 5 * 4 * len(model.head.weight)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(case, name))
    for layer in model.layers() if case.mode == "full" else ():
        forward = layer.forward
        layer.forward = lambda *inputs, _forward=forward: recomputed(_forward, True, *inputs)
    return model


class AutocastCell:
    """A model in 16 bits; leaving each forward drops autocast's own copies, unless an outer context keeps them."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def initial_memory(self, lanes: int) -> torch.Tensor:
        memory: torch.Tensor = self.model.initial_memory(lanes)
        return memory

    def advance(self, *inputs: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            memory: torch.Tensor = self.model.advance(*inputs)
        return memory

    def __call__(self, *inputs: Any) -> Any:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.model(*inputs)


def replayed(model: Any, dtype: torch.dtype, backward: Backward = autograd_backward) -> None:
    """Accumulates the gradients of two groups of lanes."""
    rollout = rollout_of(0)
    with torch.autocast("cpu", enabled=False):
        for start in (0, LANES // 2):
            span = start, start + LANES // 2
            carry = Carry.empty(model.initial_memory(LANES // 2).detach(), LENGTH)
            cell = AutocastCell(model, dtype)
            memory_replay_backward(cell, rollout.lanes(*span), carry, backward, denominator=9.0, seed=start)


def gradients(
    case: Case, copied: bool, sums: torch.dtype = torch.float32, together: bool = False
) -> dict[str, torch.Tensor | None]:
    """Of all parameters."""
    model, dtype = made(case), DTYPES[case.precision]
    copies = WeightCopies(model, dtype, sums)

    def backward(objective: torch.Tensor, remaining: int) -> None:
        with copies.adding_together() if together else contextlib.nullcontext():
            autograd_backward(objective, remaining)

    with copies.in_place() if copied else contextlib.nullcontext():
        replayed(model, dtype, backward)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_autocast_to_the_last_bit(case: Case) -> None:
    plain, found = gradients(case, copied=False), gradients(case, copied=True)
    assert list(found) == list(plain)
    for name, gradient in plain.items():
        assert (found[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(gradient, found[name]), name
        assert found[name] is None or found[name].dtype == torch.float32


@pytest.mark.parametrize("waiting", [1000, 2**24])
@pytest.mark.parametrize("sums", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_that_are_added_together_are_the_same_to_the_last_bit(
    sums: torch.dtype, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some weights at a time or all at the end."""
    monkeypatch.setattr(weight_copies, "WAITING", waiting)
    plain, added, foreach = gradients(CASES[0], copied=True, sums=sums), list[int](), torch._foreach_add_
    monkeypatch.setattr(torch, "_foreach_add_", lambda *lists: (added.append(len(lists[0])), foreach(*lists)))
    found = gradients(CASES[0], copied=True, sums=sums, together=True)
    assert list(found) == list(plain)
    for name, gradient in plain.items():
        assert (found[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(gradient, found[name]), name
    small = sum(parameter.dim() == 1 for parameter in made(CASES[0]).parameters())
    assert max(added) >= small


def test_a_backward_that_fails_leaves_the_sums() -> None:
    model = made(CASES[0])
    copies = WeightCopies(model, torch.bfloat16)
    with copies.in_place():
        replayed(model, torch.bfloat16)
        before = {name: parameter.grad for name, parameter in model.named_parameters()}
        with pytest.raises(ZeroDivisionError), copies.adding_together():
            assert model.encoder_norm.weight.grad is None
            raise ZeroDivisionError
        assert all(parameter.grad is before[name] for name, parameter in model.named_parameters())


def test_sums_in_bfloat16_round_every_addition() -> None:
    """As adding each backward's gradient to the ones before in bfloat16 does, to the last bit; others stay float32."""
    model, sums = made(CASES[0]), dict[str, torch.Tensor]()
    copied = {id(each.weight) for each in copied_weights(model)}

    def backward(objective: torch.Tensor, remaining: int) -> None:
        autograd_backward(objective, remaining)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.bfloat16() if id(parameter) in copied else parameter.grad
                sums[name] = sums[name] + gradient if name in sums else gradient
                parameter.grad = None

    replayed(model, torch.bfloat16, backward)
    found = gradients(CASES[0], copied=True, sums=torch.bfloat16)
    assert {name: gradient.dtype for name, gradient in sums.items()} == {
        name: gradient.dtype for name, gradient in found.items() if gradient is not None
    }
    assert all(torch.equal(sums[name], gradient) for name, gradient in found.items() if gradient is not None)


def test_weights_of_maps_are_copied_and_are_back_after_a_fault() -> None:
    """Not those of a head or an embedding, nor one whose gradient a hook waits for; the gradient so far stays."""
    model = made(Case(1, "bf16", tie_embeddings=False))
    own = dict(model.named_parameters())
    hooked = "encoder.0.self_attention.query.weight"
    own[hooked].register_hook(lambda gradient: gradient)
    copies = WeightCopies(model, torch.bfloat16)
    maps = {name for name, p in own.items() if p.dim() == 2 and not name.startswith(("embedding", "head", "forget"))}
    with pytest.raises(ZeroDivisionError), copies.in_place():
        assert {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16} == maps - {hooked}
        replayed(model, torch.bfloat16)
        raise ZeroDivisionError
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    once = {name: parameter.grad.clone() for name, parameter in own.items()}
    with copies.in_place():
        replayed(model, torch.bfloat16)
    name = max(maps)
    assert torch.allclose(own[name].grad, 2 * once[name], rtol=1e-5, atol=1e-9)


def test_a_weight_of_two_names_has_one_copy_in_both_places() -> None:
    linear: Any = torch.nn.Linear(3, 3)
    linear.register_parameter("again", linear.weight)
    with WeightCopies(linear, torch.bfloat16).in_place():
        assert linear.again is linear.weight and linear.again.dtype == torch.bfloat16
    assert linear.again is linear.weight and linear.again.dtype == torch.float32
