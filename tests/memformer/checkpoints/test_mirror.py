# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Copies of checkpoints and exports on a real S3 server, complete or absent, and a run that goes on from them.

Covers: memformer/checkpoints/copying.py, memformer/checkpoints/fetching.py, memformer/checkpoints/mirror.py,
memformer/checkpoints/mirrored.py, memformer/checkpoints/export_copy.py, memformer/training/mirroring.py
"""

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.object_store import CloudError, ObjectStore
from launch.acceptance import check_resume
from launch.checks import check_mirror
from launch.cli import main
from memformer.checkpoints import directory as files
from memformer.checkpoints import mirrored
from memformer.checkpoints.copying import copy_down, copy_up
from memformer.checkpoints.export_copy import fetch_export, put_export, refuse_taken
from memformer.checkpoints.fetching import Wanted, fetch, wanted
from memformer.checkpoints.mirror import Mirror, MirrorReport
from memformer.checkpoints.resuming import Start, choose
from memformer.checkpoints.saving import SaveReport
from memformer.checkpoints.state import Progress
from memformer.config.schema import CheckpointConfig
from memformer.processes.group import World
from memformer.processes.topology import Mesh
from memformer.run.directory import RunDirectory
from memformer.run.grace import VARIABLE, Grace
from memformer.training.callbacks import TrainingState
from memformer.training.mirroring import Mirroring
from tests import clouds
from tests.books import small_dataset
from tests.clouds import FaultyProxy
from tests.faults.lives import events_of, finish, metrics_of, start, tiny_config, wait_for
from tests.memformer.checkpoints.test_resuming import save, seal

pytest.importorskip("obstore")
NUMBERS = itertools.count()


@pytest.fixture
def store(s3_proxy: FaultyProxy) -> ObjectStore:
    """An address that no other test has."""
    return ObjectStore(f"s3://{clouds.BUCKET}/run-{next(NUMBERS)}", attempts=2, timeout_seconds=1)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


class Copies:
    """A mirror, and what it has reported."""

    def __init__(self, store: ObjectStore, run: RunDirectory, **settings: Any) -> None:
        self.reports: list[MirrorReport] = []
        self.mirror = Mirror(store, run, CheckpointConfig(**settings), self.reports.append)

    def of(self, *checkpoints: Path) -> list[MirrorReport]:
        """Has checkpoints copied one after the other; what was reported of them."""
        for path in checkpoints:
            before = len(self.reports)
            self.mirror.offer(path)
            until(lambda before=before: len(self.reports) > before and not self.mirror.busy)  # type: ignore[misc]
        return self.reports[-len(checkpoints) :]


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)


@pytest.fixture
def copies(store: ObjectStore, run: RunDirectory) -> Iterator[Copies]:
    copies = Copies(store, run)
    yield copies
    copies.mirror.close(5)


def test_a_copy_that_breaks_off_is_none_and_is_gone_on_with(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory
) -> None:
    path = save(run, 4)
    entries = files.read_manifest(path)["files"]
    s3_proxy.always = [("PUT", clouds.refusing(503, "SlowDown"))]
    s3_proxy.faults = [("PUT", clouds.passed_on)]  # the first file gets through
    with pytest.raises(CloudError, match=r"could not be written in 2 attempts: status 503 SlowDown"):
        copy_up(store, path, path.name, entries, files.MANIFEST)
    assert len(store.sizes()) == 1 and mirrored.complete_steps(store) == {}
    s3_proxy.always, first = [], next(iter(store.sizes())).rpartition("/")[2]
    s3_proxy.sent.clear()
    copied = copy_up(store, path, path.name, entries, files.MANIFEST)
    assert first not in {name for name, count in s3_proxy.sent.items() if count}
    assert copied.found == entries[next(iter(entries))]["bytes"] and mirrored.complete_steps(store) == {4: path.name}
    again = copy_up(store, path, path.name, entries, files.MANIFEST)
    assert again.sent == 0 and again.found == sum(entry["bytes"] for entry in entries.values())
    lost = f"{path.name}/{next(iter(entries))}"
    store.delete([lost])  # by somebody else
    assert copy_up(store, path, path.name, entries, files.MANIFEST).sent == entries[next(iter(entries))]["bytes"]


def test_of_two_lives_at_once_the_later_one_has_the_mirror(
    store: ObjectStore, run: RunDirectory, copies: Copies
) -> None:
    """As when a machine that was thought dead comes back: two futures of one run in one mirror would be none."""
    assert copies.of(save(run, 4))[0].error is None
    elsewhere = RunDirectory(run.root.parent / "elsewhere")
    elsewhere.create()
    mirrored.adopt(store, elsewhere)
    later = Copies(store, elsewhere)
    try:
        assert later.of(save(elsewhere, 5))[0].error is None
        said = copies.of(save(run, 6))[0].error or ""
        assert f"is copied to by {elsewhere.root} on " in said and said.endswith("end one of the two"), said
        assert mirrored.complete_steps(store).keys() == {4, 5}
        assert later.of(save(elsewhere, 6))[0].error is None
        store.delete([mirrored.OWNER])  # by somebody else: it is said again
        assert later.of(save(elsewhere, 7))[0].error is None and mirrored.OWNER in store.sizes()
    finally:
        later.mirror.close(5)


def test_another_checkpoint_of_the_same_step_takes_the_place_of_the_first(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies
) -> None:
    copies.of(save(run, 4))
    path = save(run, 4, tokens=2)  # trained again, to something else
    s3_proxy.always = [("PUT", clouds.refusing(503, "SlowDown"))]
    assert "503" in (copies.of(path)[0].error or "")
    assert mirrored.complete_steps(store) == {}, "half of one and half of the other is no checkpoint"
    s3_proxy.always = []
    assert copies.of(path)[0].error is None
    assert mirrored.read_manifest(store, path.name)[1] == files.read_manifest(path)


@pytest.mark.parametrize("read_back", [True, False], ids=["read-back", "by-size"])
def test_bytes_that_change_on_the_way_are_found_where_they_are_read_back(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, read_back: bool
) -> None:
    copies = Copies(store, run, mirror_read_back=read_back)
    s3_proxy.faults = [(f"GET /bucket/{store.address.prefix}/step-00000004/parameters", clouds.flipped_bit)]
    report = copies.of(save(run, 4))[0]
    copies.mirror.close(5)
    if read_back:
        assert report.copied is None and "is not what was sent (SHA-256 differs)" in str(report.error)
    else:
        assert report.error is None and s3_proxy.requests["GET rank-00000.safetensors"] == 0


def test_as_many_are_kept_there_as_here(store: ObjectStore, run: RunDirectory) -> None:
    copies = Copies(store, run, keep_last=2, keep_interval=8)
    store.put("step-00000002/parameters/half", b"of a life that was killed")
    store.put("step-00000003/manifest.json", b"of another version")
    reports = copies.of(*(save(run, step) for step in (4, 8, 12, 16, 20)))
    copies.mirror.close(5)
    assert [report.deleted for report in reports] == [(), (), (4,), (), (12,)]
    assert list(mirrored.complete_steps(store)) == [3, 8, 16, 20], "what cannot be used stays, and does not count"
    assert {name.partition("/")[0] for name in store.sizes()} == {
        "mirror.json",
        "step-00000003",
        "step-00000008",
        "step-00000016",
        "step-00000020",
    }


def test_what_is_equal_in_the_copy_before_is_not_sent_again(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies
) -> None:
    """As frozen weights are, in every checkpoint."""
    name = "rank-00000.safetensors"
    copies.of(save(run, 4))
    size = s3_proxy.sent[name]
    second = save(run, 8)
    assert copies.of(second)[0].error is None and s3_proxy.sent[name] == size
    assert fetch_to(store, second.name, run.root / "there") == files.read_manifest(second)["files"].keys()
    again = Copies(store, run)  # another life, on a bucket that copies nothing by itself
    s3_proxy.always = [("PUT /bucket/", clouds.refusing_copies)]
    third = again.of(save(run, 12))[0]
    again.mirror.close(5)
    assert (
        third.error is None
        and s3_proxy.sent[name] == 2 * size
        and third.copied is not None
        and third.copied.sent > size
    )


def fetch_to(store: ObjectStore, name: str, folder: Path) -> Any:
    """The names of the files of a copy, all of which are what its manifest says."""
    entries = mirrored.read_manifest(store, name)[1]["files"]
    copy_down(store, name, folder, entries)
    return entries.keys()


def test_a_copy_that_is_half_deleted_is_none(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies
) -> None:
    copies.of(save(run, 4), save(run, 8))
    s3_proxy.faults = [("?delete", clouds.passed_on)]
    s3_proxy.always = [("?delete", clouds.refusing(503, "SlowDown"))]
    report = copies.of(save(run, 12))[0]
    assert report.copied is not None and "could not be deleted in 2 attempts: status 503" in str(report.error)
    assert list(mirrored.complete_steps(store)) == [8, 12] and store.sizes("step-00000004")
    s3_proxy.always = []
    copies.of(save(run, 16))
    assert not store.sizes("step-00000004") and list(mirrored.complete_steps(store)) == [12, 16]


def test_what_fails_is_told_and_the_next_checkpoint_is_copied(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies
) -> None:
    s3_proxy.always = [("/bucket/", clouds.refusing(403, "ExpiredToken"))]
    report = copies.of(save(run, 4))[0]
    assert report.copied is None and "the credentials have expired" in str(report.error)
    assert copies.mirror.missing() == [4]
    s3_proxy.always = []
    assert copies.of(save(run, 8))[0].error is None and copies.mirror.missing() == []
    assert list(mirrored.complete_steps(store)) == [8]
    s3_proxy.always = [("PUT", clouds.cut_connection)]
    assert "the connection broke off" in str(copies.of(save(run, 12))[0].error)
    s3_proxy.always = []
    copies.mirror.offer_failed()  # as at the end of a run
    until(lambda: not copies.mirror.busy)
    assert list(mirrored.complete_steps(store)) == [8, 12]


def test_keys_that_are_renewed_are_used_for_the_next_checkpoint(
    s3_proxy: FaultyProxy, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "credentials"
    keys.write_text(f"[default]\naws_access_key_id = {clouds.KEY}\naws_secret_access_key = old\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    copies = Copies(ObjectStore(f"s3://{clouds.BUCKET}/run-{next(NUMBERS)}", 1, 1), run)
    assert "access is denied" in str(copies.of(save(run, 4))[0].error)
    keys.write_text(keys.read_text().replace("old", clouds.SECRET))
    assert copies.of(save(run, 8))[0].error is None
    copies.mirror.close(5)


def test_a_checkpoint_that_is_being_copied_stays_and_the_newest_goes_next(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies
) -> None:
    released = threading.Event()
    s3_proxy.faults = [("PUT /bucket/run-", clouds.passed_on), ("PUT", clouds.held_until(released))]
    settings = CheckpointConfig(keep_last=1)
    for step in (4, 8, 12):
        copies.mirror.offer(save(run, step))
        until(lambda: sum(count for name, count in s3_proxy.requests.items() if name.startswith("PUT")) == 2)
        files.delete_old(run, step, settings)
    assert [files.step_of(path) for path in files.candidates(run)] == [12, 4], "8 waited, until 12 came"
    assert copies.mirror.missing() == [4, 12]
    released.set()
    until(lambda: not copies.mirror.busy)
    assert [report.step for report in copies.reports] == [4, 12] and copies.reports[1].error is None
    files.delete_old(run, 12, settings)
    assert [files.step_of(path) for path in files.candidates(run)] == [12]


def test_a_mirror_has_one_run(store: ObjectStore, run: RunDirectory, copies: Copies, tmp_path: Path) -> None:
    copies.of(save(run, 4))
    start_here = Start(files.step_directory(run, 4), own=True)
    mirrored.refuse_unfit(store, run, start_here)
    other = RunDirectory(tmp_path / "other")
    other.create()
    with pytest.raises(UserError, match=rf"is the mirror of another run \({run.root} on .*--resume {store.address}"):
        mirrored.refuse_unfit(store, other, Start())
    report = Copies(store, other).of(save(other, 8))[0]
    assert "is the mirror of another run" in str(report.error) and list(mirrored.complete_steps(store)) == [4]
    with pytest.raises(
        UserError, match=r"has step-00000004, and the run starts afresh: go on from there with --resume"
    ):
        mirrored.refuse_unfit(store, run, Start())


def test_a_run_waits_for_its_last_copy_as_long_as_it_may_and_says_how_far_it_got(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, tmp_path: Path
) -> None:
    checkpoint = {"mirror": str(store.address), "mirror_wait_seconds": 0.2}
    config = tiny_config(tmp_path, "run", checkpoint=checkpoint)
    alone, nothing = World(0, 1, 0, torch.device("cpu"), Mesh.of_data(0, 1)), cast(Any, None)
    state = TrainingState(config, run, alone, nothing, nothing, Progress(step=4))
    path = save(run, 4)
    patient = config.checkpoint.model_copy(update={"mirror_wait_seconds": 600})
    for settings, grace in ((config.checkpoint, Grace({})), (patient, Grace({VARIABLE: "0.4"}))):
        released = threading.Event()
        s3_proxy.always = [("PUT /bucket/run-", clouds.held_until(released))]
        with Mirroring(settings, state, Start(), grace) as mirroring:
            mirroring.after_save(state, SaveReport(4, path, None, 0.0, 0.0, 0))
            began = time.monotonic()
            grace.began(began)
            mirroring.wait()
            assert 0.15 < time.monotonic() - began < 10
            released.set()
            s3_proxy.always = [("PUT", clouds.refusing(403, "AccessDenied"))]
    assert [event["steps"] for event in events_of(run, "mirror_incomplete")] == [[4], [4]]
    s3_proxy.always = []
    with Mirroring(config.checkpoint, state, Start(path, own=True), Grace({})) as mirroring:  # the next life
        until(lambda: bool(events_of(run, "mirror")))
        mirroring.wait()
    assert len(events_of(run, "mirror_incomplete")) == 2 and list(mirrored.complete_steps(store)) == [4]


@pytest.mark.distributed
def test_a_run_that_is_asked_to_stop_does_not_outlast_the_time_that_its_launcher_gives(
    s3_proxy: FaultyProxy, store: ObjectStore, tmp_path: Path
) -> None:
    """By `mirror_wait_seconds` it would wait for ten minutes, and be killed before it can say that it has saved."""
    small_dataset(tmp_path, characters=3_000)
    sections = {"training": {"max_steps": 10_000}, "checkpoint": {"interval": 0, "mirror": str(store.address)}}
    environment = {**clouds.environment(s3_proxy.address), VARIABLE: "2"}
    s3_proxy.always = [("PUT", clouds.refusing(503, "SlowDown"))]
    run, stopped = RunDirectory(tmp_path / "run"), start(tmp_path, "run", sections, environment=environment)
    wait_for(lambda: run.metrics.exists() and len(metrics_of(run)) > 2, stopped)
    asked = time.monotonic()
    for process in stopped:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
    assert finish(stopped, 60) == [75, 75], (tmp_path / "run-0.log").read_text()
    assert 0.5 < time.monotonic() - asked < 60
    (saved,), (missing,) = events_of(run, "save"), events_of(run, "mirror_incomplete")
    said = f"has no complete copy of step {saved['step']}: the same command goes on with it, when it is started again"
    assert missing["steps"] == [saved["step"]] and said in (tmp_path / "run-0.log").read_text()


def settings_of(store: ObjectStore) -> CheckpointConfig:
    return CheckpointConfig(mirror=str(store.address))


def test_a_bare_machine_fetches_the_newest(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies, tmp_path: Path
) -> None:
    first, second = save(run, 4), save(run, 8)
    copies.of(first, second)
    bare, settings = RunDirectory(tmp_path / "bare"), settings_of(store)
    s3_proxy.faults = [("GET /bucket/", fault) for fault in (clouds.cut_body, clouds.refusing(500, "InternalError"))]
    found = fetch(bare, wanted(bare, str(store.address), settings), settings)
    assert Path(found) == files.step_directory(bare, 8) and files.verify(Path(found)) == files.verify(second)
    assert (bare.checkpoints / "latest").read_text().strip() == "step-00000008"
    mirrored.refuse_unfit(store, bare, Start(Path(found), own=True))  # it is this run's mirror now
    # The same command again goes on from what the run has saved since.
    save(bare, 12)
    assert fetch(bare, wanted(bare, str(store.address), settings), settings) == "auto"
    named = RunDirectory(tmp_path / "named")
    found = fetch(named, wanted(named, f"{store.address}/step-00000004", CheckpointConfig()), CheckpointConfig())
    assert Path(found) == files.step_directory(named, 4)
    assert wanted(named, f"{store.address}/step-00000004", CheckpointConfig()).name is None
    with pytest.raises(UserError, match=r"run_dir .*/run has checkpoints of its own \(the newest is step-00000008\)"):
        wanted(run, str(store.address), CheckpointConfig())


def test_a_checkpoint_is_fetched_for_a_job_that_resumes_by_itself(
    store: ObjectStore, run: RunDirectory, copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies.of(save(run, 4))
    bare = RunDirectory(tmp_path / "bare")
    assert main(["checkpoint", "fetch", str(bare.root), "--from", str(store.address), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["checkpoint"] == str(files.step_directory(bare, 4)) and not list(bare.root.glob("lock/*.held"))
    assert choose(bare, "auto").step == 4
    mirrored.refuse_unfit(store, bare, choose(bare, "auto"))
    assert main(["checkpoint", "fetch", str(bare.root)]) == 2
    assert "--from ADDRESS belongs to fetch" in capsys.readouterr().err


def test_what_cannot_be_fetched_is_refused_and_leaves_nothing(
    s3_proxy: FaultyProxy, store: ObjectStore, run: RunDirectory, copies: Copies, tmp_path: Path
) -> None:
    bare, settings, address = RunDirectory(tmp_path / "bare"), CheckpointConfig(), str(store.address)
    with pytest.raises(UserError, match=r"run-\d+: holds no complete checkpoint"):
        wanted(bare, address, settings)
    path = save(run, 4)
    copies.of(path)
    with pytest.raises(UserError, match=r"step-00000005: is no complete checkpoint: those in .* are step-00000004"):
        wanted(bare, f"{address}/step-00000005", settings)
    assert wanted(bare, address, settings).name == path.name
    config = tiny_config(tmp_path, "bare")
    check_resume(config, address, None)  # before anything is started
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        check_resume(config, f"{address}/elsewhere", None)
    what = Wanted(store, path.name)  # of fewer attempts
    s3_proxy.faults = [("/parameters/", clouds.flipped_bit)]
    older = files.step_directory(run, 2)
    store.put(f"{older.name}/{files.MANIFEST}", b"{}")
    named = (
        rf"its content is not what was put there .*; others there are {older.name}: name one, {address}/{older.name}"
    )
    with pytest.raises(UserError, match=rf"rank-00000\.safetensors: {named}"):
        fetch(bare, what, settings)
    store.delete([f"{older.name}/{files.MANIFEST}"])
    s3_proxy.always = [("/parameters/", clouds.cut_body)]
    with pytest.raises(UserError, match="could not be read in 2 attempts: the answer was cut off"):
        fetch(bare, what, settings)
    assert not bare.root.exists()
    s3_proxy.always = [("/bucket", clouds.refusing(503, "SlowDown"))]
    with pytest.raises(UserError, match="503"):
        wanted(bare, address, settings)
    s3_proxy.always = []
    seal(path, files={"../../outside": {"bytes": 1, "sha256": "x"}})
    store.put(f"{path.name}/manifest.json", (path / "manifest.json").read_bytes())
    with pytest.raises(UserError, match=r"names '\.\./\.\./outside', outside the checkpoint; it has no other"):
        fetch(bare, what, settings)


@pytest.mark.distributed
def test_a_run_that_is_killed_in_a_copy_goes_on_bit_equal_from_the_mirror(
    s3_proxy: FaultyProxy, store: ObjectStore, tmp_path: Path
) -> None:
    """On two processes; the machine with the run directory is lost."""
    small_dataset(tmp_path, characters=3_000)
    sections = {"training": {"max_steps": 6}, "parallel": {"zero_stage": 2}}
    mirrored_run = {**sections, "checkpoint": {"interval": 2, "mirror": str(store.address)}}
    environment = clouds.environment(s3_proxy.address)
    assert finish(start(tmp_path, "peace", sections)) == [0, 0]
    released = threading.Event()
    s3_proxy.always = [("/step-00000004/parameters/rank-00001", clouds.held_until(released))]
    doomed = start(tmp_path, "run", mirrored_run, environment=environment)
    run = RunDirectory(tmp_path / "run")
    wait_for(lambda: any(name.endswith("rank-00000.safetensors") for name in store.sizes("step-00000004")), doomed)
    for process in doomed:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    finish(doomed)
    released.set()
    s3_proxy.always = []
    assert list(mirrored.complete_steps(store)) == [2] and store.sizes("step-00000004")
    before = metrics_of(run)[:2]
    shutil.rmtree(run.root)
    # A run that starts afresh beside its own mirror is refused, by all processes.
    assert finish(start(tmp_path, "run", mirrored_run, environment=environment)) == [1, 1]
    again = start(tmp_path, "run", mirrored_run, str(store.address), environment)
    assert finish(again) == [0, 0], (tmp_path / "run-0.log").read_text()
    assert before + metrics_of(run) == metrics_of(RunDirectory(tmp_path / "peace"))
    assert [event["step"] for event in events_of(run, "fetch")] == [2]
    assert events_of(run, "mirror")[-1]["step"] == 6 and not events_of(run, "mirror_incomplete")
    assert 6 in mirrored.complete_steps(store)


def make_export(directory: Path) -> dict[str, bytes]:
    content = {"config.json": b'{"format": 1}', "model.safetensors": os.urandom(1000), "tokenizer.json": b"{}"}
    directory.mkdir()
    for name, data in content.items():
        (directory / name).write_bytes(data)
    return content


def test_an_export_is_there_complete_or_not_at_all(s3_proxy: FaultyProxy, store: ObjectStore, tmp_path: Path) -> None:
    content, address, cache = make_export(tmp_path / "export"), str(store.address), tmp_path / "cache"
    s3_proxy.always = [("PUT /bucket/run-", clouds.refusing(503, "SlowDown"))]
    s3_proxy.faults = [("PUT", clouds.passed_on), ("PUT", clouds.passed_on)]
    with pytest.raises(CloudError, match=r"config\.json could not be written in 2 attempts: status 503"):
        put_export(store, tmp_path / "export")
    with pytest.raises(UserError, match=r"run-\d+: holds no export: give an address that memformer export --out has"):
        fetch_export(address, cache)
    s3_proxy.always = []
    refuse_taken(store)  # what is left of one is gone on with
    assert put_export(store, tmp_path / "export").found == 1002
    s3_proxy.faults = [(f"GET /bucket/{store.address.prefix}/model", clouds.flipped_bit)]
    with pytest.raises(UserError, match=r"model\.safetensors: its content is not what was put there"):
        fetch_export(address, cache)
    assert list((cache / "exports").iterdir()) == []
    s3_proxy.faults = []
    fetched = fetch_export(address, cache)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == content
    asked = s3_proxy.requests["GET model.safetensors"]
    assert fetch_export(address, cache) == fetched and s3_proxy.requests["GET model.safetensors"] == asked
    with pytest.raises(UserError, match=r"--out .*/run-\d+: holds something already: choose another address"):
        refuse_taken(store)


def test_the_doctor_looks_at_a_mirror(s3_proxy: FaultyProxy, store: ObjectStore) -> None:
    assert [finding.level for finding in check_mirror(str(store.address))] == ["fine"]
    assert store.sizes() == {}
    s3_proxy.always = [("PUT", clouds.refusing(403, "AccessDenied"))]
    found = next(iter(check_mirror(str(store.address))))
    assert found.level == "error" and "access is denied (status 403 AccessDenied)" in found.found
