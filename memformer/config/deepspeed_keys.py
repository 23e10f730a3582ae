# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which keys of DeepSpeed's JSON a run may set beside its own settings; any other would do nothing, or undo them.

DeepSpeed itself leaves an unknown key at the top without a word, and what it knows cannot be asked without importing
torch. So its keys stand here, and a test holds them to the DeepSpeed that is installed.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

_VALUE = None
"""A key with a value, whatever that is; a dictionary: a section with these keys."""


def _names(words: str) -> dict[str, None]:
    return dict.fromkeys(words.split())


_OFFLOAD = "buffer_count pin_memory"

TAKEN: dict[str, Any] = {
    **_names(
        "steps_per_print dump_state disable_python_gc disable_allgather communication_data_type prescale_gradients "
        "gradient_predivide_factor wall_clock_breakdown memory_breakdown log_level"
    ),
    "torch_autocast": _names("lower_precision_safe_modules"),
    "comms_logger": _names("enabled prof_all prof_ops verbose debug"),
    "flops_profiler": _names("enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file"),
    "timers": {"throughput": _names("enabled synchronized")},
    "tensorboard": _names("enabled output_path job_name"),
    "csv_monitor": _names("enabled output_path job_name"),
    "wandb": _names("enabled group team project"),
    "comet": _names(
        "enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode"
    ),
    "zero_optimization": {
        **_names(
            "contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce "
            "allgather_partitions allgather_bucket_size overlap_comm load_from_fp32_weights elastic_checkpoint "
            "sub_group_size ignore_unused_parameters parameter_alignment zero_hpz_partition_size "
            "zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients "
            "memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings "
            "enable_sanity_checks save_muon_momentum_buffer_in_memory "
            "stage3_gather_fp16_weights_on_model_save"
        ),
        **{
            each: _VALUE
            for name in (
                "prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters "
                "max_reuse_distance gather_16bit_weights_on_model_save module_granularity_threshold "
                "use_all_reduce_for_fetch_params allgather_sequential"
            ).split()
            for each in (name, f"stage3_{name}")
        },
        "leaf_module": _names("classes names name_suffixes"),
        "offload_optimizer": _names(
            f"{_OFFLOAD} pipeline_read pipeline_write fast_init ratio super_offload cpuadam_cores_perc"
        ),
        "offload_param": _names(f"{_OFFLOAD} buffer_size max_in_cpu"),
    },
}
"""Keys that go over the generated ones."""

_BATCHES = "batches are lanes and segments here, set data.num_lanes, data.num_segments, training.lanes_per_micro_batch"
_NVME = "(states on NVMe cannot be put into checkpoints)"
_NONE = "nothing here uses it, leave it out"

SET_HERE: dict[str, str] = {
    "train_batch_size": _BATCHES,
    "train_micro_batch_size_per_gpu": _BATCHES,
    "gradient_accumulation_steps": _BATCHES,
    "managed_gradient_accumulation": _BATCHES,
    "optimizer": "set the section optimizer, at the top of the configuration",
    "scheduler": "set optimizer.schedule, optimizer.warmup_steps and optimizer.final_fraction",
    "gradient_clipping": "set optimizer.gradient_clipping",
    "gradient_allreduce_op": "gradients are averaged over all valid targets, leave it out",
    "fp16": "set precision and the section loss_scale",
    "bf16": "set precision",
    "bfloat16": "set precision",
    "amp": "set precision",
    "data_types": "set precision",
    "torch_autocast.enabled": "set precision",
    "torch_autocast.dtype": "set precision",
    "activation_checkpointing": "set the section activation_checkpointing, at the top of the configuration",
    "checkpoint": "set the section checkpoint, at the top of the configuration",
    "datastates": "set the section checkpoint, at the top of the configuration",
    "pipeline": "set parallel.pipeline",
    "tensor_parallel": "set parallel.tensor",
    "compile": "set compile, at the top of the configuration",
    "data_efficiency": _NONE,
    "dataloader_drop_last": _NONE,
    "hybrid_engine": _NONE,
    "autotuning": _NONE,
    "expert_parallel": _NONE,
    "use_data_before_expert_parallelism": _NONE,
    "seq_parallel_communication_data_type": _NONE,
    "weight_quantization": _NONE,
    "compression_training": _NONE,
    "aio": f"{_NONE} {_NVME}",
    "zero_allow_untested_optimizer": "set optimizer.implementation",
    "zero_force_ds_cpu_optimizer": "set optimizer.implementation",
    "zero_optimization.stage": "set parallel.zero_stage",
    "zero_optimization.zenflow": _NONE,
    "zero_optimization.legacy_stage1": _NONE,
    "zero_optimization.compute_grad_norm": "the norm of every step is in metrics.jsonl, leave it out",
    # DeepSpeed 0.19.8 then says of a parameter's master and states that they lie where another's do.
    "zero_optimization.round_robin_gradients": "checkpoints need the parameters in their own order, leave it out",
    "zero_optimization.cpu_offload": "set parallel.offload_optimizer",
    "zero_optimization.cpu_offload_param": "set parallel.offload_parameters",
    "zero_optimization.cpu_offload_use_pin_memory": "set zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_optimizer.device": f"set parallel.offload_optimizer: cpu or none {_NVME}",
    "zero_optimization.offload_optimizer.nvme_path": f"set parallel.offload_optimizer: cpu or none {_NVME}",
    "zero_optimization.offload_param.device": f"set parallel.offload_parameters: cpu or none {_NVME}",
    "zero_optimization.offload_param.nvme_path": f"set parallel.offload_parameters: cpu or none {_NVME}",
}
"""Keys that DeepSpeed knows and that are this system's own, with the mend."""


def unfit(
    keys: Mapping[str, Any], taken: Mapping[str, Any] = TAKEN, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(place, words) of each key that a run cannot set.

    Args:
        keys: The section `deepspeed`, or one of its sections.
        taken: The keys that may stand there.
        place: Where that is.
    """
    for key, value in keys.items():
        here = (*place, str(key))
        if mend := SET_HERE.get(".".join(here)):
            yield here, f"is this system's own: {mend}"
        elif key not in taken:
            own = [name.rpartition(".")[2] for name in SET_HERE if name.split(".")[:-1] == list(place)]
            if close := difflib.get_close_matches(str(key), [*taken, *own], 1):
                mend = SET_HERE.get(".".join((*place, close[0])))
                words = f"did you mean {close[0]}?" + (f" That is this system's own: {mend}" if mend else "")
            else:
                words = f"those that may be set there are {', '.join(sorted(taken))}"
            yield here, f"DeepSpeed has no such key, {words}"
        elif value == "auto":
            yield here, "is auto: nothing fills that in here, leave it out or write a value"
        elif taken[key] is not _VALUE and isinstance(value, Mapping):
            yield from unfit(value, taken[key], here)
        elif taken[key] is not _VALUE:
            yield here, f"is {json.dumps(value, default=str)}: it is a section, write its keys under it"
