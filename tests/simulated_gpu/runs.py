# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The runs that are made on a simulated GPU: small, and together through everything that a GPU may have to do."""

from pathlib import Path
from typing import Any

from memformer.config.schema import Config, parse_config

WORLD, LENGTH, SEGMENTS = 8, 16, 3
MEMFORMER = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 64,
    "num_memory_slots": 8,
}
BACKBONE = {
    "family": "backbone",
    "backbone": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "memory": {"d_key": 3, "num_write_tokens": 2},
    "overlap": 2,
}
LOOKED_AT = {
    "checkpoint": {"interval": 1, "background": True},
    "training": {"eval_interval": 2, "eval_segments": 3, "diagnostics_interval": 2},
    "guards": {"straggler_interval": 2, "checksum_interval": 2},
}
CASES: dict[str, dict[str, Any]] = {
    **{f"zero{stage}": {"parallel": {"zero_stage": stage}} for stage in (0, 1, 3)},  # 2 sends what 1 sends
    "looked at": LOOKED_AT,
    "decoder groups": {"training": {"segments_per_decoder_batch": 2}, "model": {"dropout": 0.1}},
    "checkpointing": {"activation_checkpointing": {"mode": "full", "memory_interval": 2}},
    "fp16, lane groups": {"precision": "fp16", "training": {"lanes_per_micro_batch": 1}},
    "tensor": {"parallel": {"tensor": 2}},
    "pipeline": {"parallel": {"pipeline": 2}},
    "backbone": {"model": BACKBONE},
    "asked in between": {"training": {"finish_step_seconds": 0}},
    "backbone, pipeline": {"model": BACKBONE, "parallel": {"pipeline": 2}},
    "muon": {"optimizer": {"name": "muon", "state_dtype": "bfloat16"}},
    "skipped": {"parallel": {"zero_stage": 0}},
    "compiled": {"compile": "auto"},
}

SAVED = ("zero3", "looked at", "pipeline")
"""The cases whose last checkpoint is written, and whose model is asked whether it is finite."""


def config_of(name: str, data: Path, scratch: Path) -> Config:
    """A case as the configuration of two steps by `WORLD` processes.

    Args:
        name: Of the case.
        data: The data set.
        scratch: Where the run's directory is made.
    """
    values: dict[str, Any] = {
        "run_dir": str(scratch / name),
        "precision": "bf16",
        "device": "cuda",
        "tensorboard": False,
        "compile": False,  # a case of its own, since it takes seconds
        "model": MEMFORMER,
        "data": {"path": str(data), "num_lanes": 2 * WORLD, "segment_length": LENGTH, "num_segments": SEGMENTS},
        "optimizer": {"warmup_steps": 0},
        "checkpoint": {"interval": 0},
        "training": {
            "max_steps": 2,
            "eval_interval": 0,
            "diagnostics_interval": 0,
            "memory_pictures_interval": 0,
            "finish_step_seconds": 1e9,
        },
        "guards": {"straggler_interval": 0, "checksum_interval": 0},
    }
    for section, settings in CASES[name].items():
        whole = not isinstance(settings, dict) or "family" in settings
        values[section] = settings if whole else values.get(section, {}) | settings
    return parse_config(values, name)
