# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer evaluate MODEL --tasks ...`: the table, the files, the dump; mistakes are one line and leave nothing.

Covers: launch/commands/evaluate_tasks.py, launch/reports.py
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline import UserError
from data_pipeline.tasks import parse_lengths, parse_tasks
from data_pipeline.tokenizer_choice import make_tokenizer
from launch.cli import command, main
from launch.commands.evaluate_tasks import devices_of, picture_name
from launch.reports import json_lines, write_report
from memformer.config.schema import load_config
from memformer.inference import drawing
from memformer.inference.drawing import available
from tests import ROOT
from tests.launch.test_evaluate_command import export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    make_tokenizer("bytes").save(folder)
    return export(folder / "model", folder)


def test_tasks_are_asked_and_everything_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.jsonl").write_text('{"context": "It is blue.", "question": "Which colour?", "answer": "blue"}\n')
    words = ["--tasks", f"needle:digits=1,{tmp_path}/own.jsonl", "--lengths", "0,200", "--depths", "0,1", "--documents"]
    words += ["3", "--out", str(tmp_path / "out"), "--dump", str(tmp_path / "dump.jsonl"), "--json"]
    if not available():
        words.append("--no-pictures")
    assert main(["evaluate", str(model), *words, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert [task["task"] for task in report["tasks"]] == ["needle:digits=1", f"{tmp_path}/own.jsonl"]
    assert [cell["questions"] for cell in report["tasks"][0]["cells"]] == [3, 3, 3]
    assert "needle:digits=1: share of right answers, 95 % interval; chance 0.1" in said.err
    written = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert written == {key: value for key, value in report.items() if key != "seconds"}
    pictures = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert len(pictures) == (2 if available() else 0) and (not pictures or "needle-digits=1.png" in pictures)
    lines = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert len(lines) == 9 + 3 and lines[0]["prompt"].endswith(lines[0]["question"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dump.jsonl", "out", "own.jsonl"]

    again = [word for word in words if not word.startswith("--out")]
    del again[again.index(str(tmp_path / "out"))]
    assert main(["evaluate", str(model), *again, "--device", "cpu", "--lanes", "1"]) == 0
    alone = json.loads(capsys.readouterr().out)
    for ours, theirs in zip(report["tasks"], alone["tasks"], strict=True):
        for cell, other in zip(ours["cells"], theirs["cells"], strict=True):
            assert cell["with_memory"]["right"] == other["with_memory"]["right"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "nothing"], "there is no task 'nothing'"),
        (["--tasks", "copy", "--lengths", "4kB"], "--lengths has '4kB'"),
        (["--tasks", "copy", "--depths", "2"], "--depths has '2'"),
        (["--tasks", "copy", "--documents", "0"], "--documents is 0: give 1 or more"),
        (["--tasks", "copy", "--processes", "0"], "--processes is 0: give 1 or more"),
        (["--data", "set", "--processes", "2"], "--processes is for tasks"),
        (["--tasks", "copy", "--seed", "-1"], "--seed is -1: give 0 or more"),
        (["--tasks", "copy", "--lanes", "0"], "--lanes is 0: give 1 or more"),
        (["--tasks", "copy", "--lengths", "9", "--text", "/nowhere"], "/nowhere"),
        (["--tasks", "copy", "--lengths", "9"], "copy: a document needs 38 tokens, but --lengths has 9"),
        (["--tasks", "copy", "--max-segments", "3"], "--max-segments is for a data set"),
        (["--tasks", "copy", "--out", "{here}/file"], "/file: is a file: name a directory"),
        (["--tasks", "copy", "--out", "{here}/file/deep"], "/file/deep: cannot be made in {here}/file: choose another"),
        (["--tasks", "copy", "--lengths", "0", "--dump", "{here}/no/file"], "--dump {here}/no/file: cannot be written"),
        (["--tasks", "copy", "--lengths", "0", "--dump", "{here}/file/deep"], "/file/deep: cannot be written"),
        (["--tasks", "copy", "--lengths", "0", "--dump", "/dev/null"], "--dump /dev/null: is no file: choose another"),
        (["--tasks", "passkey", "--text", "{here}/file"], "--text {here}/file: none of these tasks hides anything"),
        (["--data", "set", "--lengths", "9"], "--lengths is for tasks: give --tasks, or leave it out"),
        (["--data", "set", "--no-pictures"], "--no-pictures is for tasks"),
        (["--data", "set", "--tasks", "copy"], "not allowed with argument"),
        ([], "one of the arguments --data --tasks --lm-eval is required"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = [word.replace("{here}", str(tmp_path)) for word in words]
    try:
        assert main(["evaluate", str(model), *given, "--device", "cpu"]) == 2
    except SystemExit as end:  # argparse's own
        assert end.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said.replace("{here}", str(tmp_path)) in error
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_reader_that_goes_away_takes_no_file_with_it(model: Path, tmp_path: Path) -> None:
    """Without files to write the command ends at once."""
    words = [sys.executable, "-m", "launch.cli", "evaluate", str(model), "--tasks", "needle,passkey", "--lengths", "0"]
    words += ["--documents", "2", "--device", "cpu"]
    files = ["--out", str(tmp_path / "out"), "--no-pictures", "--dump", str(tmp_path / "dump.jsonl")]
    for more in ([], files):
        readable, writable = os.pipe()
        os.close(readable)
        done = subprocess.run([*words, *more], stdout=writable, stderr=subprocess.PIPE, cwd=ROOT, timeout=120)
        os.close(writable)
        assert (done.returncode, done.stderr) == (0, b"")
    assert len(json.loads((tmp_path / "out" / "tasks.json").read_text())["tasks"]) == 2
    assert len((tmp_path / "dump.jsonl").read_text().splitlines()) == 4


def test_pictures_without_matplotlib_are_refused_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "available", lambda: False)
    assert main(["evaluate", str(model), "--tasks", "copy", "--out", str(tmp_path / "out")]) == 2
    assert "pictures need matplotlib" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_help_names_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "  needle     people's codes told in a text" in capsys.readouterr().out


def test_the_page_s_commands_hold() -> None:
    """From nothing to a heat map: options, tasks, lengths and the configuration with its settings."""
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    lines = re.findall(r"^memformer .*$", page, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["data", "launch", "export", "evaluate"]
    for line in lines:
        name, *words = shlex.split(line)[1:]
        arguments = command(name)[1].parse_args(words)
        if hasattr(arguments, "config"):
            load_config(ROOT / arguments.config, arguments.overrides)
        if getattr(arguments, "tasks", None):
            assert parse_tasks(arguments.tasks) and parse_lengths(arguments.lengths)


def test_processes_share_the_documents_and_count_alike(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes, one thread each: the same JSON, to the last bit of the likelihoods."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = "--tasks copy:symbols=2:length=1,qa1 --lengths 0,300 --depths 0,1 --documents 5 --lanes 2 --json".split()
    found = []
    for processes in ("1", "4"):
        assert main(["evaluate", str(model), *words, "--device", "cpu", "--processes", processes]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1].pop("seconds") > 0
    assert found[0] == found[1] and len(found[0]["tasks"][1]["cells"]) == 3


def test_gpus_are_taken_in_turn_unless_one_is_named() -> None:
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert [device.index for device in devices_of("auto", cuda, 4, 2)] == [0, 1, 0, 1]
    assert devices_of("cuda:0", cuda, 2, 4) == [cuda, cuda] and devices_of("auto", cpu, 2, 0) == [cpu, cpu]


def test_a_picture_has_a_name_that_a_file_may_have() -> None:
    assert picture_name("needle:digits=1:keys=4") == "needle-digits=1-keys=4"
    assert picture_name("/home/a b/own.jsonl") == "home-a-b-own.jsonl"


def test_a_broken_off_report_leaves_the_old_one(tmp_path: Path) -> None:
    class Broken:
        def savefig(self, path: Path) -> None:
            path.touch()
            raise OSError(28, "No space left on device")

    write_report(tmp_path, "report.json", {"old": 1}, {})
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path, "report.json", {"new": 1}, {"picture": Broken()})  # type: ignore[dict-item]
    assert json.loads((tmp_path / "report.json").read_text()) == {"old": 1}
    with pytest.raises(ValueError), json_lines(tmp_path / "lines.jsonl", "--dump") as line:
        line({"a": 1})
        raise ValueError
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
