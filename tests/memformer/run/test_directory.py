# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Files of a run: events, atomic replacement."""

import json
import os
from pathlib import Path

import pytest

from memformer.run.directory import RunDirectory, write_atomically


def test_a_failed_replacement_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
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
