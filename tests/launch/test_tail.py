# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Log files that are read while they grow: what is new is copied once, byte for byte; a long one's end is quick."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.tail import TAIL_BYTES, LogEcho, last_lines
from tests import ROOT


def test_what_is_new_is_copied_once(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log = tmp_path / "rank.log"
    log.write_bytes(b"an earlier life\n")
    echo = LogEcho(log, log.stat().st_size)
    echo.copy()
    assert capfdbinary.readouterr().out == b""
    for new in (b"half a line", b" and its end\n\xff is no UTF-8\n"):
        with log.open("ab") as file:
            file.write(new)
        echo.copy()
        assert capfdbinary.readouterr().out == new


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    log.write_bytes(b"x" * 100)
    program = (
        "import sys; from pathlib import Path; from launch.tail import LogEcho; sys.stdin.read(); "
        "echo = LogEcho(Path(sys.argv[1]), 0); echo.copy(); echo.copy(); print('still here', file=sys.stderr)"
    )
    words = [sys.executable, "-c", program, str(log)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "still here\n"
    assert process.returncode == 0


def test_the_last_lines_of_a_life(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    log.write_text("earlier\n")
    start = log.stat().st_size
    assert last_lines(log, start) == []
    with log.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(30))
    assert last_lines(log, start, 3) == ["line 27", "line 28", "line 29"]
    assert last_lines(log, start, 99)[0] == "line 0"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room, and could not be read in time
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    lines = last_lines(log)
    assert lines[-1] == "the end"
    assert len(lines[0]) <= TAIL_BYTES
