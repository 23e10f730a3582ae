# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The wheel is enough: what it holds, and a first model by its command alone, outside of the checkout.

Covers: launch/new_project.py, launch/commands/init.py
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.books import book_text
from tests.project.test_setup import REPOSITORY

PACKAGES = ("data_pipeline", "launch", "memformer")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SHORT = (
    "--training.max_steps 3 --training.eval_interval 0 --optimizer.warmup_steps 1 --data.segment_length 32 "
    "--device cpu --tensorboard false --model.d_model 32 --model.num_heads 2 --model.d_ff 64 "
    "--model.num_encoder_layers 1 --model.num_decoder_layers 1"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has, as a release is: setuptools would leave a folder in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in (*PACKAGES, "configs", "corpora", "slurm"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=ignored)
    build = [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(place), str(copy)]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (built,) = place.glob("memformer_train-*.whl")
    return built


@pytest.mark.slow
def test_it_holds_every_module_configuration_script_and_book(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {
        str(path.relative_to(REPOSITORY)) for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")
    } <= held
    for folder, place, files in (
        ("configs", "memformer/config/configs", "*/*.yaml"),
        ("slurm", "launch/templates", "*.sbatch"),
        ("corpora", "data_pipeline/corpora", "books/*.gz"),
        ("launch/project", "launch/project", "*"),
    ):
        names = {str(path.relative_to(REPOSITORY / folder)) for path in (REPOSITORY / folder).glob(files)}
        assert names and {f"{place}/{name}" for name in names} <= held


@pytest.mark.slow
def test_its_command_makes_a_first_model_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own: the project from the wheel alone, what it needs from this environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], cwd=tmp_path, check=True, timeout=60)
    python = tmp_path / "env" / "bin" / "python"
    install = [*PIP, "--python", str(python), "install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    # Not in the checkout, where an earlier build may have left what pip takes for an installation.
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=100)
    (own,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # A line in a .pth file adds a directory, but not what the .pth files in that say, such as the way to the checkout.
    (own / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words: str, folder: str = "project") -> str:
        unset = ("PYTHONPATH", "PYTHONSAFEPATH")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        program = str(python) if words[0] == "-c" else str(python.with_name("memformer"))
        done = subprocess.run(
            [program, *words], cwd=tmp_path / folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    (tmp_path / "text.txt").write_text(book_text(6_000))
    imported = (
        "import data_pipeline, launch, memformer as m; print(data_pipeline.__file__, launch.__file__, m.__file__)"
    )
    assert all(place.startswith(str(own)) for place in run("-c", imported, folder=".").split())
    run("init", "project", folder=".")
    assert str(python.with_name("memformer")) in (tmp_path / "project/slurm/pretrain.sbatch").read_text()
    run("data", "build", "../text.txt", "--out", "data/example")
    run("train", "configs/train/example.yaml", *SHORT.split())
    run("export", "runs/example", "--out", "model")
    said = run("generate", "model", "--prompt", "It is a truth", "--max-new-tokens", "8")
    assert said.strip() and (tmp_path / "project/model/model.safetensors").is_file()
