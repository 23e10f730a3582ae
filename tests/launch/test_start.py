# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a command imports before it is sure of its work: help, refusals and looks at files do not wait for torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.start import COMMANDS, prepare
from launch.cli import COMMANDS as ALL
from launch.commands.launch import MODES

ROOT = Path(__file__).resolve().parents[2]
# Each command in a process forked from one that has done no more than to find `main`, as a program of its own has; it
# says at its end whether it has imported torch.
WATCHED = """
import json, os, sys
from launch.cli import main
for number, words in enumerate(json.load(sys.stdin)):
    if os.fork():
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        continue
    said = os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(said, 2)
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    print("torch" if "torch" in sys.modules else "no torch", file=sys.stderr, flush=True)
    os._exit(code or 0)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start")
    prepare(root)
    return root


def watch(folder: Path, commands: list[list[str]], program: str = WATCHED) -> list[tuple[int, list[str]]]:
    """The exit code of each command, and the lines on its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=280,  # fifty commands, one after another
    )
    codes = [int(code) for code in done.stdout.split()]
    assert len(codes) == len(commands), done.stderr
    return [(code, (folder / str(number)).read_text().splitlines()) for number, code in enumerate(codes)]


@pytest.fixture(scope="module")
def watched(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    commands = [[word.format(root=place) for word in words] for words, _ in COMMANDS.values()]
    return dict(zip(COMMANDS, watch(tmp_path_factory.mktemp("said"), commands), strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_it_does_not_wait_for_torch(watched: dict[str, tuple[int, list[str]]], name: str) -> None:
    code, (*said, imported) = watched[name]
    assert (code, imported) == (COMMANDS[name][1], "no torch"), said
    assert len(said) == int(code != 0 or name == "launch slurm --dry-run"), "a refusal, or a remark, is one line"


def test_the_watch_sees_torch(tmp_path: Path) -> None:
    program = WATCHED.replace("code = main(words)", "import torch; code = 3")
    assert watch(tmp_path, [["train"]], program) == [(3, ["torch"])]


def test_every_command_is_watched() -> None:
    helped = {tuple(words[:-1]) for words, _ in COMMANDS.values() if words[-1] == "--help"}
    assert helped == {(), *((name,) for name in ALL), *(("launch", mode) for mode in MODES)}
