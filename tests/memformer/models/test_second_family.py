# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A family that the system does not know is trained, saved, resumed, exported and evaluated by its commands.

The commands find it as they would find that of an installed package: by an entry point. Tolerance between ZeRO stages
and one process: 1e-4 nats after a few steps of AdamW in float32 (seen: under 1e-5; sums run in another order).

Covers: memformer/models/configuration.py, memformer/models/family_record.py, memformer/models/protocol.py,
memformer/models/registry.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from memformer import load_model
from memformer.models import registry
from memformer.models.sizes import count_parameters
from memformer.replay import Carry, Segment, bptt_backward, memory_replay_backward
from memformer.run.directory import TIMING_FIELDS
from tests import ROOT
from tests.books import small_dataset
from tests.memformer.examples import ragged_rollout
from tests.memformer.models.second_family import FAMILY, RecurrentConfig

STEPS, SAVED = 4, 2
SIZES = {"vocab_size": 31, "start_token_id": 30}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known in this process for the time of a test, as by an entry point."""
    monkeypatch.setitem(registry._registered, FAMILY.name, FAMILY)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a configuration, and a folder of packages in which one names the family."""
    root = tmp_path_factory.mktemp("second")
    small_dataset(root)
    settings = {
        "run_dir": str(root / "unused"),
        "device": "cpu",
        "tensorboard": False,
        "model": {"family": FAMILY.name, "width": 32, "dropout": 0.1},
        "data": {"path": str(root / "data"), "num_lanes": 4, "segment_length": 16, "num_segments": 3},
        "training": {"max_steps": STEPS, "eval_interval": STEPS, "eval_segments": 4, "diagnostics_interval": 1},
        "optimizer": {"warmup_steps": 1, "epsilon": 1e-3},
        "checkpoint": {"interval": SAVED},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    package = root / "packages" / "recurrent_decoder-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: recurrent-decoder\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\n{FAMILY.name} = tests.memformer.models.second_family:FAMILY\n"
    )
    return root


def memformer(workshop: Path, *words: str, code: int = 0) -> str:
    """Runs a command; returns what it printed, or its error where another exit code than 0 is expected."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{workshop / 'packages'}:{ROOT}"}
    command = [sys.executable, "-m", "launch.cli", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def train(workshop: Path, name: str, nproc: int, *settings: str) -> Path:
    run = workshop / name
    config = str(workshop / "config.yaml")
    memformer(workshop, "launch", "local", config, "--nproc", str(nproc), "--run_dir", str(run), *settings)
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


@pytest.fixture(scope="module")
def runs(workshop: Path) -> dict[int, Path]:
    """By ZeRO stage, a finished run of two processes."""
    return {stage: train(workshop, f"zero-{stage}", 2, "--parallel.zero_stage", str(stage)) for stage in (1, 3)}


def test_replay_equals_bptt() -> None:
    """In float64, to rounding, with resets, ragged and idle lanes and dropout."""
    gradients = []
    for algorithm in (bptt_backward, memory_replay_backward):
        torch.manual_seed(0)
        model = FAMILY.build(RecurrentConfig(dropout=0.1, **SIZES)).double()
        rollout = ragged_rollout()
        carry = Carry.empty(model.initial_memory(len(rollout.tokens)), rollout.tokens.shape[2])
        algorithm(model, rollout, carry, denominator=17.0, seed=3)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-12


def test_the_reader_gives_the_logits_of_training() -> None:
    torch.manual_seed(0)
    model = FAMILY.build(RecurrentConfig(segment_length=4, **SIZES)).eval()
    tokens = torch.arange(12)[None] % 30
    reader = FAMILY.reader(model)
    found = []
    for token in tokens[0]:
        found.append(-torch.log_softmax(reader.logits[0], -1)[token])
        reader.read(token[None, None])
    memory, full, never = model.initial_memory(1), torch.tensor([4]), torch.tensor([False])
    expected = []
    for part in tokens.split(4, dim=1):
        losses, memory = model.losses(Segment(part, full, part, full, never), memory)
        expected.append(losses[0])
    assert torch.allclose(torch.stack(found), torch.cat(expected), atol=1e-5)


def test_parameters_are_counted_without_a_formula() -> None:
    config = RecurrentConfig(**SIZES)
    assert count_parameters(config) == sum(parameter.numel() for parameter in FAMILY.build(config).parameters())


@pytest.mark.slow
@pytest.mark.distributed
class TestByCommand:
    """Trained by `memformer launch local`, which starts `memformer train` twice."""

    def test_zero_stages_train_alike(self, workshop: Path, runs: dict[int, Path]) -> None:
        """And like one process with full back-propagation through time; without dropout, whose masks differ."""
        plain = [
            train(workshop, f"plain-{stage}", nproc, "--parallel.zero_stage", stage, "--training.replay", replay)
            for stage, nproc, replay in (("0", 1, "bptt"), ("1", 1, "mrbp"))
        ]
        same_masks = [[row["loss"] for row in metrics(run)] for run in plain]
        assert same_masks[0] == pytest.approx(same_masks[1], abs=1e-4)
        losses = [[row["loss"] for row in metrics(run)] for run in runs.values()]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        assert losses[0][-1] < losses[0][0]

    @pytest.mark.parametrize("stage", [1, 3])
    def test_a_resumed_run_is_equal_to_the_last_bit(self, workshop: Path, runs: dict[int, Path], stage: int) -> None:
        again = workshop / f"again-{stage}"
        shutil.copytree(runs[stage], again)
        shutil.rmtree(again / "checkpoints" / f"step-{STEPS:08d}")
        train(workshop, again.name, 2, "--parallel.zero_stage", str(stage))
        events = [json.loads(line) for line in (again / "events.jsonl").read_text().splitlines()]
        assert [event["step"] for event in events if event["event"] == "resume"] == [SAVED]
        assert metrics(again) == metrics(runs[stage])

    @pytest.mark.parametrize("stage", [1, 3])
    def test_exports_are_loaded_evaluated_and_continued(
        self, workshop: Path, runs: dict[int, Path], stage: int
    ) -> None:
        out = workshop / f"export-{stage}"
        memformer(workshop, "export", str(runs[stage]), "--out", str(out))
        description = json.loads((out / "config.json").read_text())
        assert (description["architecture"], description["model"]["num_layers"]) == ("RecurrentDecoder", 2)
        assert "RecurrentDecoder" in (out / "README.md").read_text()
        model = load_model(out)
        assert model.head.weight is model.embedding.weight
        data = str(workshop / "data")
        told = memformer(workshop, "evaluate", str(out), "--data", data, "--max-segments", "4", "--json")
        report = json.loads(told.splitlines()[-1])
        assert report["with_memory"]["loss"] != report["memory_reset"]["loss"]
        assert memformer(workshop, "generate", str(out), "--prompt", "It", "--max-new-tokens", "20").strip()
        refused = memformer(
            workshop,
            "inspect-memory",
            str(out),
            "--text-file",
            str(ROOT / "README.md"),
            "--out",
            str(out / "m"),
            code=2,
        )
        assert refused.count("\n") == 1
        assert f"inspect-memory is not built for family {FAMILY.name}" in refused

    @pytest.mark.parametrize("axis", ["tensor", "pipeline"])
    def test_what_is_not_built_is_refused_in_one_line(self, workshop: Path, axis: str) -> None:
        refused = memformer(workshop, "train", str(workshop / "config.yaml"), f"--parallel.{axis}", "2", code=2)
        assert refused.count("\n") == 1
        assert f"parallel.{axis}: not built for family {FAMILY.name}: set it to 1" in refused

    def test_a_checkpoint_of_another_family_is_refused(self, workshop: Path, runs: dict[int, Path]) -> None:
        settings = ["--run_dir", str(runs[1]), "--model", "{family: memformer}"]
        refused = memformer(workshop, "train", str(workshop / "config.yaml"), *settings, code=2)
        assert f"model.family is {FAMILY.name} there and memformer here" in refused

    def test_an_unknown_family_is_refused(self, workshop: Path) -> None:
        refused = memformer(workshop, "train", str(workshop / "config.yaml"), "--model.family", "mamformer", code=2)
        assert refused.count("\n") == 1 and "model.family: there is no family 'mamformer'; choose from" in refused
