# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer init`: what it writes holds, what is in the way is named, and nothing is left half written.

Covers: launch/commands/init.py, launch/new_project.py
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from launch import new_project
from launch.cli import command, main
from memformer.config.files import parse_yaml
from memformer.config.schema import load_config
from memformer.config.written import number
from tests import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("init") / "project"
    assert main(["init", str(directory)]) == 0
    return directory


def test_its_configurations_are_those_of_the_package(project: Path) -> None:
    for own in sorted((ROOT / "configs").rglob("*.yaml")):
        first, _, rest = (project / "configs" / own.relative_to(ROOT / "configs")).read_text().partition("\n")
        assert rest == own.read_text()
        assert (project / "configs" / "train" / first.removeprefix("# yaml-language-server: $schema=")).is_file()
    text = (project / "configs/train/backbone-tiny.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=../schema/backbone.json\n")


def test_its_scripts_start_this_installation(project: Path) -> None:
    command = Path(sys.executable).with_name("memformer")
    names = sorted(path.name for path in (ROOT / "slurm").iterdir())
    assert sorted(path.name for path in (project / "slurm").iterdir()) == names
    for name in names:
        script = project / "slurm" / name
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
        assert (f":-{command}}}" in script.read_text()) == (name != "pretrain-pyxis.sbatch"), "there, the container's"


def test_the_commands_of_its_readme_hold(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    blocks = re.findall(r"^```sh\n(.*?)^```", Path("README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(lines) > 9 and {words[0] for words in lines} == {"memformer"}
    for words in lines:
        _, parser = command(words[1])
        if words[-1] == "--help":
            continue
        arguments = parser.parse_args(words[2:])
        if hasattr(arguments, "config"):
            load_config(arguments.config, arguments.overrides)
    for name in re.findall(r"^\| `([\w/]+/)`", Path("README.md").read_text(), re.MULTILINE):
        assert Path(name).is_dir(), name


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_a_directory_that_is_there_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "text.txt").read_text() == "mine" and (tmp_path / "configs/train/example.yaml").is_file()
    before = names(tmp_path)
    (tmp_path / "README.md").unlink()
    assert main(["init", str(tmp_path)]) == 2
    assert f"{tmp_path}/.gitignore: is in the way" in capsys.readouterr().err
    assert names(tmp_path) == [name for name in before if name != "README.md"]


def test_what_is_to_be_typed_next_means_this_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "a b'c $(touch oops)", "-dash"):
        assert main(["init", "--", name]) == 0
        said = (
            capsys.readouterr()
            .out.splitlines()[-1]
            .removeprefix("next: ")
            .removesuffix(", then the commands of README.md")
        )
        done = subprocess.run(["bash", "-c", f"{said} && pwd"], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == str(tmp_path / name)
    assert not (tmp_path / "oops").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["init", ""],
        ["profile", ""],
        ["profile", ".", "--out", ""],
        ["train", ""],
        ["status", ""],
        ["export", "r", "--out", ""],
    ],
)
def test_an_empty_path_is_not_the_current_directory(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "is empty: give a path" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "is no directory"),
        ("no/such", "no is not there: make it first"),
        ("file/sub", "file is no directory, or"),
    ],
)
def test_other_places_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, words: str) -> None:
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and names(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_nothing_half_written_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The disk is full at the last file, or a name is taken by someone else while the first are moved."""
    if there:
        renamed = Path.rename

        def taken(path: Path, target: Path) -> Path:
            if target.name == "configs":
                raise OSError(39, "Directory not empty")
            return renamed(path, target)

        monkeypatch.setattr(Path, "rename", taken)
    else:
        files = new_project.project_files() | {"x" * 300: "a name that no file system takes"}
        monkeypatch.setattr(new_project, "project_files", lambda: files)
    directory = tmp_path if there else tmp_path / "new"
    assert main(["init", str(directory)]) == 1
    error = capsys.readouterr().err
    assert "nothing was changed" in error and error.count("\n") == 1 and names(tmp_path) == []


def test_an_unusual_path_is_left_to_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would mean something else to a shell."""
    monkeypatch.setattr(sys, "executable", "/opt/a; rm b/python")
    assert ":-.venv/bin/memformer}" in new_project.project_files()["slurm/pretrain.sbatch"]


def plain(value: Any) -> Any:
    """Values of a file as YAML 1.2 has them, where 1e-3 is a number."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.text if value.quoted else number(value.text)


@pytest.mark.parametrize("family", ["memformer", "backbone"])
def test_its_schemas_hold_for_its_files(project: Path, family: str) -> None:
    """And tell an unknown setting, a wrong choice and a wrong type, as an editor will."""
    check = fastjsonschema.compile(json.loads((project / f"configs/schema/{family}.json").read_text()))
    files = [path for path in (project / "configs").rglob("*.yaml") if f"/{family}.json" in path.read_text()]
    assert len(files) > 2
    for path in files:
        check(plain(parse_yaml(path.read_text(), str(path), str)))
    for wrong in ({"sead": 1}, {"precision": "bf8"}, {"training": {"max_steps": "many"}}, {"model": {"family": "x"}}):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check(wrong)
