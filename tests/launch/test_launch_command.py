# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer launch local`: its arguments, what it starts, and how it refuses a wrong configuration.

Covers: launch/commands/launch.py, launch/commands/launch_local.py, launch/overrides.py
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from launch.commands import launch_local
from launch.overrides import split_overrides
from memformer.run import jsonl
from memformer.run.directory import RunDirectory
from memformer.run.lock import FAILED, RunLock
from tests.books import small_dataset

CONFIG = "run_dir: {folder}/run\ndata:\n  path: {folder}/data\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration file with a data set, on a machine without GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    small_dataset(tmp_path, documents=3, characters=1_500)
    return str(path)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collects what would be launched, and launches nothing."""
    calls: list[dict[str, Any]] = []

    def record(command: list[str], nproc: int, log_dir: Path, **options: Any) -> int:
        calls.append({"command": command, "nproc": nproc, "log_dir": log_dir, **options})
        return 75

    monkeypatch.setattr(launch_local, "launch_processes", record)
    return calls


def test_settings_pass_through_wherever_they_stand(config: str, launched: list[dict[str, Any]], tmp_path: Path) -> None:
    line = ["--training.max_steps", "700", config, "--nproc", "4", "--seed=4", "--resume", "never"]
    assert cli.main(["launch", "local", *line]) == 75, "the ranks' exit code is passed through"
    (call,) = launched
    train = [sys.executable, "-m", "launch.cli", "train", config, "--resume", "never"]
    assert call["command"] == [*train, "--training.max_steps", "700", "--seed=4"]
    assert (call["nproc"], call["log_dir"]) == (4, tmp_path / "run/logs")
    assert call["bind_cores"] is True


def test_a_run_dir_given_on_the_command_line_has_the_logs(
    config: str, launched: list[dict[str, Any]], tmp_path: Path
) -> None:
    cli.main(["launch", "local", config, "--run_dir", str(tmp_path / "other"), "--no-bind-cores"])
    assert launched[0]["log_dir"] == tmp_path / "other/logs"
    assert launched[0]["bind_cores"] is False


@pytest.mark.parametrize(("gpus", "cores", "expected"), [("", [0], 1), ("", [0, 1, 2, 3], 2), ("0,1,2,3", [0], 4)])
def test_the_default_number_of_processes(
    config: str,
    launched: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    gpus: str,
    cores: list[int],
    expected: int,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(launch_local, "available_cores", lambda: cores)
    cli.main(["launch", "local", config])
    assert launched[0]["nproc"] == expected
    assert launched[0]["bind_cores"] is (gpus == "")


def test_more_processes_than_gpus_are_refused_but_not_on_the_cpu(
    config: str, launched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert cli.main(["launch", "local", config, "--nproc", "2"]) == 2
    assert "visible GPUs (1)" in capsys.readouterr().err
    assert cli.main(["launch", "local", config, "--nproc", "2", "--device", "cpu"]) == 75


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["--training.max_stepz", "3"], "training.max_stepz"),
        (["--nprocs", "3"], "no option --nprocs, did you mean --nproc?"),
        (["--gpus", "3"], "no option --gpus, did you mean --nproc?"),
        (["--json"], "has no --json: memformer status RUN --json"),
        (["--resum=never"], "no option --resum, did you mean --resume?"),
        (["--sead", "3"], "--sead: unknown key, did you mean seed?"),
        (["--training.max_steps"], "--training.max_steps"),
        (["--training.max_steps", "many"], "training.max_steps"),
        (["--nproc", "0"], "--nproc"),
        (["--nproc", "two"], "--nproc: is 'two': give a whole number of 1 or more"),
        (["--grace-seconds", "nan"], "--grace-seconds: is 'nan': give a number"),
        (["--grace-seconds", "soon"], "--grace-seconds: is 'soon': give a number"),
        (["--nproc", "9" * 30], "give a whole number of 1 or more"),
        (["stray"], "stray"),
    ],
)
def test_wrong_arguments_are_one_line_and_start_nothing(
    config: str, launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], line: list[str], named: str
) -> None:
    try:
        code: object = cli.main(["launch", "local", config, *line])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert named in error
    assert error.count("\n") == 1
    assert launched == []


def test_a_missing_configuration_is_one_line(
    launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["launch", "local", "no/such.yaml"]) == 2
    error = capsys.readouterr().err
    assert "no/such.yaml" in error
    assert error.count("\n") == 1
    assert launched == []


def in_use(run: Path) -> None:
    (run / "lock").mkdir(parents=True)
    RunLock.take(RunDirectory(run)).accept()


def elsewhere(run: Path) -> None:
    (run / "lock").mkdir(parents=True)
    (run / "lock/00000001.held").write_text('{"host": "node7", "process": 5, "time": 1.0, "boot": "other"}')


def unwritable(run: Path) -> None:
    run.write_text("")


BUSY: dict[str, tuple[Callable[[Path], None], str]] = {
    "a run trains there": (in_use, "is in use: process"),
    "one may on another machine": (elsewhere, "may be in use: process 5 on node7"),
    "no directory": (unwritable, "cannot be made"),
}


@pytest.mark.parametrize("case", BUSY)
def test_a_directory_that_is_in_use_is_left_alone(
    config: str,
    launched: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    make, said = BUSY[case]
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["launch", "local", config]) == 2
    error = capsys.readouterr().err
    assert f"run_dir: {tmp_path}/run {said}" in error and error.count("\n") == 1
    assert launched == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("port", ["0", "65536", "many", "-1"])
def test_a_port_that_is_none_is_refused_before_anything_starts(
    config: str,
    launched: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    port: str,
) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    assert cli.main(["launch", "local", config]) == 2
    assert f"environment variable MASTER_PORT is {port}: set it to a port" in capsys.readouterr().err
    assert launched == []


def test_a_grace_that_is_no_number_is_refused(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEMFORMER_GRACE_SECONDS", "soon")
    assert cli.main(["launch", "local", config, "--nproc", "1"]) == 2
    assert "environment variable MEMFORMER_GRACE_SECONDS is soon: set it to a number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("begun", [True, False])
def test_the_launcher_says_what_came_first_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    run = RunDirectory(tmp_path)
    taken = RunLock.take(run)
    taken.accept()
    taken.release(FAILED)
    (run.checkpoints / "step-00000004").mkdir(parents=True)
    (run.checkpoints / "step-00000004/manifest.json").write_text("{}")
    launch_local.tell_failure(run, 0 if begun else 1, 1, "rank 1 was killed")
    assert "the same command goes on from checkpoint step-00000004" in capsys.readouterr().err
    assert [event["reason"] for event in jsonl.records(run.events)] == (["rank 1 was killed"] if begun else [])


def test_dry_run_prints_each_rank_and_starts_nothing(
    config: str, launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["launch", "local", config, "--nproc", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1" in lines[1]
    assert f"train {config}" in lines[1]
    assert launched == []


def test_help_tells_the_modes_and_true_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for line, expected in ((["launch"], "local"), (["launch", "local"], "(default: 120.0)")):
        with pytest.raises(SystemExit) as end:
            cli.main([*line, "--help"])
        assert end.value.code == 0
        assert expected in capsys.readouterr().out


def test_no_help_shows_none_for_a_default() -> None:
    """An option without a default says in its own words what holds without it."""

    def walk(parser: argparse.ArgumentParser) -> Iterator[str]:
        yield parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from walk(inner)

    texts = [text for name in cli.COMMANDS for text in walk(cli.command(name)[1])]
    assert len(texts) > len(cli.COMMANDS)
    assert not [text for text in texts if re.search(r"\bNone\b|\(default:\s+(True|False|\[\])\)", text)]


def test_split_overrides_keeps_a_value_that_looks_like_an_option() -> None:
    own, overrides = split_overrides(["a.yaml", "--x.y", "-3", "--known", "1", "--z=--w"], {"--known"})
    assert own == ["a.yaml", "--known", "1"]
    assert overrides == ["--x.y", "-3", "--z=--w"]
