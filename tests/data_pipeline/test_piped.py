# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Pipes as sources: what comes through one is read as often as a build needs it, and leaves nothing behind."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import DocumentIndex, UserError, build_dataset
from tests.data_pipeline.test_build import files_of, texts_of

LINES = "".join(json.dumps({"text": f"document {number} " * number}) + "\n" for number in range(1, 40)).encode()


@contextmanager
def pipe_of(content: bytes) -> Iterator[str]:
    """The path of a pipe as a shell's <(...) names it."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), open(writing, "wb") as file:  # a build that refuses does not read
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


@pytest.mark.parametrize(
    "settings", [{}, {"tokenizer": "train-bpe:300", "validation_fraction": 0.2}], ids=["one reading", "three readings"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_is_read_like_a_file(tmp_path: Path, settings: dict[str, Any], packed: bool) -> None:
    with pipe_of(gzip.compress(LINES) if packed else LINES) as pipe:
        report = build_dataset([pipe], tmp_path / "piped", **settings)
    assert [(file.name, file.kind) for file in report.sources.files] == [("pipe-1", "json")]
    (tmp_path / "pipe-1").write_bytes(LINES)  # a file with the name that the documents have
    build_dataset([tmp_path / "pipe-1"], tmp_path / "read", **settings)
    assert files_of(tmp_path / "piped") == files_of(tmp_path / "read")


def test_a_text_and_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file")
    os.mkfifo(tmp_path / "queue")
    thread = threading.Thread(target=lambda: (tmp_path / "queue").write_bytes(b"from a queue"))
    thread.start()
    with pipe_of(b"a text\nof two lines") as pipe:
        build_dataset([pipe, tmp_path / "a.txt", tmp_path / "queue"], tmp_path / "set")
    thread.join()
    assert texts_of(tmp_path / "set") == {
        "pipe-1": "a text\nof two lines",
        "a.txt": "from a file",
        "pipe-2": "from a queue",
    }


def test_a_build_that_stopped_goes_on_when_the_same_comes_again(tmp_path: Path) -> None:
    def build(content: bytes) -> int:
        with pipe_of(content) as pipe:
            return build_dataset([pipe], tmp_path / "set", shard_megabytes=0.03).resumed_documents

    with pytest.raises(UserError, match=r"source /dev/fd/\d+ line 40: not JSON .* kept"):
        build(LINES + b"{")
    assert build(LINES) > 0
    assert len(DocumentIndex.load(tmp_path / "set")) == 39


def test_a_pipe_that_holds_no_text_is_one_line(tmp_path: Path) -> None:
    for content, complaint in ((b"", "hold no text"), (b"PK\x03\x04", r"/dev/fd/\d+: its first bytes")):
        with pipe_of(content) as pipe, pytest.raises(UserError, match=complaint):
            build_dataset([pipe], tmp_path / "set")
    with pipe_of(LINES) as pipe, pytest.raises(UserError, match="given twice"):
        build_dataset([pipe, pipe], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_standard_input_is_named_by_a_dash(tmp_path: Path) -> None:
    code = "import sys; from data_pipeline import build_dataset; build_dataset(['-'], sys.argv[1])"
    words = [sys.executable, "-c", code, str(tmp_path / "set")]
    subprocess.run(words, input=LINES, check=True)
    assert len(DocumentIndex.load(tmp_path / "set")) == 39
    done = subprocess.run(
        [*words[:-1], str(tmp_path / "none")], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert "source -: standard input is no pipe" in done.stderr.splitlines()[-1]
