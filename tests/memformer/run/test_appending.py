# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run writes down of itself, on a disk that is full for a while, or for good.

A file-size limit of the process stands for the full disk: writing up to it succeeds in part, and then fails.
"""

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memformer.run import jsonl
from memformer.run.appending import Appender


@contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """No file of this process can grow beyond the size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("memformer").propagate = True
    return caplog


def lines_of(path: Path) -> list[int]:
    return [row["step"] for row in jsonl.records(path)]


def line(step: int) -> bytes:
    return b'{"step": %d}\n' % step


@pytest.mark.parametrize("keep_open", [True, False])
@pytest.mark.parametrize("room", [0, 5, 12, 13, 30])
def test_what_a_full_disk_has_held_up_is_written_when_there_is_room(
    tmp_path: Path, said: pytest.LogCaptureFixture, keep_open: bool, room: int
) -> None:
    file = Appender(tmp_path / "metrics.jsonl", keep_open=keep_open)
    file.append(line(1))
    with full_beyond(12 + room):
        for step in range(2, 6):
            file.append(line(step))
    file.append(line(6))
    assert lines_of(file.path) == [1, 2, 3, 4, 5, 6]
    assert file.path.read_bytes() == b"".join(map(line, range(1, 7))), "to the byte"
    warnings = [record.getMessage() for record in said.records]
    assert len(warnings) == 2, "one when it begins, one when it is over"
    assert "cannot be written (File too large): the run goes on" in warnings[0]
    assert "is written again, nothing is missing" in warnings[1]
    file.close()
    assert len(said.records) == 2


def test_what_does_not_fit_into_memory_is_left_out_and_counted(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    file = Appender(tmp_path / "metrics.jsonl", most_waiting=30)
    file.append(line(1))
    with full_beyond(17):
        for step in range(2, 8):
            file.append(line(step))
    file.append(line(8))
    assert lines_of(file.path) == [1, 2, 7, 8], "the line that had begun is completed, the newest are kept"
    assert "4 record(s) are missing" in said.records[-1].getMessage()


def test_what_is_missing_for_good_is_said_at_the_end(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    file = Appender(tmp_path / "metrics.jsonl")
    file.append(line(1))
    with full_beyond(12):
        file.append(line(2))
        file.append(line(3))
        file.close()
    assert "the last 2 record(s) are missing (File too large)" in said.records[-1].getMessage()
    assert lines_of(file.path) == [1]


def test_a_line_that_a_killed_process_has_begun_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + b'{"ste')
    for step in (2, 3):
        file = Appender(path)
        file.append(line(step))
        file.close()
    assert path.read_bytes() == line(1) + b'{"ste\n' + line(2) + line(3)


def test_the_folder_is_made_and_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Appender(tmp_path / "audit/rank-00000.jsonl").append(line(1))
    finally:
        os.umask(before)
    assert (tmp_path / "audit/rank-00000.jsonl").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_went_away_is_no_end(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    file = Appender(tmp_path / "gone/run/metrics.jsonl")
    file.append(line(1))
    assert "cannot be written (No such file or directory)" in said.records[0].getMessage()
