# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reading files of records that a kill may have cut: each reader held to reading everything, at any cut."""

import json
from pathlib import Path

import pytest

from memformer.run import jsonl

ROWS = [{"step": step, "event": "end" if step % 4 == 0 else "step", "text": "é" * (step % 3)} for step in range(1, 13)]
LINES = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_at_any_cut_every_reader_gives_the_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose line break alone is missing is whole."""
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 37)
    text = b"".join(LINES)
    ends = [len(b"".join(LINES[: count + 1])) - 1 for count in range(len(LINES))]
    for cut in range(len(text) + 1):
        path.write_bytes(text[:cut])
        expected = [row for row, end in zip(ROWS, ends, strict=True) if end <= cut]
        assert jsonl.records(path) == expected == jsonl.tail(path)
        ended = [row for row in expected if row["event"] == "end"]
        assert jsonl.last(path, lambda row: row["event"] == "end") == (ended[-1] if ended else None)
        assert jsonl.truncate(path, 100) == int(cut > 0 and cut not in [0, *ends, *(end + 1 for end in ends)])
        assert path.read_bytes() == b"".join(LINES[: len(expected)])


def test_what_is_no_record_is_passed_over_in_the_middle_too(path: Path) -> None:
    """A life was killed in the middle of a line, and the next wrote on."""
    path.write_bytes(
        LINES[0] + b'{"step": 2, "lo' + LINES[1] + b"[3]\n\nnull\n\xff\n" + b"[" * 10**5 + b"\n" + LINES[2]
    )
    assert jsonl.records(path) == jsonl.tail(path) == [ROWS[0], ROWS[2]]
    assert jsonl.last(path, lambda row: row["step"] < 3) == ROWS[0]


def test_the_tail_of_a_long_file_begins_with_a_whole_record(path: Path) -> None:
    path.write_bytes(b"".join(LINES))
    size = len(LINES[-1]) + len(LINES[-2])
    assert jsonl.tail(path, size) == ROWS[-1:]
    assert jsonl.tail(path, size + 1) == ROWS[-2:]


def test_truncation_drops_later_steps_and_half_a_line(path: Path) -> None:
    path.write_bytes(b"".join(LINES[:5]) + b'{"step": 6, "lo')
    assert jsonl.truncate(path, 3) == 3
    assert path.read_bytes() == b"".join(LINES[:3])
    inode = path.stat().st_ino
    assert jsonl.truncate(path, 3) == 0
    assert path.stat().st_ino == inode, "what need not change is not written"


def test_where_there_is_no_file_there_are_no_records(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    assert jsonl.records(nowhere) == jsonl.tail(nowhere) == []
    assert jsonl.last(nowhere, lambda row: True) is None
    assert jsonl.truncate(nowhere, 3) == 0
