# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What is frozen is stored in 16 bits without changing what is computed from it."""

import copy
from typing import Any

import pytest
import torch

from memformer.engine.frozen import freeze, frozen_in_float32
from memformer.models.backbone import Backbone
from memformer.replay import Carry
from tests.memformer.examples import ragged_rollout, small_model
from tests.memformer.models.backbone.examples import config_of, make

LENGTH = 6


def scored(model: Any, autocast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a segment, and the next memory."""
    rollout = ragged_rollout(length=LENGTH)
    carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found: tuple[torch.Tensor, torch.Tensor] = model.losses(rollout.segment(0, carry), carry.memory)
        return found


def rounded(kind: str) -> Backbone:
    """With weights that bfloat16 has, in float32."""
    model = make(config_of(kind, "slots"), torch.float32, moved=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_weights_of_a_bfloat16_file_lose_nothing(kind: str) -> None:
    """To the last bit: under autocast, and in float32 where a checkpoint's probe is computed."""
    plain = rounded(kind)
    model = copy.deepcopy(plain)
    freeze(model, "memory", "bf16")
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and not p.requires_grad]
    assert matrices and all(p.dtype == torch.bfloat16 for p in matrices)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad or p.dim() == 1)
    for found, expected in zip(scored(model, True), scored(plain, True), strict=True):
        assert torch.equal(found, expected)
    with frozen_in_float32(model):
        for found, expected in zip(scored(model, False), scored(plain, False), strict=True):
            assert torch.equal(found, expected)
    assert all(p.dtype == torch.bfloat16 for p in matrices)
    with pytest.raises(RuntimeError, match="dtype"):
        scored(model, False)


def test_a_memformer_trains_its_memory_alone() -> None:
    model = small_model(torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    freeze(model, "memory", "fp32")
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"encoder", "writer", "forget"}
    assert all(torch.equal(before[name], p) and p.dtype == before[name].dtype for name, p in model.named_parameters())


def test_nothing_is_frozen_unless_it_is_asked_for() -> None:
    model = small_model(torch.float32)
    freeze(model, "all", "bf16")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
