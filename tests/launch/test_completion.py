# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer completion`: what bash completes with the script; each shell that is here reads its own.

Covers: launch/commands/completion.py
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from launch.cli import COMMANDS, main
from launch.commands.completion import SHELLS

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_memformer
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        for shell in SHELLS:
            with (folder / shell).open("w") as file:
                patch.setattr("sys.stdout", file)
                assert main(["completion", shell]) == 0
    return folder


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_reads_it(scripts: Path, shell: str) -> None:
    text = (scripts / shell).read_text()
    assert "optimizer.learning_rate" in text and "inspect-memory" in text and "model.lora.rank" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", str(scripts / shell)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", set(COMMANDS)),
        ("launch s", {"slurm", "submitit"}),
        ("train --optimizer.warm", {"--optimizer.warmup_steps"}),
        ("train c.yaml --precision ", {"auto", "fp32", "bf16", "fp16"}),
        ("config show --model.lora.r", {"--model.lora.rank"}),
        ("launch local c.yaml --nproc 2 --compile ", {"true", "false", "auto"}),
        ("train c.yaml --tensorboard ", {"true", "false"}),
        ("data build --tok", {"--tokenizer"}),
        ("evaluate --optimizer.warm", set()),
        ("train confi", {"config.yaml"}),
    ],
)
def test_bash_completes(scripts: Path, tmp_path: Path, words: str, expected: set[str]) -> None:
    """Commands, options, settings where they are taken, their choices, and paths."""
    (tmp_path / "config.yaml").touch()
    line = ["memformer", *words.split(" ")]
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(scripts / "bash"), *line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert set(done.stdout.split()) == expected, done.stderr
