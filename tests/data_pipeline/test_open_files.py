# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""However many data sets and shards there are, a process keeps no more files open than a part of what it may.

Covers: data_pipeline/open_files.py
"""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import DocumentIndex, FarSettings, SegmentStream, build_dataset, open_data, open_files
from data_pipeline.opening import open_store
from tests.data_pipeline.faulty_server import serving

SETS, SHARDS = 4, 12


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Data sets of a dozen shards each."""
    root = tmp_path_factory.mktemp("sets")
    (root / "docs").mkdir()
    for number in range(SHARDS):
        (root / "docs" / f"{number:02}.txt").write_text(f"document {number} " * 40)
    build_dataset([root / "docs"], root / "0", shard_megabytes=0.0001)
    assert len(DocumentIndex.load(root / "0").manifest.shards) == SHARDS
    for number in range(1, SETS):
        shutil.copytree(root / "0", root / str(number))
    return [root / str(number) for number in range(SETS)]


@contextmanager
def allowed(files: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_under(root: Path, suffix: str) -> int:
    """Files of this process that lie in a directory."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        found += target.startswith(str(root)) and target.endswith(suffix)
    return found


@pytest.mark.parametrize(("limit", "most"), [(1024, 256), (256, 64), (40, 16), (1 << 20, 4096)])
def test_the_cap_is_a_part_of_what_the_system_allows(limit: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    assert open_files.most() == most
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert open_files.most() == 4096


def test_all_stores_together_keep_to_the_cap(sets: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_STORES", type(open_files._STORES)())
    monkeypatch.setattr(open_files, "most", lambda: 2 * SETS)
    blend = open_data([(str(path), 1.0) for path in sets])
    with SegmentStream(blend, num_lanes=8, segment_length=32, num_segments=2, epochs=2, prefetch=0) as stream:
        tokens = 0
        for batch in stream:
            tokens += batch.valid_tokens
            assert open_under(sets[0].parent, ".tar") <= 2 * SETS
        assert open_under(sets[0].parent, ".tar") > SETS, "what is open stays open"
    assert tokens == 2 * SETS * DocumentIndex.load(sets[0]).num_tokens
    monkeypatch.setattr(open_files, "most", lambda: SETS - 1)  # fewer than one for each
    with SegmentStream(blend, num_lanes=8, segment_length=32, num_segments=2, epochs=1, prefetch=0) as stream:
        for _ in stream:
            assert open_under(sets[0].parent, ".tar") == 0


def test_copies_of_far_shards_keep_to_the_cap(
    sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "_STORES", type(open_files._STORES)())
    monkeypatch.setattr(open_files, "most", lambda: 8)
    with serving(sets[0].parent) as server:
        far = open_data(f"{server.address}/0", FarSettings(cache_dir=tmp_path / "cache", look_ahead=64))
        assert isinstance(far, DocumentIndex)
        store, near = open_store(far), open_store(DocumentIndex.load(sets[0]))
        store.prepare(0, np.array([[document, 0, 1, 0] for document in range(len(far))]))
        for document in [*range(len(far)), 0, 5]:
            length = int(far.lengths[document])
            assert store.read(document, 0, length).tolist() == near.read(document, 0, length).tolist()
            assert open_under(tmp_path / "cache", ".tar") <= 8  # two, and those that four threads are copying
        store.close()
        assert open_under(tmp_path / "cache", "") == 0
        shards = {name: count for name, count in server.requests.items() if name.endswith(".tar")}
    assert set(shards.values()) == {1} and len(shards) == SHARDS, "each is copied once, ahead or when it is read"


def test_a_small_limit_of_the_shell_is_enough(sets: list[Path]) -> None:
    """Real files at a real limit: 48 shards, 5 of them open in each of four sets."""
    in_use = len(os.listdir("/proc/self/fd"))
    blend = open_data([(str(path), 1.0) for path in sets])
    with (
        allowed(in_use + 24),
        SegmentStream(blend, num_lanes=8, segment_length=32, num_segments=2, epochs=1, prefetch=0) as stream,
    ):
        assert sum(batch.valid_tokens for batch in stream) == len(sets) * DocumentIndex.load(sets[0]).num_tokens
