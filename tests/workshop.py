# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A folder as it is after a user's first hour: text, a data set, a configuration, a finished run and its model."""

from pathlib import Path

import yaml

from tests.books import TINY_MODEL, small_dataset
from tests.commands import run_command


def make_workshop(root: Path) -> Path:
    """Makes text/, data/, config.yaml, run/ (one step) and model/ in a folder; returns it."""
    small_dataset(root)
    settings = {
        "run_dir": "run",
        "device": "cpu",
        "tensorboard": False,
        "model": TINY_MODEL,
        "data": {"path": "data", "num_lanes": 2, "segment_length": 32, "num_segments": 2},
        "training": {"max_steps": 1, "eval_interval": 0},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    for line in ("train config.yaml", "export run --out model"):
        done = run_command(*line.split(), folder=root)
        assert done.returncode == 0, done.stderr
    return root
