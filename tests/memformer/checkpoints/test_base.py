# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Frozen parameters are shared by checkpoints as links, or not at all."""

import os
from pathlib import Path

import pytest

from memformer.checkpoints import directory as files
from memformer.checkpoints.base import BASE, linked
from memformer.run.directory import RunDirectory

NAMES = [f"{BASE}rank-{rank:05d}.safetensors" for rank in range(2)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A complete checkpoint with two files of frozen parameters."""
    run = RunDirectory(tmp_path / "run")
    temporary = files.temporary_directory(run, 3)
    for name in (*NAMES, "state.json"):
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_text(name)
    return files.publish(run, 3, {name: files.describe_file(temporary, name) for name in (*NAMES, "state.json")})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    (made / BASE).mkdir(parents=True)
    return made


def test_the_same_files_with_their_sums(source: Path, target: Path) -> None:
    entries = linked(source, target)
    assert entries is not None and sorted(entries) == NAMES
    assert entries == {name: files.describe_file(target, name) for name in NAMES}
    assert all((target / name).samefile(source / name) for name in NAMES)


@pytest.mark.parametrize("fault", ["none", "gone", "shorter", "no links", "no manifest"])
def test_what_cannot_be_linked_leaves_nothing(
    source: Path, target: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "gone":
        (source / NAMES[1]).unlink()
    elif fault == "shorter":
        os.truncate(source / NAMES[1], 2)
    elif fault == "no manifest":
        (source / "manifest.json").unlink()
    elif fault == "no links":

        def refuse(*_: object) -> None:
            raise PermissionError("the file system makes no links")

        monkeypatch.setattr(os, "link", refuse)
    assert linked(None if fault == "none" else source, target) is None
    assert not list((target / BASE).iterdir())
