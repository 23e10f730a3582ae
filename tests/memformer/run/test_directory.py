# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Files of a run: events, atomic replacement."""

import json
import os
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from memformer.run.directory import RunDirectory, refuse_taken, write_atomically


def test_a_failed_replacement_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    write_atomically(path, b"\xff\r\n")
    assert path.read_bytes() == b"\xff\r\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_the_umask_is_kept(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "latest"
    path.touch(0o644)
    before = os.umask(umask)
    try:
        write_atomically(path, "new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_events_are_json_lines_even_for_what_json_has_no_word_for(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.event("skip", loss=float("nan"), norms=[1.0, float("inf")])
    event = json.loads(run.events.read_text())
    assert (event["event"], event["loss"], event["norms"]) == ("skip", None, [1.0, None])


@pytest.mark.parametrize("place", ["file/run", "link", "file"])
def test_where_nothing_can_be_made_is_refused_at_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"run_dir: {tmp_path}/{place} cannot be made .*: choose another"):
        RunDirectory(tmp_path / place).refuse_unwritable()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match=r"cannot be made: .* cannot be written: mend its permissions"):
            RunDirectory(tmp_path / "a/run").refuse_unwritable()
        with pytest.raises(UserError, match=r"cannot be written: mend its permissions"):
            refuse_taken(tmp_path / "new")
    finally:
        tmp_path.chmod(0o755)


def test_what_is_missing_is_no_obstacle(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "a/b/run").refuse_unwritable()
    RunDirectory(tmp_path).refuse_unwritable()
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_takes_nothings_place(tmp_path: Path) -> None:
    refuse_taken(tmp_path / "new")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    long = "File name too long"  # 250: with what `write_atomically` puts to it
    for name, words in (
        *(("file", "exists"), ("link", "exists"), (".", "exists"), ("none/new", "there is no directory")),
        *(("n" * 250, long), ("n" * 300, long), ("n" * 300 + "/new", "there is no directory")),
    ):
        with pytest.raises(UserError, match=words):
            refuse_taken(tmp_path / name)
