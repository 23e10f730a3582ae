# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`sync`: asks for the very file or directory, and gives its descriptor back whatever comes."""

import os
from pathlib import Path

import pytest

from data_pipeline.files import sync


@pytest.mark.parametrize("directory", [False, True])
def test_the_file_that_is_named_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: bool) -> None:
    path = tmp_path / "thing"
    path.mkdir() if directory else path.write_text("text")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    sync(path)
    assert synced == [path.stat().st_ino]


def test_a_disk_that_fails_is_told_and_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def fail(descriptor: int) -> None:
        opened.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
