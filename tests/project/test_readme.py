# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The README stays true: its commands parse, its files exist, its sequence and its code run.

Covers: launch/cli.py, launch/commands/evaluate.py, launch/commands/export.py, launch/commands/generate.py
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import command
from memformer.config.schema import load_config
from tests.commands import run_command
from tests.workshop import make_workshop

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "memformer"], ids=" ".join)
def test_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Subcommand, options and settings exist; a configuration that is named loads with the settings."""
    monkeypatch.chdir(ROOT)
    _, parser = command(words[1])
    arguments = parser.parse_args(words[2:])
    if hasattr(arguments, "config"):
        load_config(arguments.config, arguments.overrides)


def test_the_job_script_and_its_configuration_exist() -> None:
    found = [words for words in commands() if words[0] == "sbatch"]
    assert found
    for _, script, config, *settings in found:
        assert (ROOT / script).is_file()
        load_config(ROOT / config, settings)


def test_named_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([\w-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^\| `([\w/]+/)`", TEXT, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_python_examples_run() -> None:
    """With segments of 16 tokens instead of 128."""
    example = next(block for block in blocks("python") if "memory_replay_backward(" in block)
    looked_at = "assert model.forget.bias.grad.norm() > 0 and result.carry.memory.shape == (2, 32, 512)"
    program = f"{example.replace('128', '16')}\n{looked_at}\n"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_python_example_of_an_export_runs(tmp_path: Path) -> None:
    """Its figure is that of the text in one piece, and the forks have left the document as it was."""
    example = next(block for block in blocks("python") if "load_model(" in block)
    export = make_workshop(tmp_path) / "model"
    looked_at = """
whole = reader_of(model)
start = tokenizer.encode("Emma held the lamp. The night was dark.")
read_texts(whole, [start])
losses = []
for token in tokenizer.encode(" Emma smiled."):
    losses.append(torch.nn.functional.cross_entropy(whole.logits, torch.tensor([int(token)])))
    whole.read(torch.tensor([[int(token)]]))
assert abs(nats - sum(losses).item()) < 1e-3 and nats > 1
"""
    program = f"{example.replace('runs/own/model', str(export))}{looked_at}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert (tmp_path / "book.state").stat().st_size < 1_000_000 and len(done.stdout.splitlines()) >= 2


@pytest.mark.slow
@pytest.mark.distributed
def test_the_sequence_on_your_own_text_runs(tmp_path: Path) -> None:
    """Literally the README's commands, shortened to a few steps, in a directory of their own."""
    first, later = (block for block in blocks("sh") if "--run_dir runs/own" in block)
    (tmp_path / "corpora").symlink_to(ROOT / "corpora")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for words in map(shlex.split, (first + later).splitlines()):
        if words[0] != "memformer":
            continue
        if words[1] == "launch":
            words += ["--training.max_steps", "4", "--training.eval_segments", "4", "--optimizer.warmup_steps", "1"]
            words += ["--device", "cpu", "--data.segment_length", "32"]
        words = ["20" if before == "200" else before for before in words]
        # The launcher starts its ranks as programs of their own.
        done = run_command(*words[1:], environment={"HOME": str(tmp_path)}, folder=tmp_path, seconds=240)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert (tmp_path / "runs" / "own" / "model" / "model.safetensors").is_file()


def test_the_table_of_results_is_what_the_result_files_give() -> None:
    subprocess.run([sys.executable, "benchmarks/readme_table.py", "--check"], cwd=ROOT, check=True, timeout=60)


def test_the_pages_of_results_are_what_the_result_files_give() -> None:
    """Tables byte for byte; plots by the digest of the data they were drawn from."""
    subprocess.run([sys.executable, "benchmarks/results_pages.py", "--check"], cwd=ROOT, check=True, timeout=120)
