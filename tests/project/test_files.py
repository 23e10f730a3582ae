# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The rules that every file of the repository keeps, and the files that it ships."""

import ast
import gzip
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from memformer.config.schema import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
COPYRIGHT = "# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0."
MOST_LINES = 500
BOOKS = sorted((REPOSITORY / "corpora/books").glob("*.gz"))
# What git keeps or would keep; without git (a downloaded archive), what the folders of the project hold.
FOLDERS = ["benchmarks", "configs", "data_pipeline", "launch", "memformer", "tests"]


def shipped(suffix: str) -> list[Path]:
    """Files of the repository with this suffix, relative to it."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", f"*{suffix}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        files = [Path(name) for name in listed]
    except (OSError, subprocess.CalledProcessError):
        files = [
            path.relative_to(REPOSITORY) for folder in FOLDERS for path in (REPOSITORY / folder).rglob(f"*{suffix}")
        ]
    return sorted(file for file in files if (REPOSITORY / file).is_file())


@pytest.mark.parametrize("file", [file for file in shipped(".py") if (REPOSITORY / file).stat().st_size], ids=str)
def test_python_files_say_what_they_are_and_stay_short(file: Path) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == COPYRIGHT
    assert ast.get_docstring(ast.parse(text)), "a module docstring says what the file is for"
    assert len(lines) <= MOST_LINES, "a longer file is two things"


def test_there_are_files_to_check() -> None:
    assert Path("launch/cli.py") in shipped(".py")
    assert len(BOOKS) > 10


def test_every_package_says_that_it_is_typed() -> None:
    """What pyproject.toml declares as package data is there, so that type checkers of users read our annotations."""
    assert {file.parent.name for file in shipped("py.typed")} == {"data_pipeline", "launch", "memformer"}


@pytest.mark.parametrize("file", [*shipped(".yaml"), *shipped(".yml")], ids=str)
def test_yaml_files_parse(file: Path) -> None:
    assert isinstance(yaml.safe_load((REPOSITORY / file).read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("file", [file for file in shipped(".yaml") if file.parts[:2] == ("configs", "train")], ids=str)
def test_shipped_runs_have_a_valid_configuration(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained model that one names need not be here: the sizes of SmolLM2 stand in for its config.json."""
    pretrained = (
        yaml.safe_load((REPOSITORY / file).read_text(encoding="utf-8")).get("model", {}).get("pretrained", "none")
    )
    (tmp_path / pretrained).mkdir(parents=True)
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "max_position_embeddings": 8192}
    (tmp_path / pretrained / "config.json").write_text(json.dumps({"model_type": "llama"} | sizes))
    monkeypatch.chdir(tmp_path)
    load_config(REPOSITORY / file)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_books_are_long_and_reproducible(book: Path) -> None:
    packed = book.read_bytes()
    flags, modified = packed[3], packed[4:8]
    assert modified == b"\0\0\0\0", "packed with gzip -n: no time inside"
    assert not flags & 0x08, "packed with gzip -n: no name inside"
    assert len(gzip.decompress(packed).decode("utf-8")) > 100_000


def test_books_are_small_together_and_have_their_provenance() -> None:
    assert sum(book.stat().st_size for book in BOOKS) < 3_000_000
    provenance = (REPOSITORY / "corpora/PROVENANCE.md").read_text(encoding="utf-8")
    for book in BOOKS:
        assert f"`{book.name.partition('_')[0]}_*.txt.gz`" in provenance
