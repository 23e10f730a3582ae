# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The settings of `model.family: backbone`, as YAML has them; all without torch and transformers.

Covers: memformer/models/backbone/family.py
"""

import dataclasses
import json
import re
from typing import Any, Literal

import pytest

from data_pipeline import UserError
from memformer.config.schema import parse_config
from memformer.models.backbone.config import BackboneConfig, MemoryConfig
from memformer.models.registry import family, family_of_architecture
from tests.memformer.models.backbone.examples import SIZES, config_of


def parsed(**model: Any) -> Any:
    values = {"family": "backbone", "backbone": dict(SIZES["llama"])} | model
    return parse_config({"run_dir": "r", "data": {"path": "d", "segment_length": 16}, "model": values}, "test").model


def test_defaults_and_sections() -> None:
    config = parsed(memory={"kind": "slots", "layers": [2, 0], "num_slots": 5}, dropout=0.1)
    assert config.memory.layers == (0, 2) and config.memory_shape == (5, 16)
    assert parsed().memory_shape == (3 * 6 * 16, 16)
    assert config.completed(31, 30, 16).overlap_of(16) == 4
    again = BackboneConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)
    assert "llama with 3 layers" in config.summary() and "slots" in config.rows()["memory"]
    assert config.tied() == {"head.weight": "embedding.weight"} and config_of("mistral").tied() == {}


def test_the_family_is_found_by_name_and_by_architecture() -> None:
    assert family("backbone") is family_of_architecture("Backbone")
    assert family("backbone").config is BackboneConfig


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"backbone": {}}, "pretrained and backbone are both left out: name a directory, or give sizes"),
        ({"pretrained": "/nowhere", "backbone": {}}, "pretrained is /nowhere: holds no config.json"),
        ({"backbone": {"model_type": "cohere"}}, "cohere scales its logits, which is not built"),
        ({"backbone": {"model_type": "llama"}}, "num_hidden_layers is None: give a whole number above 0"),
        ({"backbone": SIZES["llama"] | {"hiden": 1}}, r"backbone is \['hiden'\]: names no size of this model_type"),
        ({"memory": {"kind": "lstm"}}, "memory.kind"),
        (
            {"memory": {"forgetting": "gate"}},
            "memory.forgetting: is 'gate': input should be 'off', 'written' or 'paper'",
        ),
        ({"memory": {"forgetting": "paper"}}, "memory.forgetting is paper: it is of kind slots, and this"),
        ({"memory": {"kind": "slots", "rule": "armt"}}, "memory.rule is armt: it is of kind associative, and this is"),
        ({"lora": {"rnak": 4}}, "model.lora.rnak: unknown key, did you mean rank"),
        ({"lora": {"xyzzy": 4}}, "model.lora.xyzzy: unknown key; the keys are alpha, dropout, rank, targets"),
        ({"memory": {"layers": [3]}}, r"memory.layers is \[3\]: choose numbers from 0 to 2"),
        ({"memory": {"layers": []}}, "memory.layers"),
        ({"memory": {"kind": "slots", "write_layer": 4}}, "memory.write_layer is 4: choose a number from 1 to 3, half"),
        ({"memory": {"kind": "slots", "num_heads": 3}}, "memory.num_heads is 3: choose a divisor of half"),
        ({"memory": {"num_write_tokens": 0}}, "memory.num_write_tokens is 0: set it to 1 or more"),
        ({"overlap": -1}, "overlap is -1: set it to 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"initial_values": "small"}, "initial_values: is 'small': input should be 'transformers' or 'fan_in'"),
        (
            {"pretrained": "/nowhere", "initial_values": "fan_in"},
            "initial_values is fan_in: a pretrained backbone has its values: leave it out, or give sizes",
        ),
        ({"train": "lora"}, "model.train"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(model: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        parsed(**model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segment_length": 50}, r"segment_length 50 with overlap 12 and the memory's 2 tokens needs 65 positions"),
        ({"segment_length": 8, "overlap": 9}, "overlap is 9: set it to at most data.segment_length = 8"),
        ({"bos_token_id": 31}, "bos_token_id is 31: choose an id below the backbone's 31"),
    ],
)
def test_what_the_data_decides_is_checked_with_it(changes: dict[str, Any], words: str) -> None:
    assert config_of(segment_length=49, overlap=None).overlap_of(49) == 12  # which needs all of the 64
    with pytest.raises(ValueError, match=words):
        config_of(**{"overlap": None} | changes)


@pytest.mark.parametrize(("name", "value"), [("bos_token_id", [1]), ("bos_token_id", True), ("vocab_size", "31")])
def test_what_is_no_number_in_a_config_json_is_refused(name: str, value: object) -> None:
    plain = config_of(vocab_size=None, start_token_id=None)
    config = dataclasses.replace(plain, backbone={**plain.backbone, name: value})
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value}: give a whole number")):
        config.completed(31, 30, 16)


@pytest.mark.parametrize(("written", "depth"), [("half", 2), (None, 3), (1, 1)])
def test_slots_are_written_half_way_up_unless_told_otherwise(written: Literal["half"] | int | None, depth: int) -> None:
    """Of three layers; null, which older files have, is all of them, and goes through a file unchanged."""
    config = dataclasses.replace(config_of(), memory=MemoryConfig("slots", write_layer=written))
    assert (config.num_layers, config.memory_depth) == (3, depth)
    assert BackboneConfig.from_dict(config.to_dict()).memory.write_layer == written
    assert MemoryConfig("slots").write_layer == "half"
