# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""docs/parallelism.md stays true: its figures are the plan's, its commands parse, its files exist."""

import re
import shlex
from pathlib import Path

import pytest

from docs import parallelism_figures, segment_figures
from launch.cli import command
from memformer.config.schema import load_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "parallelism.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line) for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S) for line in block.splitlines()
]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_figures_are_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["parallelism_figures.py", "--check"])
    assert parallelism_figures.main() == 0, "run: python docs/parallelism_figures.py"
    advised = [line for line in TEXT.splitlines() if line.startswith("| **")]  # the others show what is not
    assert len(advised) == 3 + 4 and not any("too much" in line for line in advised)


def test_figures_of_shared_rollouts_are_the_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["segment_figures.py", "--check"])
    assert segment_figures.main() == 0, "run: python docs/segment_figures.py"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse_and_their_settings_hold(words: list[str]) -> None:
    module, parser = command(words[1])
    assert words[0] == "memformer" and module
    arguments = parser.parse_args(words[2:])
    load_config(ROOT / arguments.config, arguments.overrides)


def test_named_files_exist() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / "docs" / name).exists(), name
    for name in re.findall(r"`((?:tests|benchmarks|memformer|docs)/[\w/.]+)`", TEXT):
        assert (ROOT / name).exists(), name
