# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Data sets at an address: the same batches as from disk, whatever the server does; a bounded, shared, whole cache.

Covers: data_pipeline/background.py, data_pipeline/remote.py, data_pipeline/shard_cache.py, data_pipeline/transport.py
"""

import errno
import fcntl
import itertools
import multiprocessing
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, FarSettings, SegmentStream, UserError, open_data
from data_pipeline.adopt import adopt
from data_pipeline.background import Background
from data_pipeline.far import RemoteMode, default_cache, make_cache
from data_pipeline.opening import open_store
from data_pipeline.shard_cache import ShardCache
from data_pipeline.transport import open_transport
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import faulty_server
from tests.data_pipeline.faulty_server import FaultyServer, serving
from tests.data_pipeline.test_segment_stream import assert_same

SHAPE = {"num_lanes": 5, "segment_length": 64, "num_segments": 3, "seed": 2}
MODES = ("spool", "range")


@pytest.fixture
def served(dataset: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    """A copy of the data set, which tests may damage."""
    shutil.copytree(dataset, tmp_path / "served" / "set")
    with serving(tmp_path / "served") as server:
        yield server


def settings(tmp_path: Path, mode: str = "spool", **others: Any) -> FarSettings:
    others = {"timeout_seconds": 0.5, "attempts": 4, **others}
    return FarSettings(cache_dir=tmp_path / "cache", mode=mode, **others)


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").glob("*/shards/*") if path.suffix == ".tar"]


@pytest.mark.parametrize("mode", MODES)
def test_far_batches_are_the_near_ones(dataset: Path, served: FaultyServer, tmp_path: Path, mode: str) -> None:
    far = open_data(f"{served.address}/set/", settings(tmp_path, mode))
    assert far.fingerprint == DocumentIndex.load(dataset).fingerprint
    with SegmentStream(dataset, **SHAPE, epochs=2) as near, SegmentStream(far, **SHAPE, epochs=2) as stream:
        for expected, found in itertools.zip_longest(near, stream):
            assert_same(expected, found)
    shards = {name: count for name, count in served.requests.items() if name.endswith(".tar")}
    assert len(shards) == len(far.manifest.shards)
    if mode == "spool":
        assert set(shards.values()) == {1} and len(copies(tmp_path)) == len(shards)
    else:
        assert sum(shards.values()) == 2 * len(far) and not copies(tmp_path)  # a request a document and an epoch
    again = open_data(f"{served.address}/set", settings(tmp_path, mode))
    assert again.path == far.path and served.requests["set/documents.npz"] == served.requests["set/tokenizer.json"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_far_stream_stops_and_resumes_like_a_near_one(
    dataset: Path, served: FaultyServer, tmp_path: Path, mode: str
) -> None:
    with SegmentStream(dataset, **SHAPE) as near:
        expected = list(itertools.islice(near, 9))
    far = open_data(f"{served.address}/set", settings(tmp_path, mode, look_ahead=4))
    with SegmentStream(far, **SHAPE) as stream:
        first = list(itertools.islice(stream, 5))
        state = stream.state_dict()
        next(stream)
        stream.load_state_dict(state)
        for one, other in zip(expected, first + list(itertools.islice(stream, 4)), strict=True):
            assert_same(one, other)


FAULTS = ("error_503", "cut_connection", "no_answer", "slow_body", "trickle", "flipped_bit")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_passing_faults_change_nothing(
    dataset: Path, served: FaultyServer, tmp_path: Path, mode: str, fault: str
) -> None:
    answer = getattr(faulty_server, fault)
    for name in ("manifest.json", "shard-000001.tar"):
        if name != "manifest.json" or fault != "flipped_bit":
            served.faults[name] = [answer, answer] if fault not in ("slow_body", "trickle") else [answer]
    far = open_data(f"{served.address}/set", settings(tmp_path, mode))
    with SegmentStream(dataset, **SHAPE, epochs=1) as near, SegmentStream(far, **SHAPE, epochs=1) as stream:
        for expected, found in itertools.zip_longest(near, stream):
            assert_same(expected, found)
    assert not any(served.faults.values()), "every fault was met"


@pytest.mark.parametrize("mode", MODES)
def test_lasting_faults_are_one_clear_error(served: FaultyServer, tmp_path: Path, mode: str) -> None:
    far = open_data(f"{served.address}/set", settings(tmp_path, mode, attempts=3))
    served.faults["shard-000000.tar"] = [faulty_server.error_503] * 500
    with (
        SegmentStream(far, **SHAPE, epochs=1) as stream,
        pytest.raises(UserError, match=r"set/shard-000000\.tar.* 3 attempts \(status 503 .*check the address"),
    ):
        list(stream)
    with serving(tmp_path) as gone:
        address = gone.address
    with pytest.raises(UserError, match=r"manifest\.json could not be read in 2 attempts .*refused"):
        open_data(address, settings(tmp_path, attempts=2))


def test_bad_addresses_and_settings_are_named(served: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data set at .*/other: it has no manifest\.json"):
        open_data(f"{served.address}/other", settings(tmp_path))
    with pytest.raises(UserError, match=r"set data\.allow_pipe to true"):
        open_data("pipe:cat /etc/hostname", settings(tmp_path))
    with pytest.raises(UserError, match=r"whole files only; set data\.remote_mode to spool"):
        open_data("pipe:cat", settings(tmp_path, "range", allow_pipe=True))
    with pytest.raises(
        UserError, match=r"ftp://host/set: addresses begin with http://, https://, s3://, gs://, az:// or pipe:"
    ):
        open_data("ftp://host/set", settings(tmp_path))
    served.ranges = False
    far = open_data(f"{served.address}/set", settings(tmp_path, "range"))
    with pytest.raises(UserError, match=r"does not serve parts of files; set data\.remote_mode to spool"):
        open_store(far).read(0, 0, 1)


def test_a_pipe_gives_the_same_batches_when_it_is_allowed(dataset: Path, tmp_path: Path) -> None:
    far = open_data(f"pipe:cat '{dataset}'/{{}}", settings(tmp_path, allow_pipe=True))
    with SegmentStream(dataset, **SHAPE, epochs=1) as near, SegmentStream(far, **SHAPE, epochs=1) as stream:
        for expected, found in itertools.zip_longest(near, stream):
            assert_same(expected, found)
    with pytest.raises(UserError, match=r"could not be read in 2 attempts .* ended with 1"):
        open_data("pipe:cat /nowhere", settings(tmp_path, allow_pipe=True, attempts=2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [("cut", "truncated|cut off"), ("flip", "does not have its"), ("remove", "is missing with its shard")],
)
def test_far_damage_names_shard_and_document(
    served: FaultyServer, tmp_path: Path, mode: str, damage: str, complaint: str
) -> None:
    far = open_data(f"{served.address}/set", settings(tmp_path, mode))
    assert isinstance(far, DocumentIndex)
    document = int(np.flatnonzero(far.shards == 1)[0])
    shard = served.root / "set" / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(content[: len(content) // 3])
    else:
        content[int(far.offsets[document]) + 1] ^= 8
        shard.write_bytes(content)
    store = open_store(far)
    with pytest.raises(UserError, match=rf"set/shard-000001\.tar is damaged: document {document} .*({complaint})"):
        store.read(document, 0, 1)
    store.close()
    faults = verify_dataset(far)
    assert faults and {fault.file for fault in faults} == {"shard-000001.tar"}
    assert damage == "remove" or any(fault.document is not None for fault in faults)


def test_the_cache_stays_within_its_bound(served: FaultyServer, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in sorted((served.root / "set").glob("*.tar"))]
    bound = (max(sizes) + min(sizes)) / 1e9
    far = open_data(f"{served.address}/set", settings(tmp_path, cache_gigabytes=bound, look_ahead=1))
    assert isinstance(far, DocumentIndex) and len(sizes) >= 3
    store = open_store(far)
    for step in range(6 * len(sizes)):
        document = int(np.flatnonzero(far.shards == step % len(sizes))[0])
        runs = np.array([[document, 0, 1, 0]])
        store.prepare(10 * step, runs)
        store.read_runs(runs, np.empty(1, far.token_dtype))
        assert sum(path.stat().st_size for path in copies(tmp_path)) <= round(bound * 1e9)
    assert sum(count for name, count in served.requests.items() if name.endswith(".tar")) > len(sizes)
    store.close()


def test_shards_in_use_stay(served: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    far = open_data(f"{served.address}/set", settings(tmp_path, cache_gigabytes=1e-6))
    with SegmentStream(far, **SHAPE, epochs=1) as stream:
        assert sum(batch.valid_tokens for batch in stream) == far.num_tokens
    assert "more than data.cache_gigabytes" in caplog.text


def test_who_finds_a_shard_just_fetched_does_not_wait_for_its_readers(
    served: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for them, two processes that read different shards would wait for each other for ever."""
    far = open_data(f"{served.address}/set", settings(tmp_path))
    assert isinstance(far, DocumentIndex)
    shard, transport = far.manifest.shards[0], open_transport(far.location, settings(tmp_path))
    first, second = (ShardCache(tmp_path / "cache", "set", transport, settings(tmp_path)) for _ in range(2))
    read = first.open(shard, "shard")
    answers = iter([False])  # what the second saw before the first was done
    is_whole = second._is_whole
    monkeypatch.setattr(second, "_is_whole", lambda *arguments: next(answers, None) is None and is_whole(*arguments))
    opening = Background(1, "second").submit(lambda: second.open(shard, "shard"))
    try:
        opening.result(timeout=10).close()
    finally:
        read.close()
    assert served.requests[f"set/{shard.name}"] == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_will_do(
    served: FaultyServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    sizes = [path.stat().st_size for path in sorted((served.root / "set").glob("*.tar"))]
    far = open_data(f"{served.address}/set", settings(tmp_path, cache_gigabytes=max(sizes) / 1e9))
    with SegmentStream(dataset, **SHAPE, epochs=2) as near, SegmentStream(far, **SHAPE, epochs=2) as stream:
        for expected, found in itertools.zip_longest(near, stream):
            assert_same(expected, found)
    assert not list((tmp_path / "cache").rglob("*.fetching"))


def test_what_a_killed_fetch_left_goes_when_room_is_needed(served: FaultyServer, tmp_path: Path) -> None:
    far = open_data(f"{served.address}/set", settings(tmp_path, cache_gigabytes=1e-6))
    assert isinstance(far, DocumentIndex)
    folder = tmp_path / "cache" / far.path.name / "shards"
    folder.mkdir()
    left, running = folder / "shard-000000.tar.0123.fetching", folder / "shard-000001.tar.4567.fetching"
    for path in (left, running):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    store = open_store(far)
    store.read(0, 0, 1)
    store.close()
    assert not left.exists() and running.exists()


def test_shards_in_folders_are_copied_into_folders(tmp_path: Path, dataset: Path) -> None:
    """An adopted data set has them where indexes were merged."""
    ids = [list(b"Hello"), list(b"a river")]
    for number, document in enumerate(ids):
        (tmp_path / "served" / "set" / f"part {number}").mkdir(parents=True)
        np.save(tmp_path / "served" / "set" / f"part {number}" / "ids.npy", np.array([*document, 0], np.uint16))
    adopt(tmp_path / "served" / "set", tokenizer="bytes", eos=0)
    with serving(tmp_path / "served") as server:
        for mode in MODES:
            far = open_data(f"{server.address}/set", settings(tmp_path, mode))
            assert isinstance(far, DocumentIndex)
            store = open_store(far)
            assert [store.read(number, 0, len(each)).tolist() for number, each in enumerate(ids)] == ids
            store.close()
            assert verify_dataset(far) == []


def _read_all(address: str, cache: Path, barrier: Any, results: Any) -> None:
    far = open_data(address, FarSettings(cache_dir=cache, timeout_seconds=5))
    barrier.wait()
    with SegmentStream(far, num_lanes=4, segment_length=64, num_segments=2, epochs=1) as stream:
        results.put(sum(int(batch.tokens.sum()) for batch in stream))


def test_processes_of_a_machine_fetch_each_shard_once(served: FaultyServer, tmp_path: Path) -> None:
    served.latency_seconds = 0.05
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (f"{served.address}/set", tmp_path / "cache", barrier, results)
    processes = [context.Process(target=_read_all, args=arguments, daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    sums = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=30)
    assert len(sums) == 1
    assert {count for name, count in served.requests.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize("mode", MODES)
def test_looking_ahead_hides_the_latency(
    served: FaultyServer, tmp_path: Path, mode: RemoteMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain bound that holds on a busy machine; benchmarks/data.py measures how well it is hidden."""
    monkeypatch.setattr("data_pipeline.stream._STRETCH_ROLLOUTS", 1)  # this data set would be read in one

    def seconds(look_ahead: int, cache: str) -> float:
        far = open_data(f"{served.address}/set", settings(tmp_path / cache, mode, look_ahead=look_ahead))
        with SegmentStream(far, **SHAPE, epochs=1, prefetch=2 if look_ahead else 0) as stream:
            began = time.perf_counter()
            for _ in stream:
                time.sleep(0.005)
            return time.perf_counter() - began

    served.latency_seconds = 0.1
    assert seconds(32, "ahead") < seconds(0, "blind")


@pytest.mark.parametrize("name", ["documents.npz", "tokenizer.json", "manifest.json"])
def test_a_copy_of_the_index_that_is_damaged_is_fetched_again(served: FaultyServer, tmp_path: Path, name: str) -> None:
    """As a power cut leaves it: the name is there, the bytes are not."""
    first = open_data(f"{served.address}/set", settings(tmp_path))
    assert isinstance(first, DocumentIndex)
    (first.path / name).write_bytes(b"")
    again = open_data(f"{served.address}/set", settings(tmp_path))
    assert isinstance(again, DocumentIndex)
    assert again.fingerprint == first.fingerprint and again.tokenizer.vocab_size == first.vocab_size


def test_a_cache_that_cannot_be_written_is_no_damage(
    served: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_data(f"{served.address}/set", settings(tmp_path))
    assert isinstance(index, DocumentIndex)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data_pipeline.remote._copy", full)
    with pytest.raises(UserError, match=r"data\.cache_dir .* cannot be written \(No space left on device\)") as caught:
        verify_dataset(index)
    assert caught.value.exit_code == 1


def test_a_shard_that_is_not_at_its_address_is_told_as_missing(served: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "served" / "set" / "shard-000001.tar").unlink()
    index = open_data(f"{served.address}/set", settings(tmp_path))
    assert isinstance(index, DocumentIndex)
    assert [(fault.file, fault.problem) for fault in verify_dataset(index)] == [
        ("shard-000001.tar", "cannot be read (No such file or directory)")
    ]


def test_long_tries_are_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = "http://127.0.0.1:1/set"  # where nobody listens
    for seconds, said in ((60.0, 0), (-1.0, 1)):
        monkeypatch.setattr("data_pipeline.transport._SILENT_SECONDS", seconds)
        with pytest.raises(UserError, match="could not be read in 2 attempts"):
            open_data(address, settings(tmp_path, attempts=2))
        assert caplog.text.count("attempt 1 of 2 failed") == said


def test_the_cache_that_is_nobody_s_choice_is_of_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_cache(default_cache())
    assert stat.S_IMODE(default_cache().stat().st_mode) == 0o700
    default_cache().chmod(0o777)
    make_cache(default_cache())
    assert stat.S_IMODE(default_cache().stat().st_mode) == 0o700
    make_cache(tmp_path / "a/cache that is named")
    default_cache().rename(tmp_path / "elsewhere")
    default_cache().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is another user's, or a link.*data.cache_dir"):
        make_cache(default_cache())
    if os.getuid() == 0:
        default_cache().unlink()
        default_cache().mkdir()
        os.chown(default_cache(), 1, 1)
        with pytest.raises(UserError, match="is another user's"):
            make_cache(default_cache())
