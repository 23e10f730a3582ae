# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A family that the system does not know is trained, saved, resumed, exported and evaluated by its commands.

The commands find it as they would find that of an installed package: by an entry point. Tolerances:
tests/memformer/models/family_runs.py.

Covers: memformer/models/configuration.py, memformer/models/family_record.py, memformer/models/protocol.py,
memformer/models/registry.py
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launch.cli import main
from memformer import load_model
from memformer.models import registry
from memformer.models.family_record import Family
from memformer.models.sizes import count_parameters
from memformer.processes.group import World
from memformer.replay import Carry, Segment, bptt_backward, memory_replay_backward
from tests import ROOT
from tests.books import TINY_MODEL, small_dataset
from tests.distributed.processes import run_distributed
from tests.memformer.examples import ragged_rollout
from tests.memformer.models import family_runs
from tests.memformer.models.family_runs import (
    assert_alike,
    assert_resumed,
    break_off,
    compared,
    metrics,
    run_settings,
)
from tests.memformer.models.second_family import FAMILY, RecurrentConfig

SIZES = {"vocab_size": 31, "start_token_id": 30}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known in this process for the time of a test, as by an entry point."""
    registry.family(registry.DEFAULT)  # which is registered once, before the copy
    monkeypatch.setattr(registry, "_registered", {**registry._registered, FAMILY.name: FAMILY})


def test_the_page_of_families_shows_the_record_as_it_is() -> None:
    shown = re.search(r"^Family\((.*?)\)$", (ROOT / "docs" / "families.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    fields = [
        each.name if each.default is dataclasses.MISSING else f"{each.name}={each.default}"
        for each in dataclasses.fields(Family)
    ]
    assert re.split(r",\s+", shown[1]) == fields


def settings(root: Path, name: str, zero_stage: int, **model: Any) -> dict[str, Any]:
    """A run as its YAML file has it."""
    return run_settings(root, name, zero_stage, {"family": FAMILY.name, "width": 32, "dropout": 0.1} | model)


def life(world: World, *runs: dict[str, Any]) -> list[int]:
    """What one process of some runs does where the family is installed."""
    registry.register(FAMILY)
    return family_runs.life(world, *runs)


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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set and the runs lie."""
    made = tmp_path_factory.mktemp("second")
    small_dataset(made)
    return made


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[int, Path]:
    """By ZeRO stage, a finished run of two processes: the first by its command, in an installation that has the family.

    An installation is a folder of packages, one of which names the family by an entry point.
    """
    package = root / "packages" / "recurrent_decoder-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: recurrent-decoder\nVersion: 1.0\n")
    point = f"{FAMILY.name} = tests.memformer.models.second_family:FAMILY"
    (package / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{point}\n")
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(settings(root, "zero-1", 1)))
    environment = os.environ | {"PYTHONPATH": f"{root / 'packages'}:{ROOT}"}
    command = [sys.executable, "-m", "launch.cli", "launch", "local", str(config), "--nproc", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_distributed(life, 2, settings(root, "zero-3", 3)) == [[0]] * 2
    return {stage: root / f"zero-{stage}" for stage in (1, 3)}


@pytest.mark.slow
@pytest.mark.distributed
class TestTrained:
    """Two processes under ZeRO 1 and 3."""

    def test_zero_stages_train_alike(self, runs: dict[int, Path]) -> None:
        assert_alike(runs[1], runs[3])
        rows = metrics(runs[1])
        assert rows[-1]["loss"] < rows[0]["loss"]

    def test_two_processes_train_like_one_with_full_back_propagation(self, root: Path, runs: dict[int, Path]) -> None:
        """Without dropout, whose masks depend on the number of processes."""
        plain = compared(settings(root, "plain", 0, dropout=0.0), replay="bptt")
        assert run_distributed(life, 1, plain) == [[0]]
        assert run_distributed(life, 2, compared(settings(root, "spread", 3, dropout=0.0))) == [[0]] * 2
        assert_alike(root / "plain", root / "spread")

    def test_a_resumed_run_is_equal_to_the_last_bit(self, root: Path, runs: dict[int, Path]) -> None:
        """Under each ZeRO stage."""
        for stage, run in runs.items():
            break_off(run, f"again-{stage}")
        assert run_distributed(life, 2, *(settings(root, f"again-{stage}", stage) for stage in runs)) == [[0, 0]] * 2
        for stage, run in runs.items():
            assert_resumed(f"again-{stage}", run)

    @pytest.mark.parametrize("stage", [1, 3])
    def test_exports_are_loaded_evaluated_and_continued(
        self, root: Path, runs: dict[int, Path], stage: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = root / f"export-{stage}"
        assert main(["export", str(runs[stage]), "--out", str(out)]) == 0
        description = json.loads((out / "config.json").read_text())
        assert (description["architecture"], description["model"]["num_layers"]) == ("RecurrentDecoder", 2)
        assert "RecurrentDecoder" in (out / "README.md").read_text()
        model = load_model(out)
        assert model.head.weight is model.embedding.weight
        capsys.readouterr()
        assert not main(["evaluate", str(out), "--data", str(root / "data"), "--max-segments", "4", "--json"])
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["with_memory"]["loss"] != report["memory_reset"]["loss"]
        assert not main(["generate", str(out), "--prompt", "It", "--max-new-tokens", "20"])
        assert capsys.readouterr().out.strip()
        text, pictures = str(ROOT / "README.md"), str(out / "memory")
        assert main(["inspect-memory", str(out), "--text-file", text, "--out", pictures]) == 2
        refused = capsys.readouterr().err
        assert refused.count("\n") == 1
        assert f"inspect-memory is not built for family {FAMILY.name}" in refused

    def test_a_checkpoint_of_another_family_is_refused(self, root: Path, runs: dict[int, Path]) -> None:
        values = settings(root, "zero-1", 1) | {"model": TINY_MODEL}
        with pytest.raises(AssertionError, match=f"model.family is {FAMILY.name} there and memformer here"):
            run_distributed(life, 2, values)


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_what_is_not_built_is_refused_in_one_line(
    tmp_path: Path, axis: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(tmp_path, "run", 1)))
    assert main(["train", str(tmp_path / "config.yaml"), f"--parallel.{axis}", "2"]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert f"parallel.{axis}: not built for family {FAMILY.name}: set it to 1" in refused


def test_an_unknown_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(tmp_path, "run", 1)))
    assert main(["train", str(tmp_path / "config.yaml"), "--model.family", "mamformer"]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and "model.family: there is no family 'mamformer'; choose from" in refused
