# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Exports in one file and in many, the card beside them, a run that starts from one, and files that mean harm.

Covers: memformer/checkpoints/exporting.py, memformer/checkpoints/model_card.py, memformer/training/initial_weights.py
"""

import fcntl
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from data_pipeline import UserError
from memformer import load_model
from memformer.checkpoints.exporting import export
from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.training.trainer import train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def make(world: World, root: str) -> None:
    training = {"max_steps": 4, "eval_interval": 4, "eval_segments": 4}
    train(tiny_config(Path(root), "run", training=training, parallel={"zero_stage": 3}))


def start_from(world: World, root: str) -> str:
    """A run from the export, each process with its part of it; then one of another model, and what it is told."""
    config = tiny_config(Path(root), "second", training={"max_steps": 2}, parallel={"tensor": 2})
    train(config.model_copy(update={"init_from": f"{root}/one"}))
    other = tiny_config(Path(root), "third", model={"d_ff": 96})
    with pytest.raises(UserError) as error:
        train(other.model_copy(update={"init_from": f"{root}/one"}))
    return str(error.value)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    small_dataset(root, characters=3_000)
    run_distributed(make, 2, str(root))
    export(root / "run", root / "one")
    return root


def test_many_files_hold_the_same_model_as_one(exported: Path, tmp_path: Path) -> None:
    result = export(exported / "run", tmp_path / "many", max_file_bytes=40_000)
    assert len(result["files"]) > 2 and result["largest_loss_difference"] < 1e-5
    assert not (tmp_path / "many" / "model.safetensors").exists()
    one, many = load_model(exported / "one").state_dict(), load_model(tmp_path / "many").state_dict()
    assert one.keys() == many.keys() and all(torch.equal(one[key], many[key]) for key in one)


def test_bf16_and_unverified(exported: Path, tmp_path: Path) -> None:
    result = export(exported / "run", tmp_path / "half", "bf16", verify=False)
    assert result["largest_loss_difference"] is None
    full, half = load_model(exported / "one").state_dict(), load_model(tmp_path / "half").state_dict()
    assert all(torch.equal(full[key].bfloat16(), half[key]) for key in full)


def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    """Played by a limit on the size of files, which fails where a disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"--out .*full: the export of .*broke off \(File too large\).*make room"):
            export(exported / "run", tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_two_exports_to_one_place_do_not_mix(exported: Path, tmp_path: Path) -> None:
    """The second is refused while the first writes; what a killed one has left is no hindrance."""
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"--out .*model: another export is writing there: wait for its end"):
        export(exported / "run", tmp_path / "model", verify=False)
    assert (left / "model.safetensors").read_bytes() == b"half", "the other's files are left alone"
    os.close(held)
    export(exported / "run", tmp_path / "model", verify=False)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    load_model(tmp_path / "model")


def test_the_card_has_the_runs_own_numbers(exported: Path) -> None:
    card = (exported / "one" / "README.md").read_text()
    loss = metrics_of(RunDirectory(exported / "run"))[-1]["loss"]
    assert f"| training loss at this step | {loss:.4f} nats a token |" in card
    assert "| optimizer steps | 4 |" in card and "held-out perplexity (step 4)" in card
    assert "losses within" in card


def test_a_run_starts_from_an_export(exported: Path) -> None:
    """Its first loss is that of a trained model, not of a random one; another model is refused by its field."""
    told = run_distributed(start_from, 2, str(exported))[0]
    assert "init_from: model.d_ff is 64 in" in told and "set it to 64" in told
    first = metrics_of(RunDirectory(exported / "second"))[0]["loss"]
    rows = metrics_of(RunDirectory(exported / "run"))
    assert first < rows[0]["loss"] - 0.5 * (rows[0]["loss"] - rows[-1]["loss"])


def test_an_index_cannot_lead_out_of_the_directory(exported: Path, tmp_path: Path) -> None:
    model = tmp_path / "hostile"
    export(exported / "run", model, max_file_bytes=40_000)
    shutil.copyfile(exported / "one" / "model.safetensors", tmp_path / "outside.safetensors")
    index = json.loads((model / "model.safetensors.index.json").read_text())
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index["weight_map"]["head.weight"] = name
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="outside the directory"):
            load_model(model)
