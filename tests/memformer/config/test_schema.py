# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The configuration: what it reads, what it refuses, and how it says so.

Covers: memformer/config/checks.py, memformer/config/faults.py
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from data_pipeline.errors import UserError
from memformer.config import checks, faults
from memformer.config.schema import Config, describe_fields, load_config, parse_config
from memformer.models.registry import family_of

MINIMAL: dict[str, Any] = {"run_dir": "runs/a", "data": {"path": "data/books"}}


CONTIGUOUS = {
    "parallel": {"tensor": 2},
    "activation_checkpointing": {"mode": "full", "partition_activations": True, "contiguous_checkpointing": True},
}


def write(path: Path, values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def refusal(values: Mapping[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(MINIMAL | dict(values), "run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ") and "\n" not in message
    return message


def test_a_family_that_cannot_be_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "family_of", lambda config: dataclasses.replace(family_of(config), shard=None))
    said = refusal({"parallel": {"tensor": 2}})
    assert said == "run.yaml: parallel.tensor: not built for family memformer: set it to 1"
    parse_config(MINIMAL, "run.yaml")


def test_a_rate_for_the_memory_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"optimizer": {"memory_learning_rate": 0.1}}
    parse_config(MINIMAL | asked, "run.yaml")
    assert "optimizer.memory_learning_rate: the model has no memory slots: leave it out" in refusal(
        asked | {"model": {"num_memory_slots": 0}}
    )
    monkeypatch.setattr(checks, "family_of", lambda config: dataclasses.replace(family_of(config), memory=None))
    assert "optimizer.memory_learning_rate: not built for family memformer: leave it out" in refusal(asked)


def test_a_minimal_file_has_defaults() -> None:
    config = parse_config(MINIMAL, "run.yaml")
    assert config.data.path == "data/books"
    assert config.training.replay == "mrbp"
    assert config.model.num_memory_slots > 0


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"sead": 1}, ["sead: unknown key, did you mean seed?"]),
        ({"model": {"num_memory_slot": 4}}, ["model.num_memory_slot: unknown key, did you mean num_memory_slots?"]),
        ({"training": {"xyzzy": 4}}, ["training.xyzzy: unknown key; the keys are", "max_steps"]),
        ({"seed": "many"}, ["seed: is 'many':", "integer"]),
        ({"training": {"replay": "full"}}, ["training.replay: is 'full':", "'mrbp' or 'bptt'"]),
        ({"training": 3}, ["training: is 3: it is a section, write its settings under it"]),
        ({"model": {"num_memory_slots": "few"}}, ["model.num_memory_slots: is 'few':"]),
        ({"model": {"d_model": 30}}, ["model", "num_heads is 8: choose a divisor of d_model/2 = 15"]),
        ({"data": {"path": "d", "num_lanes": 0}}, ["data.num_lanes: is 0:", "greater than or equal to 1"]),
        ({"optimizer": {"learning_rate": float("inf")}}, ["optimizer.learning_rate"]),
        (
            {"optimizer": {"name": "muon", "implementation": "deepspeed"}},
            ["optimizer.implementation is deepspeed: DeepSpeed's own AdamW is not built for optimizer.name muon: set"],
        ),
        (
            {
                "optimizer": {"state_dtype": "bfloat16"},
                "deepspeed": {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}},
            },
            ["offload_optimizer.ratio is 0.5: DeepSpeed's own AdamW is not built for optimizer.state_dtype bfloat16:"],
        ),
        ({"data": {}}, ["data.path: is missing: set it in the file or with --data.path VALUE"]),
        ({"model": {"segment_length": 64}}, ["model.segment_length is 64 but data.segment_length is 128"]),
        ({"training": {"max_steps": 10}, "optimizer": {"warmup_steps": 100}}, ["warmup_steps is 100: set it to", "10"]),
        ({"data": {"path": [{"weight": 1}]}}, ["data.path.0.path: is missing: write it there"]),
        ({"data": {"path": ["d"]}}, ["data.path.0: is 'd': it is a section, write {path: VALUE, weight: VALUE}"]),
        ({"data": {"path": [{"path": "d", "wieght": 1}]}}, ["data.path.0.wieght: unknown key, did you mean weight?"]),
        ({"data": {"path": [{"path": "d", "x": 1}]}}, ["data.path.0.x: unknown key; the keys are path, weight"]),
        ({"training.max_steps": 3}, ["training.max_steps: a file has sections: write max_steps under training:"]),
        ({"training": {"batch_size": 3}}, ["training.batch_size: unknown key, did you mean data.num_lanes?"]),
        ({"epochs": 3}, ["epochs: unknown key, did you mean training.max_steps?"]),
        ({"data": {"path": {"a": 1}}}, ["data.path: is {'a': 1}: write a text or a list"]),
        ({"data": {"path": "d", "num_segments": None}}, ["data.num_segments: is null: give a number of segments"]),
        ({"compile": "maybe"}, ["compile: is 'maybe': input should be 'auto', true or false"]),
        ({"seed": None}, ["seed: is null: input should be a valid integer"]),
        ({"parallel": {"tensor": 3}}, ["model.num_heads is 8, which parallel.tensor 3 does not divide: choose"]),
        ({"parallel": {"tensor": 2}, "model": {"writer_heads": 1}}, ["model.writer_heads is 1", "a divisor of 1"]),
        ({"parallel": {"tensor": 8}, "model": {"d_ff": 100}}, ["model.d_ff is 100, which parallel.tensor 8"]),
        ({"parallel": {"pipeline": 2, "zero_stage": 2}}, ["parallel.zero_stage is 2: a pipeline", "set it to 0 or 1"]),
        ({"parallel": {"pipeline": 2, "zero_stage": 3}}, ["parallel.zero_stage is 3: a pipeline", "set it to 0 or 1"]),
        ({"parallel": {"pipeline": 21}}, ["parallel.pipeline is 21, but the model has 20 layers", "at most 20"]),
        (
            {"parallel": {"pipeline": 2, "pipeline_layers": [19]}},
            ["pipeline_layers is [19]: give each of the 2 stages"],
        ),
        ({"parallel": {"pipeline": 2, "pipeline_layers": [20, 0]}}, ["pipeline_layers is [20, 0]", "at least 1 layer"]),
        ({"parallel": {"pipeline": 2, "pipeline_layers": [9, 9]}}, ["pipeline_layers is [9, 9]", "20 in all"]),
        ({"parallel": {"pipeline": 2, "gradient_reduction": "segment"}}, ["gradient_reduction is segment", "rollout"]),
        ({"parallel": {"segments_in_flight": 3}}, ["segments_in_flight is 3, but parallel.pipeline is 1", "2 or more"]),
        ({"parallel": {"zero3_gather": "segment"}}, ["zero3_gather is segment", "zero_stage 1", "set zero_stage to 3"]),
        (
            {"parallel": {"pipeline": 2}, "activation_checkpointing": {"memory_interval": 4}},
            ["activation_checkpointing.memory_interval is 4", "set it to 1"],
        ),
        ({"parallel": {"pipeline": 2}, "training": {"replay": "bptt"}}, ["training.replay is bptt", "set it to mrbp"]),
        (
            {"training": {"segments_per_decoder_batch": 2, "replay": "bptt"}},
            ["training.segments_per_decoder_batch is 2", "training.replay is bptt", "set the former to 1"],
        ),
        (
            {"training": {"segments_per_decoder_batch": 2}, "parallel": {"pipeline": 2}},
            ["training.segments_per_decoder_batch is 2", "not built for parallel.pipeline above 1"],
        ),
        (
            {"training": {"segments_per_decoder_batch": 2}, "activation_checkpointing": {"memory_interval": 4}},
            ["training.segments_per_decoder_batch is 2", "memory_interval, which is 4, to 1"],
        ),
        (
            {"training": {"segments_per_decoder_batch": 99}},
            ["training.segments_per_decoder_batch is 99", "data.num_segments", "set it to no more"],
        ),
        (
            {"training": {"segments_per_decoder_batch": 0}},
            ["training.segments_per_decoder_batch"],
        ),
        (
            {"training": {"segments_per_decoder_batch": 2}, "compile": True, "model": {"dropout": 0.1}},
            ["training.segments_per_decoder_batch is 2", "compile", "model.dropout"],
        ),
        (
            {
                "training": {"segments_per_decoder_batch": 2},
                "parallel": {"zero_stage": 2, "offload_optimizer": "cpu", "gradient_reduction": "segment"},
            },
            ["training.segments_per_decoder_batch is 2", "set parallel.gradient_reduction to rollout"],
        ),
        (
            {"activation_checkpointing": {"memory_interval": 2}, "training": {"replay": "bptt"}},
            ["activation_checkpointing.memory_interval is 2", "training.replay is bptt", "set the former to 1"],
        ),
        (
            {"training": {"wavefront_window": 2}},
            ["training.wavefront_window is 2: not built for family memformer", "set it to 0"],
        ),
        ({"checkpoint": {"mirror": "/disk/run"}}, ["checkpoint.mirror: /disk/run: is no address", "s3://BUCKET/PATH"]),
        ({"checkpoint": {"mirror": "s3://a:pw@b/run"}}, ["checkpoint.mirror: s3://***@b/run: has a name or password"]),
        ({"model": {"overlap": 2}} | CONTIGUOUS, ["contiguous_checkpointing is true", "model.overlap is 2"]),
        ({"training": {"segments_per_decoder_batch": 2}} | CONTIGUOUS, ["segments_per_decoder_batch is 2", "to false"]),
        (CONTIGUOUS | {"parallel": {"tensor": 2, "pipeline": 2}}, ["parallel.pipeline is 2: a stage keeps"]),
        ({"activation_checkpointing": {"partition_activations": True}}, ["partition_activations is true", "set it to"]),
        ({"parallel": {"segment": 0}}, ["parallel.segment: is 0"]),
        ({"parallel": {"segment": 2, "pipeline": 2}}, ["segment is 2: not built for parallel.pipeline above 1"]),
        ({"parallel": {"segment": 2}, "training": {"replay": "bptt"}}, ["segment is 2, but", "set it to mrbp"]),
        ({"parallel": {"segment": 2}, "model": {"num_memory_slots": 0}}, ["segment is 2: the model has no memory"]),
        (
            {"parallel": {"segment": 2}, "activation_checkpointing": {"memory_interval": 2}},
            ["memory_interval is 2", "parallel.segment above 1", "set it to 1"],
        ),
        (
            {"parallel": {"segment": 2, "gradient_reduction": "segment"}},
            ["gradient_reduction is segment, but parallel.segment is 2", "set it to rollout"],
        ),
        (
            {"parallel": {"segment": 2, "zero_stage": 3, "zero3_gather": "segment"}},
            ["zero3_gather is segment, but parallel.segment is 2", "set it to rollout"],
        ),
        ({"parallel": {"segment": 2}, "compile": True, "model": {"dropout": 0.1}}, ["segment is 2: with compile"]),
        (
            {"precision": "fp16", "model": {"residual_dtype": "compute"}},
            ["residual_dtype is compute", "precision fp16"],
        ),
        (
            {"precision": "fp32", "training": {"gradient_accumulation_dtype": "bfloat16"}},
            ["gradient_accumulation_dtype is bfloat16", "gradients of precision fp32 are not in it", "float32"],
        ),
        (
            {"training": {"gradient_accumulation_dtype": "bfloat16"}, "parallel": {"zero_stage": 0}},
            ["gradient_accumulation_dtype is bfloat16: at parallel.zero_stage 0", "the latter to 1, 2 or 3"],
        ),
        *(
            (
                {
                    "training": {"gradient_accumulation_dtype": "bfloat16"},
                    "parallel": {"zero_stage": 3, name: "segment"},
                },
                [f"gradient_accumulation_dtype is bfloat16, but parallel.{name} is segment: set it to float32"],
            )
            for name in ("gradient_reduction", "zero3_gather")
        ),
        ({"parallel": {"segment": 5}}, ["segment is 5, but a rollout has 4 segments", "give at least 5"]),
        (
            {"parallel": {"segment": 2}, "data": {"path": "d", "num_segments": {0: 1, 9: 4}}},
            ["segment is 2, but a rollout has 1 segments", "give at least 2"],
        ),
    ],
)
def test_faults_are_named(values: dict[str, Any], parts: list[str]) -> None:
    message = refusal(values)
    for part in parts:
        assert part in message


def test_a_section_that_is_left_out_or_given_a_value_is_told_by_what_stands_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^c\.yaml: data\.path: is missing: .* --data\.path VALUE$"):
        parse_config({"run_dir": "r"}, "c.yaml")
    file = write(tmp_path / "c.yaml", MINIMAL)
    with pytest.raises(UserError, match=r"^--data: is 'd': it is a section, give its settings, such as --data\.path V"):
        load_config(file, ["--data", "d"])


def test_a_list_on_the_command_line_is_told_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", MINIMAL)
    with pytest.raises(UserError, match=r"^\S+ with --parallel\.pipeline_layers \[1, 1\]: parallel\."):
        load_config(file, ["--parallel.pipeline_layers", "[1,1]"])


def test_names_of_settings_elsewhere_name_settings_of_this_schema() -> None:
    settings = {line.split()[0].removeprefix("--") for line in describe_fields().splitlines()}
    assert {each for meant in faults._ELSEWHERE.values() for each in meant} <= settings


@pytest.mark.parametrize(
    ("setting", "value", "mend"),
    [
        ("training.wavefront_window", 9, "a rollout has 4 segments (data.num_segments) at most, set it to no more"),
        ("training.replay", "bptt", "or the latter to mrbp"),
        ("parallel.tensor", 2, "or the latter to 1"),
        ("parallel.segment", 2, "or the latter to 1"),
        ("parallel.zero_stage", 3, "set the latter to 0, 1 or 2"),
        ("activation_checkpointing.memory_interval", 2, "or the latter to 1"),
        ("activation_checkpointing.cpu_checkpointing", True, "set cpu_checkpointing to false, or mode to none"),
        ("compile", True, "or the latter to false"),
        ("model.dropout", 0.1, "model.dropout is 0.1: a wavefront draws no masks: set the former to 0"),
        ("model.lora", {"dropout": 0.1}, "model.lora.dropout is 0.1: a wavefront draws no masks: set the former to 0"),
        ("model.memory", {"kind": "tokens"}, "model.memory.kind is tokens: all layers wait for it"),
    ],
)
def test_a_wavefront_goes_with_what_leaves_its_diagonals_whole(setting: str, value: Any, mend: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 256}
    values: dict[str, Any] = MINIMAL | {
        "model": {"family": "backbone", "backbone": {"model_type": "llama", **sizes}},
        "training": {"wavefront_window": 2, "train": "lora" if setting == "model.lora" else "all"},
        "activation_checkpointing": {"mode": "full"},
    }
    if setting != "model.lora":
        parse_config(values, "run.yaml")
    *section, field = setting.split(".")
    for name in section:
        values[name] = values.get(name, {}) | {field: value}
    if not section:
        values[field] = value
    with pytest.raises(UserError) as caught:
        parse_config(values, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: training.wavefront_window is {9 if value == 9 else 2}: ")
    assert mend in str(caught.value) and "; " not in str(caught.value)


def test_several_faults_are_named_at_once() -> None:
    message = refusal(
        {
            "sead": 1,
            "training": {"max_steps": 0, "replay": "full"},
            "optimizer": {"beta1": 1.5},
            "data": {"num_lanes": 8},
        }
    )
    for part in ("sead", "training.max_steps", "training.replay", "optimizer.beta1", "data.path"):
        assert part in message
    assert message.count("; ") >= 4


def test_the_configuration_cannot_be_changed() -> None:
    config = parse_config(MINIMAL, "run.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.training.max_steps = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.d_model = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("2.5e-2", 2.5e-2), ("1.0e-3", 1e-3), ("0.01", 0.01)]
)
def test_numbers_with_exponents_are_numbers(tmp_path: Path, written: str, value: float) -> None:
    """YAML 1.1 reads 1e-3 as text."""
    path = write(tmp_path / "c.yaml", f"run_dir: r\ndata: {{path: d}}\noptimizer: {{learning_rate: {written}}}\n")
    assert load_config(path).optimizer.learning_rate == value
    assert load_config(path, ["--optimizer.learning_rate", written]).optimizer.learning_rate == value


def test_numbers_with_exponents_are_numbers_where_nothing_converts_them(tmp_path: Path) -> None:
    """Whole numbers, and keys that are handed on to DeepSpeed as they are."""
    path = write(
        tmp_path / "c.yaml",
        "run_dir: r\ndata: {path: d}\ntraining: {max_steps: 2e3}\n"
        "deepspeed: {zero_optimization: {reduce_bucket_size: 5e8}}\n",
    )
    config = load_config(path)
    assert config.training.max_steps == 2000
    assert config.deepspeed["zero_optimization"]["reduce_bucket_size"] == 5e8


def test_extends_reads_bases_in_order_and_puts_its_own_values_over_them(tmp_path: Path) -> None:
    write(tmp_path / "model" / "a.yaml", {"model": {"d_model": 64, "num_heads": 2}, "seed": 1})
    write(tmp_path / "b.yaml", {"extends": ["model/a.yaml"], "model": {"d_model": 128}, "seed": 2})
    write(tmp_path / "c.yaml", {"seed": 3})
    path = write(tmp_path / "run" / "d.yaml", {**MINIMAL, "extends": ["../b.yaml", "../c.yaml"], "model": {"d_ff": 99}})
    config = load_config(path)
    assert (config.model.d_model, config.model.num_heads, config.model.d_ff, config.seed) == (128, 2, 99, 3)


def test_overrides_go_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", {**MINIMAL, "model": {"d_model": 64}})
    config = load_config(
        path, ["--model.num_heads=2", "--training.max_steps", "500", "--data.audit", "true", "--seed", "7"]
    )
    assert (config.model.d_model, config.model.num_heads) == (64, 2)
    assert (config.training.max_steps, config.data.audit, config.seed) == (500, True, 7)
    assert load_config(path, ["--data.eval_path", "null"]).data.eval_path is None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["seed", "3"], "'seed' is not a setting: write --section.field VALUE"),
        (["--"], "'--' is not a setting"),
        (["--seed"], "--seed has no value"),
        (["--seed", "[1"], "--seed '[1': is not YAML (while parsing a flow sequence"),
        (["--trainig.max_steps", "3"], "--trainig.max_steps: trainig: unknown key, did you mean training?"),
        (["--training.max_stepz", "3"], "--training.max_stepz: unknown key, did you mean max_steps?"),
        (["--lr", "3"], "--lr: unknown key, did you mean --optimizer.learning_rate?"),
        (["--training.max_steps", "0"], "--training.max_steps: is 0: input should be greater"),
        (["--model.family", "none"], "--model.family: there is no family 'none'"),
        (["--deepspeed", "{a: 1, a: 2}"], "--deepspeed '{a: 1, a: 2}': a is there twice"),
    ],
)
def test_faulty_overrides(tmp_path: Path, words: list[str], part: str) -> None:
    path = write(tmp_path / "c.yaml", MINIMAL)
    with pytest.raises(UserError) as caught:
        load_config(path, words)
    assert part in str(caught.value) and str(path) not in str(caught.value)


def test_a_fault_of_several_settings_names_the_file_and_those_of_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", {**MINIMAL, "optimizer": {"warmup_steps": 20}, "model": {"d_model": 32}})
    with pytest.raises(UserError) as caught:
        load_config(path, ["--training.max_steps", "10", "--seed", "3"])
    assert str(caught.value).startswith(f"{path} with --training.max_steps 10: optimizer.warmup_steps is 20")


def test_every_fault_names_where_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {"guards": {"skip_window": 0}, "training": {"max_steps": 0}})
    path = write(tmp_path / "c.yaml", {**MINIMAL, "extends": ["base.yaml"], "sead": 1, "lr": 2})
    with pytest.raises(UserError) as caught:
        load_config(path, ["--training.max_steps", "-1"])
    said = str(caught.value).split("; ")
    assert f"{tmp_path / 'base.yaml'}: guards.skip_window: is 0: input should be greater than or equal to 1" in said
    assert "--training.max_steps: is -1: input should be greater than or equal to 1" in said
    assert f"{path}: lr: unknown key, did you mean optimizer.learning_rate?" in said
    assert "sead: unknown key, did you mean seed?" in said, "the file is named once"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n", "c.yaml: holds a list, not sections: start it with 'run_dir: ...'"),
        ("", "c.yaml: is empty: start it with 'run_dir: ...'"),
        ("# nothing yet\n", "c.yaml: is empty"),
        ("extends: {a: base.yaml}\n", "make it a list of YAML files"),
        ("extends: none.yaml\n", "none.yaml: cannot be read (No such file or directory)"),
        ("extends: [none.yaml]\n", "none.yaml: cannot be read (No such file or directory)"),
        ("extends: [c.yaml]\n", "extends this file in turn"),
    ],
)
def test_faulty_files(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert part in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_config("nowhere.yaml")


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = parse_config({**MINIMAL, "model": {"dropout": 0.1}, "optimizer": {"learning_rate": 3e-5}}, "x")
    (tmp_path / "config.yaml").write_text(config.as_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def test_the_description_of_the_settings_is_true() -> None:
    """Every setting is described once, with the default that it really has."""
    lines = describe_fields().splitlines()
    described = {}
    for line in lines:
        match = re.fullmatch(r"\s+--(\S+)\s+(.*) \(default: (.*)\)", line)
        assert match and len(match[2].split()) >= 2, line
        described[match[1]] = match[3]
    real = leaves(parse_config(MINIMAL, "x").values())
    assert described.keys() == real.keys() and len(lines) == len(real)
    for name, value in real.items():
        expected = "empty" if value == [] else json.dumps(value)
        expected = "none, required" if name in ("run_dir", "data.path") else expected
        assert described[name] == expected, name


def test_every_section_refuses_unknown_keys() -> None:
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = {"path": "d"} if name == "data" else {}
            assert f"{name}.zzz: unknown key" in refusal({name: {**section, "zzz": 1}})


@pytest.mark.parametrize(("steps", "warmup"), [(3, 0), (10, 1), (500, 50), (1000, 100), (100_000, 100)])
def test_the_default_warm_up_is_a_tenth_of_a_short_run(tmp_path: Path, steps: int, warmup: int) -> None:
    config = parse_config({**MINIMAL, "training": {"max_steps": steps}}, "x")
    assert config.optimizer.warmup_steps == warmup
    (tmp_path / "config.yaml").write_text(config.as_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert parse_config({**MINIMAL, "training": {"max_steps": 200}, "optimizer": {"warmup_steps": 150}}, "x")


def test_every_path_of_the_schema_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where a text is one of several things; and what is saved reads back as the same path, whatever is in it."""
    monkeypatch.setenv("SCRATCH", "/scratch/a$b")
    data = {"path": [{"path": "$SCRATCH/d"}], "eval_path": "${SCRATCH}/e", "cache_dir": "~/c"}
    settings = {"run_dir": "$SCRATCH/r", "init_from": "$SCRATCH/i", "data": data}
    path = write(tmp_path / "c.yaml", settings)
    config = load_config(path)
    assert isinstance(config.data.path, list)
    found = [config.run_dir, config.init_from, config.data.path[0].path, config.data.eval_path, config.data.cache_dir]
    assert found == [*(f"/scratch/a$b/{name}" for name in "ride"), str(Path.home() / "c")]
    (tmp_path / "config.yaml").write_text(config.as_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(path, ["--data.path", "~/d"]).data.path == str(Path.home() / "d")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(UserError, match=r"run_dir: is '\$SCRATCH/r', but the environment variable SCRATCH is not set"):
        load_config(path)
