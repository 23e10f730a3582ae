# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which keys of DeepSpeed's JSON a run may set beside its own settings; any other would do nothing, or undo them.

DeepSpeed itself leaves an unknown key at the top without a word, and what it knows cannot be asked without importing
torch. So its keys stand here, and a test holds them to the DeepSpeed that is installed.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

_WRITTEN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
"""What a key's value may be, in words. DeepSpeed takes the text "maybe" for true where it has no model of a section."""


def _keys(kind: type, words: str) -> dict[str, type]:
    return dict.fromkeys(words.split(), kind)


def _flags(words: str) -> dict[str, type]:
    return _keys(bool, words)


_OFFLOAD = _keys(int, "buffer_count") | _flags("pin_memory")

TAKEN: dict[str, Any] = {
    **_flags("dump_state disable_python_gc disable_allgather prescale_gradients wall_clock_breakdown memory_breakdown"),
    **_keys(int, "steps_per_print"),
    **_keys(float, "gradient_predivide_factor"),
    **_keys(str, "communication_data_type log_level"),
    "torch_autocast": _keys(list, "lower_precision_safe_modules"),
    "comms_logger": _flags("enabled prof_all verbose debug") | _keys(list, "prof_ops"),
    "flops_profiler": {
        **_flags("enabled detailed"),
        **_keys(float, "recompute_fwd_factor"),
        **_keys(int, "profile_step module_depth top_modules"),
        **_keys(str, "output_file"),
    },
    "timers": {"throughput": _flags("enabled synchronized")},
    "tensorboard": _flags("enabled") | _keys(str, "output_path job_name"),
    "csv_monitor": _flags("enabled") | _keys(str, "output_path job_name"),
    "wandb": _flags("enabled") | _keys(str, "group team project"),
    "comet": {
        **_flags("enabled online"),
        **_keys(int, "samples_log_interval"),
        **_keys(str, "project workspace api_key experiment_name experiment_key mode"),
    },
    "zero_optimization": {
        **_flags(
            "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm "
            "load_from_fp32_weights elastic_checkpoint ignore_unused_parameters parameter_alignment "
            "zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients "
            "memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings "
            "enable_sanity_checks save_muon_momentum_buffer_in_memory stage3_gather_fp16_weights_on_model_save"
        ),
        **_keys(int, "reduce_bucket_size allgather_bucket_size sub_group_size zero_hpz_partition_size"),
        **{
            each: kind
            for kind, names in (
                (int, "prefetch_bucket_size param_persistence_threshold model_persistence_threshold"),
                (int, "max_live_parameters max_reuse_distance module_granularity_threshold"),
                (bool, "gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params allgather_sequential"),
            )
            for name in names.split()
            for each in (name, f"stage3_{name}")
        },
        "leaf_module": _keys(list, "classes names name_suffixes"),
        "offload_optimizer": {
            **_OFFLOAD,
            **_flags("pipeline_read pipeline_write fast_init super_offload"),
            **_keys(float, "ratio cpuadam_cores_perc"),
        },
        "offload_param": _OFFLOAD | _keys(int, "buffer_size max_in_cpu"),
    },
}
"""Keys that go over the generated ones: a section with its keys, or what a key's value is."""

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
        elif isinstance(kind := taken[key], type):
            if value is not None and not _is(value, kind):
                yield here, f"is {json.dumps(value, default=str)}: write {_WRITTEN[kind]}"
        elif isinstance(value, Mapping):
            yield from unfit(value, kind, here)
        else:
            yield here, f"is {json.dumps(value, default=str)}: it is a section, write its keys under it"


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; 5e8 is a whole number, true is none."""
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(value, int | float) and (kind is float or value % 1 == 0)
    return isinstance(value, kind)
