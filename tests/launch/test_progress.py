# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a long command says of its progress: at a terminal, in a log, and nothing on stdout."""

import pytest

from launch.progress import FIRST_LOG_SECONDS, LOG_SECONDS, Progress


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(terminal: bool, seconds: list[float], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a stage of 100 segments at these seconds since its beginning, one segment a second."""
    clock = Clock()
    with Progress(terminal, clock) as progress:
        for second in seconds:
            clock.now = 100.0 + second
            progress.count("reading", int(second), 100, "segments")
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_a_log_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    assert counted(False, [0, 1, FIRST_LOG_SECONDS - 1], capsys) == "", "a quick command leaves no trace"
    times = [0.0, FIRST_LOG_SECONDS, FIRST_LOG_SECONDS + 5, FIRST_LOG_SECONDS + LOG_SECONDS]
    lines = counted(False, times, capsys).splitlines()
    assert lines == [
        "reading: 15 of 100 segments (15 %), 15 s, 85 s to go",
        "reading: 75 of 100 segments (75 %), 75 s, 25 s to go",
    ]


def test_a_terminal_has_one_line_no_wider_than_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = counted(True, [0, 0.1, 1, 1.1, 2], capsys)
    *states, wiped, rest = shown.split("\r")[1:]
    assert [state.strip() for state in states] == [
        "reading: 0 of 100 segments (0 %), 0 s",
        "reading: 1 of 100 segments (1 %), 1 s,",
        "reading: 2 of 100 segments (2 %), 2 s,",
    ]
    assert {len(state) for state in (*states, wiped)} == {39} and "\n" not in shown
    assert wiped.strip() == rest == "", "nothing of it stays"


def test_a_first_count_says_nothing_of_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """What was counted before the stage was first heard of took who knows how long."""
    clock = Clock()
    with Progress(False, clock) as progress:
        clock.now += FIRST_LOG_SECONDS
        progress.count("reading", 40, 100, "segments")
        clock.now += LOG_SECONDS
        progress.count("reading", 60, 100, "segments")
    assert capsys.readouterr().err.splitlines() == [
        "reading: 40 of 100 segments (40 %), 15 s",
        "reading: 60 of 100 segments (60 %), 75 s, 120 s to go",
    ]


def test_what_cannot_be_counted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(True) as progress:
        progress.say("drawing")
    assert "drawing, 0 s" in capsys.readouterr().err
