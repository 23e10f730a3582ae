# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer generate` and `evaluate` on what users give them: bytes that are no text, addresses.

Covers: launch/commands/generate.py, launch/commands/evaluate.py, launch/models.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.data_pipeline.faulty_server import serving
from tests.workshop import make_workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def address(workshop: Path) -> Iterator[str]:
    """Where the workshop is served."""
    with serving(workshop) as server:
        yield server.address


def test_a_prompt_that_is_no_utf_8_is_one_line(workshop: Path) -> None:
    (workshop / "prompt.txt").write_bytes(b"two lines,\nthe second caf\xe9\n")
    for words, place in (
        (["--prompt", "caf\udce9"], "--prompt: is not UTF-8 text (byte 0xe9 in line 1)"),
        (["--prompt-file", "prompt.txt"], "--prompt-file prompt.txt: is not UTF-8 text (byte 0xe9 in line 2)"),
        (["--prompt-file", "none.txt"], "--prompt-file none.txt: cannot be read (No such file or directory)"),
        (["--prompt", "a", "--seed", "9" * 30], "argument --seed: is '999999999999999999999999999999': give a whole n"),
        (["--prompt", "a", "--temperature", "inf"], "argument --temperature: is 'inf': give a number"),
    ):
        done = run_command("generate", "model", *words, "--max-new-tokens", "1", folder=workshop)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"memformer generate: error: {place}") and done.stderr.count("\n") == 1


def test_a_prompt_in_any_language_is_continued_on_any_terminal(workshop: Path) -> None:
    words = ["generate", "model", "--prompt", "café", "--max-new-tokens", "2", "--json"]
    done = run_command(*words, environment={"PYTHONIOENCODING": "ascii"}, folder=workshop)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == len("café".encode())


def test_held_out_data_at_an_address_is_scored_as_a_copy_of_it(workshop: Path, address: str) -> None:
    cache = ["--cache-dir", str(workshop / "cache")]
    scores = []
    for data in ("data", f"{address}/data", f"{address}/data/validation"):
        done = run_command("evaluate", "model", "--data", data, "--json", *cache, folder=workshop)
        assert done.returncode == 0, done.stderr
        scores.append(json.loads(done.stdout)["with_memory"])
    assert scores[0] == scores[1] == scores[2]
    done = run_command("evaluate", "model", "--data", f"{address}/nothing", *cache, folder=workshop)
    assert done.returncode == 2 and f"{address}/nothing" in done.stderr and done.stderr.count("\n") == 1
