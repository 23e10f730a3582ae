# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Training with 16-bit copies of weights gives the gradients that autocast gives, to the last bit."""

import contextlib
from typing import Any

import pytest
import torch

from memformer.engine.weight_copies import WeightCopies
from memformer.parallel.activation_checkpointing import recomputed
from memformer.replay import Carry, memory_replay_backward
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


def replayed(model: Any, dtype: torch.dtype) -> None:
    """Accumulates the gradients of two groups of lanes."""
    rollout = rollout_of(0)
    with torch.autocast("cpu", enabled=False):
        for start in (0, LANES // 2):
            span = start, start + LANES // 2
            carry = Carry.empty(model.initial_memory(LANES // 2).detach(), LENGTH)
            memory_replay_backward(AutocastCell(model, dtype), rollout.lanes(*span), carry, denominator=9.0, seed=start)


def gradients(case: Case, copied: bool) -> dict[str, torch.Tensor | None]:
    """Of all parameters."""
    model, dtype = made(case), DTYPES[case.precision]
    with WeightCopies(model, dtype).in_place() if copied else contextlib.nullcontext():
        replayed(model, dtype)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_autocast_to_the_last_bit(case: Case) -> None:
    plain, found = gradients(case, copied=False), gradients(case, copied=True)
    assert list(found) == list(plain)
    for name, gradient in plain.items():
        assert (found[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(gradient, found[name]), name
        assert found[name] is None or found[name].dtype == torch.float32


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
