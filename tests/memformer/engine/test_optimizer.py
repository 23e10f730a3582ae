# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The learning rate's shape, and which parameters decay."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from memformer.config.schema import OptimizerConfig
from memformer.engine.optimizer import hidden_matrices, learning_rate, make_optimizer, parameter_groups
from memformer.models.backbone import LoraConfig
from tests.memformer.examples import small_model
from tests.memformer.models.backbone.examples import config_of, make

MAX_STEPS = 100


def rates(**changes: object) -> list[float]:
    """Learning rates of steps 1 .. MAX_STEPS."""
    settings = {"learning_rate": 2.0, "warmup_steps": 10, "final_fraction": 0.1} | changes
    config = OptimizerConfig.model_validate(settings)
    return [learning_rate(step, config, MAX_STEPS) for step in range(1, MAX_STEPS + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_from_nought(schedule: str) -> None:
    values = rates(schedule=schedule)
    steps = [b - a for a, b in itertools.pairwise([0.0, *values[:10]])]
    assert steps == pytest.approx([2.0 / 11] * 10)
    assert max(values) <= 2.0


def test_cosine_falls_to_the_final_fraction() -> None:
    values = rates()
    assert values[10] == pytest.approx(2.0, rel=1e-2)
    assert values[54] == pytest.approx(1.1, rel=1e-2)  # half way: the mean of peak and floor
    assert values[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(values[10:]))


def test_wsd_is_stable_and_then_falls_linearly() -> None:
    values = rates(schedule="wsd", decay_fraction=0.2)
    assert values[10:80] == pytest.approx([2.0] * 70)
    falls = [a - b for a, b in itertools.pairwise(values[79:])]
    assert falls == pytest.approx([1.8 / 20] * 20)
    assert values[-1] == pytest.approx(0.2)


def test_constant_stays() -> None:
    assert rates(schedule="constant")[10:] == pytest.approx([2.0] * 90)


def test_without_warm_up_the_first_step_is_near_the_peak() -> None:
    assert rates(warmup_steps=0)[0] == pytest.approx(2.0, rel=1e-2)
    assert rates(warmup_steps=0, schedule="constant")[0] == 2.0


def test_a_schedule_of_warm_up_alone_and_steps_beyond_the_end() -> None:
    assert all(0 < rate <= 2.0 for rate in rates(warmup_steps=MAX_STEPS))
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=0)
    assert learning_rate(10 * MAX_STEPS, config, MAX_STEPS) == pytest.approx(0.2)


def test_matrices_decay_and_nothing_else() -> None:
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    assert decayed["weight_decay"] == 0.3 and kept["weight_decay"] == 0.0
    kept_names = {names[id(p)] for p in kept["params"]}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert kept_names | decayed_names == set(names.values()) and not kept_names & decayed_names
    assert "forget.bias" in kept_names
    assert all("norm" in name for name in kept_names - {"forget.bias"})
    assert not any("norm" in name for name in decayed_names)


@pytest.mark.parametrize("model", [small_model(), make(config_of("llama", "slots"))], ids=["memformer", "backbone"])
def test_the_memory_has_groups_of_its_own(model: Any) -> None:
    """With its own rate; what decays among its parameters is what decays anyway."""
    one = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    split = parameter_groups(model, OptimizerConfig(weight_decay=0.3, learning_rate=0.5, memory_learning_rate=2.0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [(group["weight_decay"], group["rate_factor"]) for group in split] == [(0.3, 1), (0, 1), (0.3, 4), (0, 4)]
    of_memory = {names[id(p)] for group in split[2:] for p in group["params"]}
    words = ("writer", "forget", "reader", "read_norm", "memory")
    assert of_memory == {name for name in names.values() if any(word in name.split(".") for word in words)} != set()
    for decay, group in zip((0, 1), one, strict=True):
        together = {id(p) for each in (split[decay], split[decay + 2]) for p in each["params"]}
        assert together == {id(p) for p in group["params"]}
    assert not any(
        name.endswith((".bias", "gate.weight", ".rows")) for name in map(names.get, map(id, split[2]["params"])) if name
    )


MAPS = {"query", "key", "value", "output", "up", "down", "gate", "q_proj", "k_proj", "v_proj", "o_proj"}
MAPS |= {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("kind", ["memformer", "associative", "slots", "tokens", "gpt2", "lora"])
def test_muon_steps_maps_between_hidden_vectors_and_nothing_else(kind: str) -> None:
    """Not embeddings, head, norms, biases, first slots, slot bias, gates of writes, adapters."""
    if kind == "memformer":
        model: Any = small_model()
    elif kind == "gpt2":
        model = make(config_of("gpt2", "associative"))
    elif kind == "lora":
        lora = LoraConfig(rank=2)
        model = make(dataclasses.replace(config_of("llama", "associative"), lora=lora))
    else:
        model = make(config_of("qwen2", kind))  # whose head is not the embedding
    shapes = {name: p.dim() for name, p in model.named_parameters()}
    found = hidden_matrices(model)
    assert all(name.endswith(".weight") and shapes[name] == 2 for name in found)
    last = {name.split(".")[-2] for name in found}
    assert last <= MAPS | {"c_attn", "c_proj", "c_fc"}
    left = {name.removesuffix(".weight").split(".")[-1] for name in shapes if shapes[name] == 2 and name not in found}
    assert left <= {"tokens", "embedding", "positions", "head", "bias", "rows", "gate", "lora_A", "lora_B"}
    groups = parameter_groups(model, OptimizerConfig(name="muon", weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [(group["muon"], group["weight_decay"]) for group in groups] == [(True, 0.3), (False, 0.3), (False, 0)]
    assert {names[id(p)] for p in groups[0]["params"]} == found
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_what_is_frozen_is_in_no_group() -> None:
    model = small_model().requires_grad_(False)
    model.writer.requires_grad_(True)
    (group,) = parameter_groups(model, OptimizerConfig())
    assert group["params"] == list(model.writer.parameters())


def test_the_optimizer_has_the_settings() -> None:
    config = OptimizerConfig(learning_rate=0.5, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.2)
    optimizer = make_optimizer(small_model(torch.float32), config, torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.9), 1e-6)
        assert group["weight_decay"] == decay
