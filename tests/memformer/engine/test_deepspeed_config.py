# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's JSON as generated from a run's configuration."""

import importlib
import json
from typing import Any

import pytest
from torch import nn

from data_pipeline import UserError
from memformer.config.schema import parse_config
from memformer.engine.deepspeed_config import deepspeed_config, telling_unfit_values
from memformer.models.scoring import Head
from memformer.parallel.tensor.modules import RowParallelLinear


def generated(stage: int = 1, precision: str = "fp32", **sections: Any) -> dict[str, Any]:
    values = {"run_dir": "r", "data": {"path": "d"}, "parallel": {"zero_stage": stage}} | sections
    return deepspeed_config(parse_config(values, "test"), world_size=4, precision=precision)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_and_one_sample_a_process(stage: int) -> None:
    made = generated(stage)
    assert made["zero_optimization"]["stage"] == stage
    assert made["train_batch_size"] == 4
    assert made["train_micro_batch_size_per_gpu"] == made["gradient_accumulation_steps"] == 1
    json.dumps(made)


def test_clipping_is_ours_at_stage_0() -> None:
    assert generated(0, optimizer={"gradient_clipping": 0.7})["gradient_clipping"] == 0
    assert generated(1, optimizer={"gradient_clipping": 0.7})["gradient_clipping"] == 0.7


def test_bf16_is_autocast() -> None:
    assert "torch_autocast" not in generated()
    made = generated(precision="bf16")["torch_autocast"]
    assert "bf16" not in generated(precision="bf16")
    assert made["enabled"] is True and made["dtype"] == "bfloat16"
    names = (name.rpartition(".") for name in made["lower_precision_safe_modules"])
    classes = [getattr(importlib.import_module(module), own) for module, _, own in names]
    assert classes == [nn.Linear, Head, RowParallelLinear]


def test_own_keys_go_over_the_generated_ones_and_leave_the_rest() -> None:
    over = {"zero_optimization": {"overlap_comm": False}, "wall_clock_breakdown": True}
    made = generated(3, deepspeed=over)
    assert made["zero_optimization"] == generated(3)["zero_optimization"] | {"overlap_comm": False}
    assert made["wall_clock_breakdown"] is True
    assert "overlap_comm" not in generated(3)["zero_optimization"]


def test_offload_is_to_host_memory() -> None:
    """With torch's AdamW: DeepSpeed must not insist on its own, which it compiles."""
    made = generated(parallel={"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"})
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert made["zero_force_ds_cpu_optimizer"] is False
    assert not {"offload_optimizer", "offload_param"} & set(generated(3)["zero_optimization"])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"parallel": {"zero_stage": 0, "offload_optimizer": "cpu"}}, "set zero_stage to 1, 2 or 3"),
        ({"parallel": {"zero_stage": 2, "offload_optimizer": "cpu", "offload_parameters": "cpu"}}, "zero_stage to 3"),
        ({"parallel": {"zero_stage": 3, "offload_parameters": "cpu"}}, "set offload_optimizer to cpu"),
        ({"parallel": {"offload_optimizer": "nvme"}}, "parallel.offload_optimizer: is 'nvme'"),
        ({"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}}, "cannot be put into"),
    ],
)
def test_offload_that_does_not_fit_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_config({"run_dir": "r", "data": {"path": "d"}, **sections}, "test")


def test_a_value_that_deepspeed_refuses_is_one_line() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    own = {"zero_optimization": {"reduce_bucket_size": 0}}
    for keys, expected in (
        (own, UserError),
        ({}, ValueError),
    ):  # not of the run's own keys: none of the user's business
        config = parse_config({"run_dir": "r", "data": {"path": "d"}, "deepspeed": keys}, "test")
        with pytest.raises(expected, match="reduce_bucket_size") as caught, telling_unfit_values(config):
            DeepSpeedZeroConfig(reduce_bucket_size=0)
        assert isinstance(caught.value, UserError) is bool(keys)
