# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`--json` of every command: stdout holds JSON and nothing else, whatever is said meanwhile.

Covers: launch/commands/export.py
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.answers import answer, json_alone
from launch.cli import COMMANDS, command
from tests.commands import run_command
from tests.memformer.run.test_traces import PARTS, written
from tests.workshop import make_workshop

LINES: dict[tuple[str, ...], str] = {
    ("data", "build"): "text --out {root}/again --overwrite",
    ("data", "adopt"): "mds --tokenizer bytes",
    ("data", "synthesise"): "recall:pairs=2 --lengths 0,200 --documents 4 --out {root}/recall",
    ("data", "inspect"): "data --verify",
    ("plan",): "config.yaml --gpus-per-node 1 --precision fp32",
    ("evaluate",): "model --data data --max-segments 2",
    ("generate",): "model --prompt word --max-new-tokens 3",
    ("inspect-memory",): "model --text-file text/document-0.txt --out memory --no-pictures --horizon 1",
    ("checkpoint",): "verify run",
    ("export",): "run --out again-model",
    ("doctor",): "--run-dir .",
    ("status",): "run",
    ("profile",): "run",
}
"""Words of each command that has --json."""

SILENT = (("status",), ("profile",), ("plan",))  # their text is the answer


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With shards of MDS as another program writes them."""
    root = make_workshop(tmp_path_factory.mktemp("workshop"))
    done = run_command(*"data build text --out mds --format mds".split(), folder=root)
    assert done.returncode == 0, done.stderr
    written(root / "run" / "profile" / "steps-00000003-00000003" / "rank-00000.json.gz", PARTS)
    for made in ("manifest.json", "documents.npz"):
        (root / "mds" / made).unlink(missing_ok=True)
    return root


def with_json() -> Iterator[tuple[str, ...]]:
    """Every command that has --json, as its words."""

    def walk(words: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    yield from walk((*words, name), inner)
            elif "--json" in action.option_strings:
                yield words

    for name in COMMANDS:
        yield from walk((name,), command(name)[1])


def test_every_command_that_has_it_is_watched() -> None:
    assert set(with_json()) == set(LINES)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_stdout_is_one_line_of_json(workshop: Path, words: tuple[str, ...]) -> None:
    line = LINES[words].format(root=workshop).split()
    done = run_command(*words, *line, "--json", folder=workshop)
    assert done.returncode in (0, 1) and done.stdout.count("\n") == 1, done.stderr
    assert isinstance(json.loads(done.stdout, parse_constant=pytest.fail), dict)
    assert "{" not in done.stderr.splitlines()[-1] if done.stderr else words in SILENT


@pytest.mark.parametrize(
    "words", [("evaluate", "run", "--data", "data"), ("plan", "config.yaml", "--device", "abacus")]
)
def test_a_failure_says_nothing_on_stdout(workshop: Path, words: tuple[str, ...]) -> None:
    done = run_command(*words, "--json", folder=workshop)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_what_libraries_write_past_python_is_kept_away_too(capfd: pytest.CaptureFixture[str]) -> None:
    descriptor = sys.stdout.fileno()
    with json_alone(True):
        print("text")
        os.write(descriptor, b"library\n")
        answer({"perplexity": math.inf, "nested": [math.nan, 1.5]})
    print("later")
    said = capfd.readouterr()
    assert said.out == '{"perplexity": null, "nested": [null, 1.5]}\nlater\n'
    assert sorted(said.err.split()) == ["library", "text"]


def test_without_it_everything_is_said_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with json_alone(False):
        print("text")
        answer({"a": 1})
    assert capsys.readouterr() == ('text\n{"a": 1}\n', "")
    with json_alone(True):  # a stand-in for stdout, without a file
        print("text")
        answer({"a": 1})
    assert capsys.readouterr() == ('{"a": 1}\n', "text\n")
