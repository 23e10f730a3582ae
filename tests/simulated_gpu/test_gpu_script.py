# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Every part of the script for a lent GPU runs on a simulated one, and a script that is stopped goes on.

Not seen here: numbers, compiled layers, and whether a part fits a GPU and its limit.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.simulated_gpu import library
from tests import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library.missing() is not None, reason=str(library.missing())),
]
PATIENCE = "8"  # times the limits of a GPU: the machine of a test is slow and shared


def begun(out: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "benchmarks/gpu.py", "--simulated", "--out", str(out), "--patience", PATIENCE, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def parts_of(out: Path) -> dict[str, Any]:
    path = out.with_suffix(".json")
    parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
    return parts


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The stem of a result of which half is there, since the script was asked to stop; and what was there then."""
    out = tmp_path_factory.mktemp("gpu") / "result"
    process = begun(out)
    try:
        limit = time.monotonic() + 240
        while len(parts_of(out)) < 3 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert said.splitlines()[-1] == "gpu.py: stopped; the same command goes on with what is missing"
    return out, parts_of(out)


def test_what_is_done_stays_when_the_script_is_stopped(stopped: tuple[Path, dict[str, Any]]) -> None:
    _, parts = stopped
    assert list(parts)[:3] == ["stages", "resume", "correctness-compiled"]
    assert [part for part in parts.values() if part.get("failed")] == [], "what was stopped has not failed"


@pytest.mark.timeout(600)  # 90 s of a machine that does nothing else
def test_every_part_runs_and_none_has_a_figure(stopped: tuple[Path, dict[str, Any]]) -> None:
    out, before = stopped
    process = begun(out)
    try:
        said, _ = process.communicate(timeout=560)
    finally:
        process.kill()
    assert process.returncode == 0, said
    parts = parts_of(out)
    assert set(parts) == {*gpu.UNTIMED, *gpu.TIMED} - {*gpu.BUILDS, *gpu.ALIKE}
    assert {name: parts[name] for name in before} == before, "what was there is not done again"
    for part in parts.values():
        assert set(part) == {"part_seconds", "not_compared", "hardware", "commit"}
    assert parts["stages"]["not_compared"] == 6
    assert "nothing is measured, nothing compared" in said
    assert not out.with_suffix(".md").exists()
