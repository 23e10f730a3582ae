# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The copy of the code that goes with a run: from a checkout with changes, and from an installed package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.sources import BOOKS
from launch import snapshot

BOOK = "data_pipeline/corpora/books/one.txt.gz"
"""A file that a package has through a link."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that `snapshot_code` takes for its own: the project's packages, one file each, and a linked book."""
    root = tmp_path / "project"
    for name in snapshot.PACKAGES:
        (root / name).mkdir(parents=True)
        (root / name / "code.py").write_text("value = 1\n")
        (root / name / "__pycache__").mkdir()
        (root / name / "__pycache__/code.pyc").write_bytes(b"")
    (root / "corpora/books").mkdir(parents=True)
    (root / "corpora/books/one.txt.gz").write_bytes(b"packed")
    (root / "data_pipeline/corpora").symlink_to("../corpora")
    monkeypatch.setattr(snapshot, "__file__", str(root / "launch/snapshot.py"))
    return root


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    return subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True).stdout


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_checkout_with_changes_is_copied_as_it_lies_there(project: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text("__pycache__\n*.secret\n")
    (project / "README.md").write_text("not code\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    (project / "memformer/code.py").write_text("value = 2\n")
    (project / "memformer/new.py").write_text("new = 3\n")
    (project / "memformer/key.secret").write_text("ignored by git\n")
    (project / "launch/code.py").unlink()
    copy = tmp_path / "run/code"
    said = snapshot.snapshot_code(copy)
    assert "with uncommitted changes" in said
    packages = {"data_pipeline/code.py", "memformer/code.py", "memformer/new.py", BOOK}
    expected = packages | {"__main__.py", "COMMIT", "uncommitted.diff"}
    assert files(copy) == expected
    assert (copy / "memformer/code.py").read_text() == "value = 2\n"
    assert (copy / "COMMIT").read_text() == git(project, "rev-parse", "HEAD")
    assert "+value = 2" in (copy / "uncommitted.diff").read_text()

    (project / "memformer/new.py").unlink()
    snapshot.snapshot_code(copy)
    assert "memformer/new.py" not in files(copy), "a new copy replaces the old one"
    assert [path.name for path in copy.parent.iterdir()] == ["code"]


def test_an_installed_package_is_copied(project: Path, tmp_path: Path) -> None:
    said = snapshot.snapshot_code(tmp_path / "run/code")
    assert str(project) in said
    packages = {f"{name}/code.py" for name in snapshot.PACKAGES}
    assert files(tmp_path / "run/code") == packages | {BOOK, "__main__.py"}


def test_the_copy_is_run_from_wherever_a_job_starts(project: Path, tmp_path: Path) -> None:
    """Also from the checkout, whose code may have been edited since: `python -m` would take that."""
    (project / "launch/__init__.py").touch()  # else the real package wins, where PYTHONPATH leads to it
    (project / "launch/cli.py").write_text("def main() -> int:\n    print('as submitted')\n    return 3\n")
    snapshot.snapshot_code(tmp_path / "run/code")
    (project / "launch/cli.py").write_text("def main() -> int:\n    print('edited since')\n    return 0\n")
    command = snapshot.snapshot_command(tmp_path / "run/code", sys.executable)
    done = subprocess.run([*command, "train"], cwd=project, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("as submitted\n", 3), done.stderr


def test_the_books_lie_in_a_copy_where_tasks_look_for_them() -> None:
    assert Path(snapshot.__file__).parents[1] / Path(BOOK).parent == BOOKS and any(BOOKS.iterdir())


def test_settings_of_an_array_are_checked_with_its_first_index(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"run_dir: {tmp_path}/run\ndata:\n  path: data\n")
    words = ["--seed", "{array}", "--data.num_lanes=8"]
    config, varying = snapshot.read_settings(str(tmp_path / "config.yaml"), words, "4-7%2")
    assert (config.seed, config.data.num_lanes, varying) == (4, 8, ["--seed", "{array}"])
    with pytest.raises(UserError, match="max_steps"):
        snapshot.read_settings(str(tmp_path / "config.yaml"), ["--training.max_steps", "x{array}"], "0-1")
    with pytest.raises(UserError, match="runs of an array lie in"):
        snapshot.read_settings(str(tmp_path / "config.yaml"), ["--run_dir", "r{array}"], "0-1")


@pytest.mark.parametrize("checkout", [True, False])
def test_the_copy_keeps_the_umask(project: Path, tmp_path: Path, checkout: bool) -> None:
    if checkout:
        git(project, "init", "-q")
        git(project, "add", ".")
        git(project, "commit", "-qm", "first")
    before = os.umask(0o077)
    try:
        snapshot.snapshot_code(tmp_path / "run/code")
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "run").rglob("*"))
