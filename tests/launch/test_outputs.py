# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""stdout and stderr that have no room for a while, for good, or no reader: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.outputs import PatientOutput
from tests import ROOT

TALK = """
import sys
from launch.outputs import make_outputs_patient
make_outputs_patient()
for number in range(3):
    print("line", number, "\u00e9")
    print("error", number, file=sys.stderr)
"""


@pytest.mark.parametrize("place", ["/dev/full", "closed pipe", "file"])
def test_a_process_ends_well_wherever_its_words_go(tmp_path: Path, place: str) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    target = {"closed pipe": writable, "file": os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)}
    descriptor = target.get(place) or os.open(place, os.O_WRONLY)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", TALK]
    done = subprocess.run(
        command, stdout=descriptor, stderr=descriptor, cwd=ROOT, env=environment, timeout=60, check=False
    )
    os.close(writable)
    assert done.returncode == 0
    expected = [f"{kind} {n}{end}" for n in range(3) for kind, end in (("line", " é"), ("error", ""))]
    assert (tmp_path / "log").read_text("utf-8").splitlines() == (expected if place == "file" else [])


def test_what_is_missing_is_said_when_there_is_room_again(tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    spare = os.dup(log)
    output = PatientOutput(log)
    assert output.write(b"one\n") == 4
    os.dup2(os.open("/dev/full", os.O_WRONLY), log)
    assert output.write(b"two\nthree\n") == 10
    assert output.write(b"four") == 4
    os.dup2(spare, log)
    output.write(b"five\n")
    output.write(b"six\n")
    assert (tmp_path / "log").read_text() == "one\n\n(3 lines are missing: no room for them)\nfive\nsix\n"


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["data", "build", "text", "--out", "data"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_reader_has_gone_ends_quietly(tmp_path: Path, words: list[str], unbuffered: str) -> None:
    """As `| head` goes; what it was to make is whole."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("memory " * 40)
    readable, writable = os.pipe()
    os.close(readable)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.cli", *words]
    done = subprocess.run(
        command, stdout=writable, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, timeout=60, check=False
    )
    os.close(writable)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "data" / "manifest.json").exists() == ("build" in words)


def test_another_pipe_that_breaks_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def breaks(arguments: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("launch.cli._run", breaks)
    with pytest.raises(BrokenPipeError):
        main(["status"])
