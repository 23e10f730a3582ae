# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a command imports before it is sure of its work: help, refusals and looks at files do not wait for torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.start import COMMANDS, prepare
from launch.cli import COMMANDS as ALL
from launch.commands.launch import MODES

ROOT = Path(__file__).resolve().parents[2]
# The command in a process of its own, which says at its end whether it has imported torch.
WATCHED = """
import sys
from launch.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("torch" if "torch" in sys.modules else "no torch", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start")
    prepare(root)
    return root


@pytest.mark.parametrize("name", COMMANDS)
def test_it_does_not_wait_for_torch(place: Path, name: str) -> None:
    words, code = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *(word.format(root=place) for word in words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    *said, imported = done.stderr.splitlines()
    assert (done.returncode, imported) == (code, "no torch"), done.stderr
    assert len(said) == int(code != 0 or name == "launch slurm --dry-run"), "a refusal, or a remark, is one line"


def test_the_watch_sees_torch() -> None:
    code = WATCHED.replace("from launch.cli import main", "import torch\nmain = lambda _: 0")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "torch"


def test_every_command_is_watched() -> None:
    helped = {tuple(words[:-1]) for words, _ in COMMANDS.values() if words[-1] == "--help"}
    assert helped == {(), *((name,) for name in ALL), *(("launch", mode) for mode in MODES)}
