# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A weight that is only multiplied may be sent in 16 bits: nothing that is computed tells the difference."""

from typing import Any

import pytest
import torch

from memformer.config.schema import OptimizerConfig
from memformer.engine.optimizer import parameter_groups
from memformer.engine.sent import Sent, of_linear_maps, only_multiplied
from memformer.replay import Carry, bptt_backward
from tests.distributed.short_runs import BACKBONES, LANES, LENGTH, Case, model_of, rollout_of

CASES = [Case(1), Case(1, tie_embeddings=False, block="modern", memory_forgetting="written", memory_read_norm=True)]
CASES += [
    Case(1, memory_write_threshold=0.3, overlap=3, chunked=True),
    *(Case(1, backbone=name) for name in BACKBONES if name != "adapters"),
]
WIDE, NARROW = torch.float32, torch.bfloat16


def computed(case: Case, dtype: torch.dtype, rounded: Any) -> list[torch.Tensor]:
    """Losses, memory and gradients under autocast, of a model some of whose parameters are rounded to 16 bits."""
    model = model_of(case)
    if case.chunked:
        model.head.chunk_bytes = 5 * 4 * len(model.head.weight)
    with torch.no_grad():
        for parameter in [p for p in model.parameters() if id(p) in rounded(model)]:
            parameter.copy_(parameter.to(dtype))
    carry = Carry.empty(model.initial_memory(LANES).detach(), LENGTH)
    with torch.autocast("cpu", dtype=dtype):
        result = bptt_backward(model, rollout_of(0, 2), carry, denominator=9.0, seed=0)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [result.segment_losses, result.carry.memory, *gradients]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_to_the_last_bit(case: Case) -> None:
    for dtype in (NARROW, torch.float16)[: 1 + (case == CASES[0])]:
        assert equal(computed(case, dtype, lambda model: ()), computed(case, dtype, only_multiplied))


@pytest.mark.parametrize("case", [CASES[0], Case(1, backbone="matrices")], ids=str)
def test_other_weights_of_maps_have_to_be_whole(case: Case) -> None:
    """The embedding that the head is tied to; the maps that write an associative memory."""
    others = computed(case, NARROW, lambda model: of_linear_maps(model) - only_multiplied(model))
    assert not equal(others, computed(case, NARROW, lambda model: ()))


def test_groups_are_sent_as_one() -> None:
    """A group for each way of sending: maps; what is tied to an embedding, and biases of maps; all else."""
    model = model_of(Case(1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(), NARROW)
    found = {(group["weight_decay"] > 0, group["sent"]): {names[id(p)] for p in group["params"]} for group in groups}
    assert found[True, Sent(NARROW, WIDE)] == {"embedding.tokens.weight"}
    assert all(name.endswith(".weight") for name in found[True, Sent(NARROW, NARROW)])
    assert "forget.bias" in found[False, Sent(WIDE, WIDE)]
    assert sum(map(len, found.values())) == len(names)
    assert {group["sent"] for group in parameter_groups(model, OptimizerConfig())} == {Sent(WIDE, WIDE)}
