# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's JSON, generated from our schema (DeepSpeed's documentation, "DeepSpeed Configuration JSON")."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError

from data_pipeline.errors import UserError
from memformer.config.schema import Config
from memformer.engine.precision import AUTOCAST


def deepspeed_config(config: Config, world_size: int, precision: str) -> dict[str, Any]:
    """The engine's configuration.

    Batches and accumulation are ours (lanes, segments, one reduction a rollout), so DeepSpeed sees one micro-batch of
    one sample a process and no accumulation. The optimizer is handed over as an object.

    Args:
        config: The run.
        world_size: Data-parallel processes.
        precision: fp32, bf16 or fp16 (resolved).
    """
    zero_stage = config.parallel.zero_stage
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage == 3:
        # Every parameter is partitioned, small ones too: what is resident is then what the settings say.
        zero["stage3_param_persistence_threshold"] = 0
        # Its own linear maps, in Python, keep no gathered weight for the backward but gather it again: of use where a
        # segment's weights go with it. Where they stay for the rollout, torch's do in one kernel what these do in two.
        zero["memory_efficient_linear"] = config.parallel.zero3_gather == "segment"
    for section, setting in (
        ("offload_optimizer", config.parallel.offload_optimizer),
        ("offload_param", config.parallel.offload_parameters),
    ):
        if setting == "cpu":
            zero[section] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    generated: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 10**9,
        # Its timer would wait for the device at every segment; a step's time is in metrics.jsonl.
        "timers": {"throughput": {"enabled": False}},
        # At stage 0 the step clips before the engine sees the gradients (see memformer/engine/base.py).
        "gradient_clipping": config.optimizer.gradient_clipping if zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if precision in AUTOCAST:
        # fp32 parameters under autocast rather than 16-bit parameters with an fp32 copy: gradients of all segments
        # accumulate in fp32, and every ZeRO stage uses the same optimizer class.
        generated["torch_autocast"] = {"enabled": True, "dtype": str(AUTOCAST[precision]).removeprefix("torch.")}
        # Whose gradients ZeRO sends in 16 bits; DeepSpeed asks for the very class, so that by default it would send
        # those of the head, and of half the layers under tensor parallelism, in 32.
        generated["torch_autocast"]["lower_precision_safe_modules"] = [
            "torch.nn.Linear",
            "memformer.models.scoring.Head",
            "memformer.parallel.tensor.modules.RowParallelLinear",
        ]
    return _merged(generated, config.deepspeed)


@contextlib.contextmanager
def telling_unfit_values(config: Config) -> Iterator[None]:
    """Within the block DeepSpeed reads the configuration; what it refuses of the run's own keys is told in one line.

    Raises:
        UserError: A value of the section `deepspeed` is not one that DeepSpeed takes.
    """
    from deepspeed.runtime.config import DeepSpeedConfigError

    try:
        yield
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg']}" for each in error.errors())
        raise _unfit(config, "; ".join(faults), error) from None
    except (DeepSpeedConfigError, ValueError, TypeError, AssertionError) as error:
        raise _unfit(config, str(error), error) from None


def _unfit(config: Config, words: str, error: Exception) -> Exception:
    """An error that is not about the run's own keys is none of the user's."""
    return (
        UserError(f"deepspeed: DeepSpeed refuses a value ({words}): mend or leave it out")
        if config.deepspeed
        else error
    )


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
