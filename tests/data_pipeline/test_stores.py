# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tar and MDS: the same documents, the same plan, the same batches; MDS read and written by its own library too.

Covers: data_pipeline/adopt.py, data_pipeline/mds.py, data_pipeline/shards.py, data_pipeline/store.py
"""

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import DocumentIndex, SegmentStream, ShardStore, UserError, build_dataset
from data_pipeline.adopt import adopt
from data_pipeline.verify import verify_dataset
from tests.data_pipeline.test_segment_stream import assert_same

SHAPE = {"num_lanes": 5, "segment_length": 64, "num_segments": 3, "seed": 9}


@pytest.fixture(scope="module")
def mds(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mds") / "set"
    build_dataset([corpus], out, format="mds", shard_megabytes=0.009)
    assert len(DocumentIndex.load(out).manifest.shards) >= 3
    return out


def library(*arguments: object) -> None:
    """Runs the program that uses mosaicml-streaming itself."""
    if importlib.util.find_spec("streaming") is None:
        pytest.skip("mosaicml-streaming is not installed (make setup installs it)")
    program = Path(__file__).with_name("streaming_library.py")
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, program, *map(str, arguments)], capture_output=True, text=True, timeout=90, env=environment
    )
    assert done.returncode == 0, done.stderr


def documents_of(directory: Path) -> list[list[int]]:
    index = DocumentIndex.load(directory)
    store = ShardStore(index)
    return [store.read(document, 0, int(index.lengths[document])).tolist() for document in range(len(index))]


def test_both_formats_hold_the_same_documents_under_one_fingerprint(dataset: Path, mds: Path) -> None:
    assert documents_of(dataset) == documents_of(mds)
    tar, other = DocumentIndex.load(dataset), DocumentIndex.load(mds)
    assert tar.fingerprint == other.fingerprint and tar.manifest.columns_sha256 != other.manifest.columns_sha256
    assert (tar.shards != other.shards).any()
    assert verify_dataset(other) == []


def test_stopping_on_one_format_and_resuming_on_the_other_changes_nothing(dataset: Path, mds: Path) -> None:
    with SegmentStream(dataset, **SHAPE) as straight:
        expected = list(itertools.islice(straight, 12))
    stopped: list[Path] = [mds, dataset, mds]
    state, found = None, []
    for directory in stopped:
        with SegmentStream(directory, **SHAPE) as stream:
            if state is not None:
                stream.load_state_dict(state)
            found += list(itertools.islice(stream, 4))
            state = json.loads(json.dumps(stream.state_dict()))
    for first, second in zip(expected, found, strict=True):
        assert_same(first, second)


def test_an_mds_build_has_the_same_bytes_whatever_the_workers(corpus: Path, mds: Path, tmp_path: Path) -> None:
    build_dataset([corpus], tmp_path / "set", format="mds", shard_megabytes=0.009, workers=3)
    assert sorted(path.name for path in mds.iterdir()) == sorted(path.name for path in (tmp_path / "set").iterdir())
    for path in mds.iterdir():
        assert path.read_bytes() == (tmp_path / "set" / path.name).read_bytes()


def test_streaming_itself_reads_our_shards(mds: Path, tmp_path: Path) -> None:
    library("read", mds, tmp_path / "read.npz")
    with np.load(tmp_path / "read.npz") as found:
        tokens, names = np.split(found["tokens"], found["ends"][:-1]), found["names"].tolist()
    index = DocumentIndex.load(mds)
    assert [each.tolist() for each in tokens] == documents_of(mds)
    assert names == [index.name(document) for document in range(len(index))]


@pytest.fixture(scope="module")
def by_streaming(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that the library wrote, with the tokens in columns of two kinds."""
    root, documents = tmp_path_factory.mktemp("streaming"), documents_of(dataset)
    flat = np.array([token for document in documents for token in document], "<u2")
    np.savez(root / "documents.npz", tokens=flat, ends=np.cumsum([len(document) for document in documents]))
    library("write", root / "documents.npz", root / "set")
    return root / "set"


@pytest.mark.parametrize("column", ["tokens", "array"])
def test_what_streaming_wrote_is_adopted_and_streams_the_same(
    dataset: Path, by_streaming: Path, tmp_path: Path, column: str
) -> None:
    documents = documents_of(dataset)
    shutil.copytree(by_streaming, tmp_path / "set")
    manifest = adopt(tmp_path / "set", tokenizer="bytes", column=column, name_column="uid")
    assert len(manifest.shards) > 2
    index = DocumentIndex.load(tmp_path / "set")
    assert documents_of(tmp_path / "set") == documents and index.name(1) == "document-1x"
    assert index.fingerprint == DocumentIndex.load(dataset).fingerprint
    assert verify_dataset(index) == []
    with SegmentStream(dataset, **SHAPE) as ours, SegmentStream(index, **SHAPE) as theirs:
        for first, second in itertools.islice(zip(ours, theirs, strict=False), 5):
            assert_same(first, second)


def test_what_cannot_be_adopted_is_named(mds: Path, tmp_path: Path) -> None:
    def complaint(change: dict[str, object], **settings: str) -> str:
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        for path in mds.iterdir():
            if path.suffix == ".mds":
                (copy / path.name).write_bytes(path.read_bytes())
        index = json.loads((mds / "index.json").read_text())
        index["shards"][1] |= change
        (copy / "index.json").write_text(json.dumps(index))
        with pytest.raises(UserError) as caught:
            adopt(copy, **{"tokenizer": "bytes", **settings})
        return str(caught.value)

    assert "has no column words; its columns are name, tokens" in complaint({}, column="words")
    assert "column name is str" in complaint({}, column="name")
    assert "column tokens is bytes; names are str" in complaint({}, name_column="tokens")
    assert "compressed by zstd" in complaint({"compression": "zstd"})
    assert "is not the MDS shard" in complaint({"samples": 99})
    assert "another layout" in complaint({"column_sizes": [None, 3]})
    with pytest.raises(UserError, match="is a data set already"):
        adopt(mds, tokenizer="bytes")
    with pytest.raises(UserError, match="no tokens of a known kind"):
        adopt(tmp_path / "copy" / "nowhere", tokenizer="bytes")
