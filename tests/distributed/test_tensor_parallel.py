# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What is asked of a tensor-parallel model besides training: losses, whole logits, generation, the writer's weights.

Two and three processes, float64: differences are those of the order of summation (1e-12). Three do not divide the
vocabulary of 50, nor do two one of 51.

Covers: memformer/models/heads.py, memformer/models/memformer/roles.py, memformer/models/scoring.py,
memformer/parallel/tensor/collectives.py, memformer/parallel/tensor/modules.py, memformer/parallel/tensor/sharding.py,
memformer/parallel/tensor/vocabulary.py
"""

import dataclasses
from typing import Any

import pytest
import torch

from memformer import Memformer, MemformerConfig
from memformer.models.memformer import computation
from memformer.models.memformer.reader import MemformerReader
from memformer.parallel.tensor import shard_model, slice_of, whole_tensor
from memformer.processes.group import World
from memformer.replay import Carry
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, MODEL, rollout_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CONFIGS = {
    2: MODEL,
    3: dataclasses.replace(
        MODEL,
        d_model=36,
        num_heads=6,
        writer_heads=3,
        d_ff=48,
        vocab_size=50,
        tie_embeddings=False,
        memory_forgetting="written",
        overlap=3,
        block="modern",
    ),
}


def answers(model: Memformer) -> dict[str, torch.Tensor]:
    """Of a model, whole or in parts, to everything that is asked of it."""
    found: dict[str, torch.Tensor] = {}
    rollout = rollout_of(1)
    carry = Carry.empty(model.initial_memory(LANES), LENGTH)
    segment = rollout.segment(1, carry)
    memory = torch.nn.functional.normalize(torch.arange(1.0, carry.memory.numel() + 1).view_as(carry.memory).cos())
    memory = memory.to(carry.memory.dtype)
    with torch.no_grad():
        found["losses"], found["memory"] = model.losses(segment, memory)
        found["logits"], _ = model.logits(segment, memory)
        x_BSD, mask_BS, begun = model.encode(segment, memory)
        assert model.writer is not None
        write = computation.observe(model.writer, model.forget, begun, x_BSD, mask_BS)
        found["weights"], found["left"], found["written"] = write
        generator = MemformerReader(model, batch_size=2, segment_length=LENGTH)
        generator.read(rollout.tokens[:2].flatten(1)[:, : 2 * LENGTH + 3])
        found["next token"] = generator.logits
    loss, _, after = model(segment, memory)
    (loss + after.square().sum()).backward()
    return found


def model_of(config: MemformerConfig) -> Memformer:
    torch.manual_seed(0)
    return Memformer(config).double()


def compare(world: World) -> dict[str, float]:
    """Largest difference to the whole model, by what was asked."""
    config, axis = CONFIGS[world.size], world.arranged(world.size, 1).mesh.tensor
    plain, parts = model_of(config), model_of(config)
    shard_model(parts, axis)
    assert parts.writer is not None
    parts.writer.fused = world.size == 3  # heads that are spread, of the fused softmax too
    expected, got = answers(plain), answers(parts)
    errors = {name: float((got[name] - expected[name]).abs().max()) for name in expected}
    for (name, whole), part in zip(plain.named_parameters(), parts.parameters(), strict=True):
        assert whole.grad is not None and part.grad is not None, name
        gradient = whole_tensor(part, axis, part.grad)
        errors[f"gradient of {name}"] = float((gradient - whole.grad).abs().max())
    largest = max(p.numel() for p in parts.parameters() if slice_of(p) is not None)
    assert largest <= -(-max(p.numel() for p in plain.parameters()) // world.size) + config.d_model
    return errors


@pytest.mark.parametrize("processes", CONFIGS)
def test_answers_and_gradients_equal_those_of_the_whole_model(processes: int) -> None:
    ranks: list[dict[str, Any]] = run_distributed(compare, processes)
    for errors in ranks:
        wrong = {name: error for name, error in errors.items() if not error < 1e-12}
        assert not wrong
        assert len(errors) > 40
