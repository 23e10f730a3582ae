# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer profile`: tables, JSON and a picture of the traces of two processes; what it refuses.

Covers: launch/commands/profile.py
"""

import json
from pathlib import Path

import pytest

from launch.cli import main
from tests.memformer.run.test_traces import PARTS, launched, written

WINDOW = "steps-00000003-00000003"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    kernels = [*launched(1, 12, "gemm", 20, 40), *launched(2, 65, "adam", 90, 5)]
    for rank in (0, 1):
        written(tmp_path / "run" / "profile" / WINDOW / f"rank-0000{rank}.json.gz", [*PARTS, *kernels])
    return tmp_path / "run"


def test_tables_and_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(run), "--out", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "rank-00001: steps 3 to 3, 0.0001 s a step, the device was busy 45% of it" in said
    (forward,) = {line for line in said if line.startswith("  segment forward")}
    assert forward.split() == ["segment", "forward", "1", "3e-05", "30.0%", "4e-05"]
    assert said[-1].startswith("wrote ") and said[-1].endswith("profile.png")
    report = json.loads((tmp_path / "report" / "profile.json").read_text())
    assert list(report["processes"]) == ["rank-00000", "rank-00001"]
    assert (tmp_path / "report" / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_json_and_one_window_by_its_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(run / "profile" / WINDOW), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["directory"].endswith(WINDOW) and found["processes"]["rank-00000"]["steps"] == [3]


def test_what_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, words in ((tmp_path / "none", "there is no such directory"), (tmp_path, "holds no trace")):
        assert main(["profile", str(place)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
