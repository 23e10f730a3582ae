# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Low-rank adapters: nothing at first, exact gradients, merged weights, PEFT's file format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from memformer.models.backbone import Backbone, BackboneConfig, LoraConfig
from memformer.models.backbone.config import is_adapter
from memformer.models.backbone.lora import LoraLinear, merged_weight, write_adapter
from memformer.models.registry import family_of
from memformer.replay import Carry, bptt_backward, memory_replay_backward
from tests.memformer.examples import ragged_rollout
from tests.memformer.models.backbone.examples import SIZES, config_of, make, plain_of
from tests.memformer.models.backbone.test_model import LENGTH, both, full_rollout

TARGETS = {"llama": ("down_proj", "q_proj"), "gpt_neox": ("dense",), "gpt2": ("c_attn", "c_proj")}


def lora_config(kind: str, memory: str = "associative", dropout: float = 0.0) -> BackboneConfig:
    """Adapters in named places, or where they are by default."""
    return config_of(kind, memory, lora=LoraConfig(3, 5.0, dropout, TARGETS.get(kind)), dropout=dropout)


def moved(config: BackboneConfig) -> Backbone:
    """With adapters that add something."""
    model = make(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", SIZES)
def test_nothing_is_added_at_first(kind: str) -> None:
    """To the last bit in float32; and once they are moved, something is."""
    model = make(lora_config(kind, "slots"), torch.float32)
    count = sum(isinstance(module, LoraLinear) for module in model.modules())
    assert count == {"llama": 6, "gpt_neox": 3, "gpt2": 9}.get(kind, 6)
    for logits, expected in both(model, full_rollout()):
        assert torch.equal(logits, expected)
    for logits, expected in both(moved(lora_config(kind, "slots")), full_rollout()):
        assert float((logits - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("train", ["memory", "lora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("memory", ["associative", "slots half-way", "tokens"])
def test_replay_equals_bptt_where_the_base_is_frozen(kind: str, memory: str, train: str) -> None:
    """In float64, to rounding, with resets, ragged and idle lanes, and dropout."""
    gradients = []
    for algorithm in (bptt_backward, memory_replay_backward):
        model = moved(lora_config(kind, memory, dropout=0.1)).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(family_of(model.config).trains(train, name))
        rollout = ragged_rollout(length=LENGTH)
        carry = Carry.empty(model.initial_memory(len(rollout.tokens)), LENGTH)
        algorithm(model, rollout, carry, denominator=17.0, seed=3)
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert any(map(is_adapter, trained)) == (train == "lora")
        assert all(is_adapter(name) or "reader" in name or name.startswith("memory.") for name in trained)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-12


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
@torch.no_grad()
def test_merged_weights_say_the_same(kind: str) -> None:
    """A model without adapters that has them, against the adapted one; to rounding in float64.

    What the base holds in bfloat16 is summed in float32, so that no adapter is rounded away.
    """
    model = moved(lora_config(kind, "slots")).eval()
    tensors = dict(model.named_parameters())
    merged = {name: merged_weight(name, model.config, tensors.__getitem__) for name in tensors if not is_adapter(name)}
    assert any(not torch.equal(weight.float(), tensors[name].float()) for name, weight in merged.items())
    plain = make(config_of(kind, "slots")).eval()
    plain.load_state_dict(merged, strict=False)
    for (logits, _), (expected, _) in zip(both(plain, full_rollout()), both(model, full_rollout()), strict=True):
        assert torch.allclose(logits, expected, atol=1e-12)
    half = {name: tensor if is_adapter(name) else tensor.bfloat16() for name, tensor in tensors.items()}
    name = next(name for name in merged if f"{name.removesuffix('weight')}lora_A.weight" in tensors)
    found, place = merged_weight(name, model.config, half.__getitem__), name.removesuffix("weight")
    added = 5.0 / 3 * tensors[f"{place}lora_B.weight"] @ tensors[f"{place}lora_A.weight"]
    expected_sum = tensors[name].bfloat16() + (added.T if kind == "gpt2" else added)
    assert found.dtype == torch.float32 and torch.allclose(found, expected_sum.float(), atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_files_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    """Names and shapes as `peft.PeftModel.save_pretrained` writes them, and what the numbers are to be used for."""
    model = moved(lora_config(kind))
    parameters = dict(model.named_parameters())
    write_adapter(tmp_path, model.config, parameters, parameters.__getitem__)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "one is for its owner alone"
    said: dict[str, Any] = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["peft_type"], said["task_type"], said["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert (said["r"], said["lora_alpha"], said["target_modules"]) == (3, 5.0, list(TARGETS[kind]))
    assert said["fan_in_fan_out"] == (kind == "gpt2")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    plain = plain_of(model)
    places = {name for name, _ in plain.named_modules() if name.rpartition(".")[2] in TARGETS[kind]}
    parts = [f"base_model.model.{place}.lora_{part}.weight" for place in places for part in "AB"]
    assert sorted(tensors) == sorted(parts) and len(places) == len(TARGETS[kind]) * 3 + 3 * (kind == "gpt2")
    first = next(module for module in model.modules() if isinstance(module, LoraLinear))
    name = "transformer.h.0.attn.c_attn" if kind == "gpt2" else "model.layers.0.self_attn.q_proj"
    assert torch.equal(tensors[f"base_model.model.{name}.lora_A.weight"], first.lora_A.weight)
    assert tensors[f"base_model.model.{name}.lora_B.weight"].shape == (48 if kind == "gpt2" else 16, 3)


def test_values_out_of_range_are_refused() -> None:
    for values, words in (
        ({"rank": 0}, "lora.rank is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1"),
        ({"targets": ()}, r"lora.targets is \[\]"),
    ):
        with pytest.raises(ValueError, match=words):
            LoraConfig(**values)
    with pytest.raises(ValueError, match=r"lora.targets is \['c_attn'\]: choose from q_proj, v_proj"):
        config_of("llama", lora=LoraConfig(targets=("c_attn",)))
    again = BackboneConfig.from_dict(lora_config("llama").to_dict())
    assert again == lora_config("llama")
    with pytest.raises(ValueError, match=r"unknown model field 'lora.r'"):
        BackboneConfig.from_dict({**again.to_dict(), "lora": {"r": 3}})
