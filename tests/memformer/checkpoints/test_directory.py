# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which checkpoints stay and which go, on real directories."""

import json
from pathlib import Path

import pytest

from memformer.checkpoints import directory as files
from memformer.config.schema import CheckpointConfig
from memformer.run.directory import RunDirectory

HOUR = 3600.0
STATE = {
    "format": files.FORMAT,
    **{name: {} for name in ("model", "parameters", "data")},
    **dict.fromkeys(("tokens", "num_lanes", "world_size", "zero_stage"), 1),
    **dict.fromkeys(("tokenizer_sha256", "precision", "device"), ""),
    "probe_losses": [],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def save(run: RunDirectory, step: int, hour: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete checkpoint of one small file, saved at that hour."""
    temporary = files.temporary_directory(run, step)
    temporary.mkdir()
    (temporary / "state.json").write_text(json.dumps({**STATE, "step": step}))
    monkeypatch.setattr("memformer.checkpoints.directory.time.time", lambda: 1_000_000 * HOUR + hour * HOUR)
    files.publish(run, step, {"state.json": files.describe_file(temporary, "state.json")})


def steps(run: RunDirectory) -> list[int]:
    return [files.step_of(path) for path in reversed(files.candidates(run))]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        pytest.param({"keep_last": 1}, [80], id="last-1"),
        pytest.param({"keep_last": 3}, [60, 70, 80], id="last-3"),
        pytest.param({"keep_last": 1, "keep_interval": 30}, [30, 60, 80], id="every-30-steps"),
        # Two checkpoints an hour, from 10 at hour 0 on: the first of each period of two hours.
        pytest.param({"keep_last": 1, "keep_hours": 2}, [10, 50, 80], id="every-2-hours"),
        pytest.param({"keep_last": 2, "keep_interval": 40, "keep_hours": 2}, [10, 40, 50, 70, 80], id="all-three"),
    ],
)
def test_retention(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], kept: list[int]
) -> None:
    """Applied after every save, as a run does, it keeps what it would keep at the end."""
    for number, step in enumerate(range(10, 90, 10)):
        save(run, step, number / 2, monkeypatch)
        files.delete_old(run, step, CheckpointConfig(**settings))
        assert step in steps(run), "the newest is never deleted"
    assert steps(run) == kept
    assert files.newest_complete(run) == (files.step_directory(run, 80), [])


def test_a_checkpoint_is_complete_though_its_pointer_cannot_be_written(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(run, 10, 0, monkeypatch)
    (run.checkpoints / "latest").unlink()
    (run.checkpoints / "latest").mkdir()
    with caplog.at_level("WARNING", "memformer"):
        save(run, 20, 0, monkeypatch)
    assert files.newest_complete(run) == (files.step_directory(run, 20), [])
    assert "latest still names an older checkpoint than step-00000020" in caplog.text


def test_nothing_is_deleted_that_cannot_be_used_or_is_not_the_runs_own(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a later step, damaged, of a newer format, without a manifest, a link: all stay, and count for nothing."""
    for step in (10, 20, 30, 40, 50, 60, 90):
        save(run, step, 0, monkeypatch)
    (files.step_directory(run, 20) / "manifest.json").write_text("{")
    (files.step_directory(run, 30) / "manifest.json").unlink()
    (files.step_directory(run, 40) / "state.json").write_text("")
    linked = files.step_directory(run, 50).rename(tmp_path / "archived")
    files.step_directory(run, 50).symlink_to(linked)
    deleted = files.delete_old(run, 60, CheckpointConfig(keep_last=1))
    assert [files.step_of(path) for path in deleted] == [10]
    assert steps(run) == [20, 30, 40, 50, 60, 90] and (linked / "state.json").exists()


def test_what_has_the_name_of_a_new_checkpoint_is_set_aside(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it a directory or a link that leads nowhere."""
    save(run, 10, 0, monkeypatch)
    (files.step_directory(run, 10) / "mine.txt").write_text("of a user")
    save(run, 10, 1, monkeypatch)
    files.step_directory(run, 20).symlink_to("nowhere")
    save(run, 20, 2, monkeypatch)
    assert (run.checkpoints / "step-00000010.set-aside-1" / "mine.txt").read_text() == "of a user"
    assert (run.checkpoints / "step-00000020.set-aside-1").is_symlink()
    assert files.newest_complete(run) == (files.step_directory(run, 20), []) and steps(run) == [10, 20]


def test_files_that_the_manifest_does_not_name_are_no_damage(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10, 0, monkeypatch)
    (files.step_directory(run, 10) / ".DS_Store").touch()
    (files.step_directory(run, 10) / "parameters").mkdir()
    (files.step_directory(run, 10) / "parameters" / ".nfs0001").touch()
    assert files.verify(files.step_directory(run, 10))["step"] == 10


def test_a_run_stands_for_its_newest_checkpoint_alone(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one is not taken for it without a word; it is named, with the reason."""
    for step in (10, 20):
        save(run, step, 0, monkeypatch)
    assert files.locate(run.root) == files.step_directory(run, 20)
    (files.step_directory(run, 20) / "state.json").write_text("{}")
    with pytest.raises(files.CheckpointDamaged) as refused:
        files.locate(run.root)
    older = files.step_directory(run, 10)
    assert "step-00000020/state.json: has 2 bytes" in str(refused.value) and f"{older}: name it" in str(refused.value)
    assert files.locate(older) == older


def test_what_is_left_of_a_deletion_is_no_checkpoint(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it deletes: the remains are swept away, and nothing resumes from them."""
    save(run, 10, 0, monkeypatch)
    save(run, 20, 0, monkeypatch)
    monkeypatch.setattr("memformer.checkpoints.directory.shutil.rmtree", lambda *_, **__: None)
    files.delete_old(run, 20, CheckpointConfig(keep_last=1))
    assert steps(run) == [20]
    monkeypatch.undo()
    (run.checkpoints / "step-00000010.partial").mkdir()  # of a user's own copy
    (run.checkpoints / ".latest.0123abcd").touch()  # killed while it replaces the pointer
    files.delete_partial(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "latest",
        "step-00000010.partial",
        "step-00000020",
    ]


def test_names_that_leave_the_directory_are_refused(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 10, 0, monkeypatch)
    directory = files.step_directory(run, 10)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {"../../secret": manifest["files"]["state.json"]}
    del manifest["sha256"]
    manifest["sha256"] = files._own_checksum(manifest)  # a stranger can seal a manifest as well as we can
    path.write_text(json.dumps(manifest))
    with pytest.raises(files.CheckpointDamaged, match="outside"):
        files.verify(directory)
