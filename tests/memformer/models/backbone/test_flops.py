# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The formula is what torch counts in the model's matrix products."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memformer.models.backbone.flops import segment_flops
from memformer.models.sizes import count_parameters
from memformer.replay import Segment
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, config_of, make

LENGTH = 8


CASES = [("llama", each) for each in MEMORIES] + [(each, "slots half-way") for each in list(SIZES)[1:]]


@pytest.mark.parametrize(("kind", "memory"), CASES)
@torch.no_grad()
def test_forward_and_advance_are_counted_as_torch_counts_them(kind: str, memory: str) -> None:
    """To 2 %: torch leaves out what broadcasts, such as the rotary frequencies."""
    model = make(config_of(kind, memory), torch.float32).eval().requires_grad_(False)
    tokens, full = torch.zeros(1, LENGTH, dtype=torch.int64), torch.tensor([LENGTH])
    segment = Segment(tokens, full, tokens, full, torch.tensor([False]), False, False)
    flops, state = segment_flops(model.config, LENGTH), model.initial_memory(1)
    for call, expected in ((model, flops.forward), (model.advance, flops.advance)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            call(segment, state)
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)
    assert flops.layers < flops.forward
    assert count_parameters(model.config) == sum(each.numel() for each in model.parameters())
