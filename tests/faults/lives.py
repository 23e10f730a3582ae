# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tiny runs to be killed, damaged and moved, and what is counted afterwards."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from memformer.config import Config, parse_config
from memformer.run_directory import TIMING_FIELDS, RunDirectory

MODEL = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 64,
    "num_memory_slots": 4,
}


def tiny_config(root: Path, name: str, **sections: dict[str, Any]) -> Config:
    """A run of a few thousand parameters on the data set in root/data; `sections` go over the defaults."""
    values: dict[str, Any] = {
        "run_dir": str(root / name),
        "device": "cpu",
        "tensorboard": False,
        "model": MODEL,
        "data": {
            "path": str(root / "data"),
            "num_lanes": 4,
            "segment_length": 32,
            "num_segments": 2,
            "audit": True,
        },
        "training": {"max_steps": 8, "eval_interval": 0, "diagnostics_interval": 0},
        "optimizer": {"warmup_steps": 2, "schedule": "constant", "epsilon": 1e-3},
        "checkpoint": {"interval": 2},
    }
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    return parse_config(values, name)


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine's speed."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


def events_of(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    """The events of one kind, in order."""
    rows = [json.loads(line) for line in run.events.read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def audit_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Every segment that was trained on, in the order of steps."""
    rows = [json.loads(line) for path in run.audit.glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["step"], row["segment"], row["lane"]))


def assert_every_token_once(run: RunDirectory) -> None:
    """Each reading of a document goes from its start without a gap or a repetition; nothing else was read."""
    at: dict[tuple[int, int], int] = defaultdict(int)
    tokens = 0
    for row in audit_of(run):
        key = (row["epoch"], row["document"])
        assert row["start"] == at[key], f"{row}: tokens {at[key]} .. were next"
        at[key] += row["length"]
        tokens += row["length"]
    assert tokens == metrics_of(run)[-1]["tokens"]
