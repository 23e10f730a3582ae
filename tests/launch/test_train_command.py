# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer train` as a user meets it: what it refuses, one line each, and a kill -9 in the middle.

The kill and SIGUSR1 meet ranks of a real launcher; elsewhere the command runs in forked processes (tests/commands.py).

Covers: launch/commands/checkpoint.py, launch/commands/train.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from memformer.run import jsonl
from memformer.run.directory import TIMING_FIELDS
from tests.books import TINY_MODEL, small_dataset
from tests.commands import end, run_command, run_ranks, start_ranks
from tests.held import held_python, hold, release

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two data sets (bytes, BPE), a configuration and a finished run."""
    root = tmp_path_factory.mktemp("workshop")
    small_dataset(root / "bytes")
    small_dataset(root / "bpe", tokenizer="train-bpe:300")
    settings = {
        "run_dir": str(root / "run"),
        "device": "cpu",
        "tensorboard": False,
        "model": TINY_MODEL,
        "data": {
            "path": str(root / "bytes" / "data"),
            "num_lanes": 4,
            "segment_length": 32,
            "num_segments": 2,
            "audit": True,
        },
        "training": {"max_steps": 3, "eval_interval": 0},
        "optimizer": {"warmup_steps": 1},
        "checkpoint": {"interval": 1},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    done = run_command("train", str(root / "config.yaml"))
    assert done.returncode == 0, done.stderr
    return root


REFUSALS = {
    "unknown key": (["--model.num_head", "4"], "model.num_head: unknown key, did you mean num_heads?"),
    "wrong type": (["--data.num_lanes", "many"], "data.num_lanes: is 'many': input should be a valid integer"),
    "missing data": (["--data.path", "nowhere"], "nowhere"),
    "vocabulary of another tokenizer": (["--model.vocab_size", "512"], "was built with another tokenizer"),
    "data set of another tokenizer": (["--data.path", "{root}/bpe/data"], "vocab_size"),
    "held-out data of another tokenizer": (
        ["--data.eval_path", "{root}/bpe/data/validation"],
        "data.eval_path: {root}/bpe/data/validation was built with another tokenizer",
    ),
    "checkpoint of another model": (["--model.d_ff", "128"], "model.d_ff is 64 there and 128 here"),
    "run exists": (["--resume", "never"], "holds a run: choose another directory, or --resume auto"),
    "no such checkpoint": (["--resume", "{root}/bytes"], "holds no complete checkpoint"),
    "half a replica": (
        ["--parallel.tensor", "2"],
        "world size 1 is not parallel.tensor 2 x parallel.pipeline 1 x data",
    ),
    "document too long for a task": (
        ["--evaluation.tasks", "[copy]", "--evaluation.length", "9"],
        "evaluation.tasks: copy: a document needs 38 tokens, but evaluation.length has 9: give more, or 0 for",
    ),
    "no GPU": (["--device", "cuda"], "set --device cpu"),
    "value left out": (["--data.num_lanes"], "--data.num_lanes has no value"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refuses_with_one_line_and_exit_code_2(workshop: Path, kind: str) -> None:
    words, message = REFUSALS[kind]
    result = run_command("train", str(workshop / "config.yaml"), *(word.format(root=workshop) for word in words))
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (2, 1), result.stderr
    assert lines[0].startswith("memformer train: error: ")
    assert message.format(root=workshop) in lines[0]


IMPORTS = """
import os, signal, sys
from launch import cli
from launch.commands import train
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupted())
for name in [each for each in sys.modules if each.startswith(("launch.commands", "memformer.training"))]:
    del sys.modules[name]
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("module", ["launch.commands.train", "memformer.training.trainer"])
def test_a_key_press_while_it_still_imports_is_one_line(workshop: Path, tmp_path: Path, module: str) -> None:
    words = [str(workshop / "config.yaml"), "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, module, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("memformer train: interrupted") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_refuses_a_world_size_that_does_not_fit(workshop: Path) -> None:
    """Before it waits for the other processes."""
    world = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    result = run_command("train", str(workshop / "config.yaml"), environment=world)
    assert result.returncode == 2
    assert "data.num_lanes is 4, which 3 data-parallel processes cannot share equally" in result.stderr
    assert "choose a multiple of 3" in result.stderr


def test_refuses_a_damaged_named_checkpoint_and_skips_it_in_auto(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workshop / "run", run)
    newest = run / "checkpoints" / "step-00000003"
    shard = newest / "lanes" / "rank-00000.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    config = str(workshop / "config.yaml")
    named = run_command("train", config, "--run_dir", str(run), "--resume", str(newest))
    assert named.returncode == 1
    assert "rank-00000.safetensors: its content changed" in named.stderr
    listed = run_command("checkpoint", "verify", str(run), "--json")
    assert listed.returncode == 1
    assert json.loads(listed.stdout.splitlines()[-1])["damaged"] == 1
    resumed = run_command("train", config, "--run_dir", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert "skipped a checkpoint" in resumed.stdout
    assert "resumed from" in resumed.stdout and "step-00000002" in resumed.stdout
    assert run_command("checkpoint", "verify", str(run)).returncode == 0


def test_goes_on_with_other_lanes_and_another_stage_and_says_so(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workshop / "run", run)
    changed = ["--data.num_lanes", "8", "--parallel.zero_stage", "2", "--training.max_steps", "5"]
    result = run_command("train", str(workshop / "config.yaml"), "--run_dir", str(run), *changed)
    assert result.returncode == 0, result.stderr
    assert "carried over: ZeRO 1 -> 2, 4 -> 8 lanes; losses agree to rounding" in result.stdout
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 5]
    assert rows_of(run)[:3] == rows_of(workshop / "run")


def test_a_finished_run_is_not_started_again(workshop: Path) -> None:
    before = (workshop / "run" / "metrics.jsonl").read_text()
    result = run_command("train", str(workshop / "config.yaml"))
    assert result.returncode == 0
    assert "the run has finished its 3 steps" in result.stdout
    assert (workshop / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_kill_9_of_a_launched_run_loses_nothing(workshop: Path, tmp_path: Path) -> None:
    """Two processes die in the middle of the run; the same command goes on, bit-equal to a run in one life."""
    steps = ["--training.max_steps", "40", "--checkpoint.interval", "5", "--data.segment_length", "64"]
    config, whole, broken = str(workshop / "config.yaml"), tmp_path / "whole", tmp_path / "broken"
    command = [held_python(tmp_path), "-m", "launch.cli", "launch", "local", config, "--nproc", "2", *steps]
    run_ranks(config, *steps, "--run_dir", str(whole), count=2, log=tmp_path / "log")
    hold(broken, 30)
    launcher = subprocess.Popen([*command, "--run_dir", str(broken)], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for_steps(broken / "metrics.jsonl", 12)
    launcher.send_signal(signal.SIGKILL)  # the ranks die with their launcher
    launcher.wait(timeout=60)
    assert 12 <= len(rows_of(broken)) <= 30
    release(broken)
    resumed = subprocess.run(
        [*command, "--run_dir", str(broken)], cwd=ROOT, check=True, capture_output=True, text=True, timeout=180
    )
    assert "resumed from" in resumed.stdout
    assert rows_of(broken) == rows_of(whole)
    for rank in ("rank-00000.jsonl", "rank-00001.jsonl"):
        assert (broken / "audit" / rank).read_text() == (whole / "audit" / rank).read_text()


def wait_for_steps(metrics: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def rows_of(run: Path) -> list[dict[str, object]]:
    rows = jsonl.records(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("ask", "code"), [("SIGUSR1", 75), ("stop file", 75), ("SIGINT", 130)])
def test_asked_to_stop_it_saves_and_goes_on_later(workshop: Path, tmp_path: Path, ask: str, code: int) -> None:
    """Saved at the step it was asked in; the next life starts there, not at an older checkpoint. SIGUSR1 goes to a
    launcher, which passes signals on (tests/launch/test_local.py), the others to the ranks themselves.
    """
    run = tmp_path / "run"
    steps = ["--training.max_steps", "100000", "--optimizer.schedule", "constant", "--checkpoint.interval", "0"]
    words = [str(workshop / "config.yaml"), "--run_dir", str(run), *steps]
    if ask == "SIGUSR1":
        command = [held_python(tmp_path), "-m", "launch.cli", "launch", "local", *words, "--nproc", "2"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as launcher:
            try:
                wait_for_steps(run / "metrics.jsonl", 5)
                launcher.send_signal(signal.SIGUSR1)
                assert launcher.wait(timeout=60) == code
            finally:
                launcher.terminate()
    else:
        ranks = start_ranks(*words, count=2, log=tmp_path / "first")
        try:
            wait_for_steps(run / "metrics.jsonl", 5)
            if ask == "stop file":
                (run / "stop").touch()
            for rank in ranks if ask == "SIGINT" else []:
                assert rank.pid is not None
                os.kill(rank.pid, signal.SIGINT)
            for rank in ranks:
                rank.join(60)
            assert [rank.exitcode for rank in ranks] == [code, code]
        finally:
            end(ranks)
    done = len(rows_of(run))
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == [f"step-{done:08d}"]
    assert not (run / "stop").exists()
    events = jsonl.records(run / "events.jsonl")
    assert events[-1]["event"] == "preemption" and events[-1]["step"] == done
    said = run_ranks(*words, "--training.max_steps", str(done + 3), count=2, log=tmp_path / "later")
    assert f"resumed from {run}/checkpoints/step-{done:08d}" in said
    assert [row["step"] for row in rows_of(run)] == list(range(1, done + 4))
