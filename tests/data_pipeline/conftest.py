# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A small corpus of files of every kind, and the data set built from it."""

import gzip
import json
import random
from pathlib import Path

import pytest

from data_pipeline import DocumentIndex, build_dataset


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(["the", "memory", "Zoë", "reads", "a", "long", "书", "\n"]) for _ in range(words))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 documents with text (4 text files, 9 JSON lines, 1 to about 6,000 bytes), 1 without, and files to ignore."""
    root = tmp_path_factory.mktemp("corpus")
    generator = random.Random(5)
    (root / "a.txt").write_bytes(b"\xef\xbb\xbfbyte order mark and\r\nWindows line ends\r\n")
    (root / "one.md").write_text("x")
    (root / "empty.txt").write_text("")
    (root / "deep").mkdir()
    (root / "deep" / "book.txt").write_text(sentence(generator, 1000))
    (root / "deep" / "packed.txt.gz").write_bytes(gzip.compress(sentence(generator, 300).encode()))
    records = [{"id": f"line-{i}", "text": sentence(generator, 10 + 40 * i)} for i in range(9)]
    (root / "lines.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / ".hidden.txt").write_text("not read")
    return root


@pytest.fixture(scope="session")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as bytes in several shards; not to be changed (copy it to damage it)."""
    out = tmp_path_factory.mktemp("built") / "set"
    build_dataset([corpus], out, shard_megabytes=0.012)
    assert len(DocumentIndex.load(out).manifest.shards) >= 3
    return out
