# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A backbone spread over tensor-parallel processes answers as the whole model does, and has its gradients.

Two processes, float64: differences are those of the order of summation (1e-12). The vocabulary of 31 does not divide.

Covers: memformer/models/backbone/roles.py, memformer/parallel/tensor/modules.py, memformer/models/heads.py
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from memformer.models.backbone import Backbone, BackboneConfig, LoraConfig
from memformer.models.backbone.architectures import SUPPORTED
from memformer.models.backbone.looking import look
from memformer.models.backbone.reader import BackboneReader
from memformer.models.registry import family_of
from memformer.parallel.tensor import SlicedConstruction, shard_model, sharding_of, slice_of, whole_tensor
from memformer.processes.group import World
from memformer.processes.topology import Axis
from memformer.replay import Carry, memory_replay_backward
from tests.distributed.processes import run_distributed
from tests.memformer.examples import ragged_rollout
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, START, VOCABULARY

LENGTH, LANES = 6, 4
EVERYWHERE = LoraConfig(rank=3, alpha=5.0, dropout=0.2, targets=SUPPORTED["llama"].linear)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "associative": ("llama", "associative", {}),  # head and embedding are one
    "adapters": ("llama", "associative", {"lora": EVERYWHERE, "bos_token_id": 5}),
    "slots": ("qwen3", "slots half-way", {}),  # with norms of each head
    "tokens": ("mistral", "tokens", {}),
    "armt": ("qwen2", "armt", {}),  # with biases
}


def config_of(kind: str, memory: str, changes: dict[str, Any]) -> BackboneConfig:
    """Four heads, two of keys and values."""
    sizes = SIZES[kind] | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    if kind == "qwen2":
        del sizes["head_dim"]
    values = {"vocab_size": VOCABULARY, "start_token_id": START, "overlap": 2} | changes
    return BackboneConfig(backbone=sizes, memory=MEMORIES[memory], **values)


def exact_norm_classes(model: nn.Module) -> None:
    """transformers computes RMS norms in float32 whatever it is given; from here on in what it is given."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * scaled

    for kind in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
        kind.forward = forward  # type: ignore[assignment]


def model_of(config: BackboneConfig) -> Backbone:
    """The same at every call, away from the zeros that it starts with."""
    torch.manual_seed(0)
    model = Backbone(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def answers(model: Backbone) -> dict[str, torch.Tensor]:
    """Of a model, whole or in parts, to everything that is asked of it; its gradients are left in it."""
    found: dict[str, torch.Tensor] = {}
    rollout = ragged_rollout(LANES, 3, LENGTH)
    carry = Carry.empty(model.initial_memory(LANES), LENGTH)
    model.eval()
    with torch.no_grad():
        segment = rollout.segment(0, carry)
        found["losses"], memory = model.losses(segment, carry.memory)
        found["logits"], found["memory"] = model.logits(rollout.segment(1, carry), memory)
        looked = look(model, rollout.segment(1, carry), memory)
        for name, figure in looked.figures.items():
            found[f"figure {name}"] = figure.part
        if looked.slots is not None:
            found["self weights"], found["left"], _ = looked.slots
        reader = BackboneReader(model, 2, LENGTH)
        reader.read(rollout.tokens[:2].flatten(1)[:, : LENGTH + 3])
        found["next token"] = reader.logits
    model.train()
    result = memory_replay_backward(model, rollout, carry, denominator=17.0, seed=3)
    found["training losses"] = result.segment_losses
    found["carried"] = result.carry.memory
    return found


def compare(world: World, name: str, train: str) -> dict[str, float]:
    """Largest difference to the whole model, by what was asked."""
    config, axis = config_of(*CASES[name]), world.arranged(world.size, 1).mesh.tensor
    plain, parts = model_of(config), model_of(config)
    exact_norm_classes(plain)
    shard_model(parts, axis)
    for model in (plain, parts):
        for each, parameter in model.named_parameters():
            parameter.requires_grad_(family_of(config).trains(train, each))
    expected, got = answers(plain), answers(parts)
    errors = {each: float((got[each] - expected[each]).abs().max()) for each in expected}
    for (each, whole), (_, part) in zip(plain.named_parameters(), parts.named_parameters(), strict=True):
        assert (whole.grad is None) == (part.grad is None), each
        if whole.grad is not None and part.grad is not None:
            assert whole.grad.abs().max() > 0, each
            gradient = whole_tensor(part, axis, part.grad)
            errors[f"gradient of {each}"] = float((gradient - whole.grad).abs().max())
    return errors


def compare_all(world: World) -> dict[str, dict[str, float]]:
    found = {name: compare(world, name, "all") for name in CASES}
    return found | {"lora": compare(world, "adapters", "lora"), "memory": compare(world, "slots", "memory")}


@pytest.fixture(scope="module")
def compared() -> Iterator[list[dict[str, dict[str, float]]]]:
    yield run_distributed(compare_all, 2)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", [*CASES, "lora", "memory"])
def test_answers_and_gradients_equal_those_of_the_whole_model(
    name: str, compared: list[dict[str, dict[str, float]]]
) -> None:
    for rank in compared:
        wrong = {asked: error for asked, error in rank[name].items() if not error < 1e-12}
        assert not wrong
        assert len(rank[name]) > 12


if __name__ == "__main__":
    for name, errors in run_distributed(compare_all, 2)[0].items():
        print(name, {k: v for k, v in errors.items() if not v < 1e-12}, len(errors))
