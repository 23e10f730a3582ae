# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Packaging, pinned packages, the Makefile, and the set-up script (with a stand-in for Python: nothing installed)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ["scripts/setup.sh", "scripts/lock.sh", "scripts/lock_uv.sh", "scripts/install_debian.sh", ".ci/run"]
SCRIPTS += sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("slurm/*.sbatch"))
SETUP_INPUTS = ["scripts/setup.sh", "requirements/torch.txt", "requirements/lock.txt", "pyproject.toml", "setup.py"]

# Acts as python3 and as the Python of the environment it "makes"; pip fails while the file `broken` is there.
STAND_IN = """#!/bin/sh
case "$*" in
    --version) echo "Python 3.12.0" ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip install"*) echo "$*" >>calls; test ! -e broken ;;
    *print*) echo "torch 2.13.0" ;;
esac
"""


def requirement_name(line: str) -> str:
    """`pre_commit==4.7.0` → `pre-commit`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", line.strip(), maxsplit=1)[0]).lower()


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What setuptools makes of the declarations: the folder with PKG-INFO, entry_points.txt, requires.txt."""
    base = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(base)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    return base / "memformer_train.egg-info"


def test_name_version_and_command(metadata: Path) -> None:
    declared = (REPOSITORY / "pyproject.toml").read_text()
    version = re.search(r'^version = "([\d.]+)"', declared, re.MULTILINE)
    assert version
    information = (metadata / "PKG-INFO").read_text()
    assert "\nName: memformer-train\n" in information
    assert f"\nVersion: {version[1]}\n" in information
    assert "\nRequires-Python: >=3.10\n" in information
    assert "memformer = launch.cli:main" in (metadata / "entry_points.txt").read_text()
    assert callable(main)
    assert (metadata / "top_level.txt").read_text().split() == ["data_pipeline", "launch", "memformer"]


def test_everything_needed_is_pinned_and_nothing_brings_another_torch(metadata: Path) -> None:
    lines = (REPOSITORY / "requirements/lock.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!-]+", pin) for pin in pins)
    names = {requirement_name(pin) for pin in pins}
    assert len(names) == len(pins)
    assert not [name for name in names if name == "torch" or name.startswith(("nvidia-", "cuda-", "triton"))]
    always, *extras = (metadata / "requires.txt").read_text().split("\n[")
    development = next(extra for extra in extras if extra.startswith("dev]")).split("\n")[1:]
    needed = {requirement_name(line) for line in [*always.splitlines(), *development] if line.strip()}
    assert needed - names == {"torch"}
    for name, package in (("backbone:", "transformers"), ("lm-eval]", "lm-eval")):  # the first from some Python on
        lines = next(extra for extra in extras if extra.startswith(name)).split("\n")[1:]
        assert {requirement_name(line) for line in lines if line.strip()} == {package} <= names
    assert re.search(r"^torch==\d+\.\d+\.\d+$", (REPOSITORY / "requirements/torch.txt").read_text(), re.MULTILINE)


def test_peers_are_pinned_once(metadata: Path) -> None:
    extra = next(part for part in (metadata / "requires.txt").read_text().split("\n[") if part.startswith("peers]"))
    pins = (REPOSITORY / "requirements/peers.txt").read_text().splitlines()
    assert sorted(extra.split("\n")[1:]) == sorted(["", *(pin for pin in pins if not pin.startswith("#"))])
    assert "torch" not in {requirement_name(pin) for pin in pins}


def test_uv_installs_what_make_setup_installs() -> None:
    """The lock of uv has the same pins, and was made for the dependencies that pyproject.toml has now."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    packages = tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    pins = "".join((REPOSITORY / "requirements" / name).read_text() for name in ("torch.txt", "lock.txt"))
    pinned = {
        requirement_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", pins, re.MULTILINE)
    }
    locked = [(package["name"], package["version"]) for package in packages if package["name"] in pinned]
    assert pinned.keys() - {"mosaicml-streaming", "wheel"} == {name for name, _ in locked}
    assert [each for each in locked if pinned[each[0]] != each[1]] == [], "scripts/lock_uv.sh writes it anew"
    made_for = next(package for package in packages if package["name"] == "memformer-train")["metadata"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, set[str]] = {extra: set() for extra in declared}
    for requirement in made_for["requires-dist"]:
        extra = re.search(r"extra == '([\w-]+)'", requirement.get("marker", ""))
        found[extra[1] if extra else ""].add(requirement["name"])
    assert found == {extra: set(map(requirement_name, lines)) for extra, lines in declared.items()}


def test_make_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    listed = re.findall(r"make (\w+)", done.stdout)
    assert {"setup", "train", "test", "checks", "lint", "lock", "clean", "help"} <= set(listed)


@pytest.mark.parametrize("target", ["train", "test", "checks"])
def test_targets_set_up_first(target: str) -> None:
    # Under `make test` this make would take part in that one and announce its folder.
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, env=alone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "scripts/setup.sh"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run(script: str) -> None:
    path = REPOSITORY / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what `make setup` reads, and the stand-in for Python."""
    for name in SETUP_INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def set_up(checkout: Path, python: str | None = None) -> tuple[int, str, int]:
    """Runs the script: exit code, what it said, how often it called pip."""
    (checkout / "calls").write_text("")
    done = subprocess.run(
        [str(checkout / "scripts/setup.sh")],
        env={**os.environ, "PYTHON": python or str(checkout / "python")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, len((checkout / "calls").read_text().splitlines())


def test_a_set_up_is_not_repeated_until_something_changes(checkout: Path) -> None:
    code, said, calls = set_up(checkout)
    assert (code, calls) == (0, 2)
    assert "creating .venv" in said
    assert set_up(checkout) == (0, "setup: .venv is up to date\n", 0)
    with (checkout / "requirements/lock.txt").open("a") as lock:
        lock.write("six==1.17.0\n")
    code, said, calls = set_up(checkout)
    assert (code, calls) == (0, 2)
    assert "creating" not in said, "brought up to date in place"
    assert set_up(checkout)[2] == 0


def test_a_half_done_set_up_is_done_again_from_the_start(checkout: Path) -> None:
    (checkout / "broken").touch()
    assert set_up(checkout)[0] != 0
    assert set_up(checkout)[0] != 0, "still not taken for complete"
    (checkout / ".venv/left-over").touch()
    (checkout / "broken").unlink()
    code, said, calls = set_up(checkout)
    assert (code, calls) == (0, 2)
    assert "creating .venv" in said
    assert not (checkout / ".venv/left-over").exists()


def test_a_moved_checkout_is_set_up_anew(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert set_up(checkout)[0] == 0
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(checkout, moved)
    assert set_up(moved)[2] == 2


@pytest.mark.parametrize("python", ["no-such-python", "old-python"])
def test_an_unfit_python_is_one_clear_line(checkout: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    old = checkout / "old-python"
    old.write_text('#!/bin/sh\ntest "$1" = --version && echo "Python 3.9.18"\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(checkout), prepend=os.pathsep)
    code, said, calls = set_up(checkout, python)
    assert (code, calls) == (2, 0)
    assert ("Python 3.9.18" if python == "old-python" else python) in said
    assert "Python 3.10 or newer is needed" in said
    assert said.count("\n") == 1
    assert not (checkout / ".venv").exists()
