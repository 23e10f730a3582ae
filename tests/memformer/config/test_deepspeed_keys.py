# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The section `deepspeed`: what may be set there, held to the DeepSpeed that is installed."""

import typing
from collections.abc import Mapping
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.config.deepspeed_keys import SET_HERE, TAKEN
from memformer.config.schema import parse_config

REFUSED = {
    "{train_batch_size: 4}": ["deepspeed.train_batch_size: is this system's own", "data.num_lanes"],
    "{gradient_accumulation_steps: 4}": ["training.lanes_per_micro_batch"],
    "{optimizer: {type: AdamW, params: {lr: 1.0e-9}}}": [
        "deepspeed.optimizer: is this system's own",
        "section optimizer",
    ],
    "{scheduler: {type: WarmupLR}}": ["set optimizer.schedule"],
    "{fp16: {enabled: true}, bf16: {enabled: true}}": ["deepspeed.fp16", "deepspeed.bf16", "set precision"],
    "{gradient_clipping: 0.5}": ["set optimizer.gradient_clipping"],
    "{gradient_cliping: 0.5}": [
        "no such key, did you mean gradient_clipping? That is this system's own: set optimizer."
    ],
    "{zero_optimization: {stage: 2}}": [
        "deepspeed.zero_optimization.stage: is this system's own: set parallel.zero_stage"
    ],
    "{zero_optimization: {reduce_bucket_sise: 1}}": [
        "reduce_bucket_sise: DeepSpeed has no such key",
        "reduce_bucket_size?",
    ],
    "{zero_optimization: {leaf_module: {klasses: []}}}": ["deepspeed.zero_optimization.leaf_module.klasses"],
    "{zero_optimization: {offload_param: {device: nvme}}}": [
        "parallel.offload_parameters",
        "cannot be put into checkpoints",
    ],
    "{zero_optimization: {overlap_comm: auto}}": ["deepspeed.zero_optimization.overlap_comm: is auto", "leave it out"],
    "{zero_optimization: {round_robin_gradients: true}}": ["checkpoints need the parameters in their own order"],
    "{train_micro_batch_size_per_gpu: auto}": ["deepspeed.train_micro_batch_size_per_gpu: is this system's own"],
    "{zero_optimization: 3}": ["deepspeed.zero_optimization: is 3: it is a section"],
    "{wandb: true}": ["deepspeed.wandb: is true: it is a section"],
    "{comms_loger: {enabled: true}}": ["did you mean comms_logger?"],
    "{prescale_gradients: maybe}": ['deepspeed.prescale_gradients: is "maybe": write true or false'],
    "{steps_per_print: true}": ["deepspeed.steps_per_print: is true: write a whole number"],
    "{gradient_predivide_factor: [2]}": ["deepspeed.gradient_predivide_factor: is [2]: write a number"],
    "{communication_data_type: 16}": ["deepspeed.communication_data_type: is 16: write text"],
    "{comms_logger: {prof_ops: all_reduce}}": ["deepspeed.comms_logger.prof_ops", "write a list"],
    "{zero_optimization: {reduce_bucket_size: 0.5}}": ["reduce_bucket_size: is 0.5: write a whole number"],
    "{elasticity: {enabled: true}}": ["deepspeed.elasticity: DeepSpeed has no such key"],
}


@pytest.mark.parametrize("keys", REFUSED)
def test_what_is_set_elsewhere_or_unknown_is_refused_by_name(keys: str) -> None:
    import yaml

    with pytest.raises(UserError) as caught:
        parse_config({"run_dir": "r", "data": {"path": "d"}, "deepspeed": yaml.safe_load(keys)}, "c.yaml")
    said = str(caught.value)
    assert said.startswith("c.yaml: deepspeed.")
    for part in REFUSED[keys]:
        assert part in said


def test_every_fault_is_told_with_those_of_the_schema() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"run_dir": "r", "data": {"path": "d"}, "seed": -1, "deepspeed": {"a": 1, "amp": {}}}, "c.yaml")
    said = str(caught.value)
    assert "deepspeed.a:" in said and "deepspeed.amp:" in said and "seed: is -1" in said


def known_to_deepspeed() -> dict[str, dict[str, Any]]:
    """Section -> the keys that the installed DeepSpeed's own models take in it, and their annotations."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models = {
        "comms_logger": CommsLoggerConfig,
        "comet": CometConfig,
        "csv_monitor": CSVConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    }
    return {
        place: {
            name: field.annotation for key, field in model.model_fields.items() for name in (key, field.alias or key)
        }
        for place, model in models.items()
    }


def section(place: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = TAKEN
    for part in place.split("."):
        found = found[part]
    return found


def test_the_keys_of_each_section_are_those_of_the_installed_deepspeed() -> None:
    for place, known in known_to_deepspeed().items():
        own = {name.removeprefix(f"{place}.") for name in SET_HERE if name.startswith(f"{place}.")}
        ours = set(section(place)) | {name for name in own if "." not in name}
        assert ours == set(known), place


def test_what_a_value_may_be_is_what_the_installed_deepspeed_takes() -> None:
    for place, known in known_to_deepspeed().items():
        for name, kind in section(place).items():
            annotation = known[name]
            kinds = [each for each in typing.get_args(annotation) or [annotation] if each is not type(None)]
            if isinstance(kind, type):
                plain = list if typing.get_origin(annotation) is list else kinds[0]
                assert kind is plain, f"{place}.{name}"


def test_the_keys_at_the_top_are_read_by_the_installed_deepspeed() -> None:
    """What DeepSpeed has no model for stands in its constants, by the same names."""
    from deepspeed.monitor import config as monitor
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime import constants
    from deepspeed.utils import config as timers

    words = {value for module in (constants, profiling) for value in vars(module).values() if isinstance(value, str)}
    words |= set(monitor.DeepSpeedMonitorConfig.model_fields) | {"zero_optimization", "comms_logger"}
    assert hasattr(timers, "get_timers_config")
    assert set(TAKEN) - words == {"timers"}
    assert set(section("flops_profiler")) <= words and set(section("torch_autocast")) <= words


def test_what_may_be_set_is_not_refused() -> None:
    keys = {
        "wall_clock_breakdown": True,
        "steps_per_print": None,
        "gradient_predivide_factor": 2,
        "zero_optimization": {"stage3_prefetch_bucket_size": 5e7, "overlap_comm": True},
    }
    assert parse_config({"run_dir": "r", "data": {"path": "d"}, "deepspeed": keys}, "c.yaml").deepspeed == keys
