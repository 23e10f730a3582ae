# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A run and an export that an earlier version wrote (tests/data/README.md) go on as if nothing had moved.

What is read is compared to the last bit. The steps that follow are computed on whatever processor runs the test, whose
sums may be ordered otherwise than on the one that wrote the files: 1e-5 of each figure, where one step of training
changes the loss by 1e-2. On the machine that wrote them they are equal to the last bit.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from memformer import load_model
from memformer.checkpoints.exporting import export
from memformer.run.directory import TIMING_FIELDS
from tests import ROOT

FILES = ROOT / "tests" / "data" / "first_layout"
SAVED, STEPS = 3, 6
SETTINGS = {
    "model": "{num_encoder_layers: 1, num_decoder_layers: 1, d_model: 16, num_heads: 2, d_ff: 32, "
    "num_memory_slots: 3, dropout: 0.1}",
    "data": "{path: DATA, num_lanes: 4, segment_length: 32, num_segments: 3}",
    "training": "{max_steps: 6, eval_interval: 6, eval_segments: 6, diagnostics_interval: 2, "
    "memory_pictures_interval: 0}",
    "optimizer": "{learning_rate: 0.003, warmup_steps: 2}",
    "checkpoint": "{interval: 3}",
}


def rows(path: Path) -> list[dict[str, Any]]:
    """The figures of metrics.jsonl that do not depend on the machine's speed, under today's names."""
    found = []
    for line in path.read_text().splitlines():
        row = {name: value for name, value in json.loads(line).items() if name not in TIMING_FIELDS}
        memory = row.get("memory", {})
        if "self_attention" in memory:
            memory["self_weight"] = memory.pop("self_attention")
        # What is counted has changed, to what a write leaves of a slot; and the first layout had no epochs.
        for name in ("retention", "kept_share", "overwritten_share"):
            memory.pop(name, None)
        row.pop("epochs", None)
        found.append(row)
    return found


def flat(value: Any, name: str = "") -> dict[str, float]:
    """Every number of a row by its place."""
    if isinstance(value, dict):
        return {key: each for inner, part in value.items() for key, each in flat(part, f"{name}/{inner}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), name)
    return {name: value}


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_of_the_first_layout_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FILES / "run", run)
    config = tmp_path / "config.yaml"
    lines = [f"{name}: {value}" for name, value in SETTINGS.items()]
    text = "\n".join(["precision: fp32", "device: cpu", "tensorboard: false", f"run_dir: {run}", *lines])
    config.write_text(text.replace("DATA", str(FILES / "data")) + "\n")
    command = [sys.executable, "-m", "launch.cli", "launch", "local", str(config), "--nproc", "2"]
    # Its configuration does not name the way of forgetting, whose default is another since.
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2 and "memory_forgetting is paper there and off here; set it back" in refused.stderr
    command += ["--model.memory_forgetting", "paper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["changes"]) for event in events if event["event"] == "resume"] == [(SAVED, [])]
    found, expected = rows(run / "metrics.jsonl"), rows(FILES / "metrics.jsonl")
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert [name for name in ours if name != "num_segments"] == list(theirs)  # which came later
        assert flat({name: ours[name] for name in theirs}) == pytest.approx(flat(theirs), rel=1e-5)


def test_a_checkpoint_of_the_first_layout_is_exported_to_the_same_weights(tmp_path: Path) -> None:
    export(FILES / "run" / "checkpoints" / f"step-{SAVED:08d}", tmp_path / "export")
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "export", FILES / "export"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "export" / "tokenizer.json").read_bytes() == (FILES / "export" / "tokenizer.json").read_bytes()
    said, then = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "export", FILES / "export"))
    assert said | then == said, "what it said it says still; sums, and what transformers reads, came later"


def test_an_export_of_the_first_layout_is_loaded() -> None:
    model, weights = load_model(FILES / "export"), load_file(FILES / "export" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert model.head.weight is model.embedding.tokens.weight
