# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run goes on from: on real directories, each made unusable in one of the ways that users met."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.checkpoints import directory as files
from memformer.checkpoints import resuming
from memformer.config.schema import CheckpointConfig
from memformer.run.directory import RunDirectory

STEPS = (4, 8, 12)
NOBODY = 65534
STATE: dict[str, Any] = {
    "format": files.FORMAT,
    "family": "memformer",
    "model": {"d_model": 32, "dropout": 0.0, "segment_length": 16},
    "parameters": {},
    "data": {"fingerprint": "a", "seed": 0, "order": "shuffled"},
    "settings": {"run_dir": "run", "data": {"path": "d", "num_lanes": 4}, "optimizer": {"learning_rate": 0.01}},
    "tokenizer_sha256": "t",
    "tokens": 1,
    "num_lanes": 4,
    "world_size": 1,
    "zero_stage": 1,
    "precision": "fp32",
    "device": "cpu",
    "probe_losses": [],
}
CONTENT = {"tokenizer.json": "{}", "parameters/rank-00000.safetensors": "w" * 64, "random/rank-00000.safetensors": "r"}


def save(run: RunDirectory, step: int, **state: Any) -> Path:
    """A checkpoint of small files, as a run leaves it, with its event."""
    temporary = files.temporary_directory(run, step)
    content = {**CONTENT, "state.json": json.dumps({**STATE, "step": step, **state})}
    for name, text in content.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_text(text)
    run.event("save", step=step)
    return files.publish(run, step, {name: files.describe_file(temporary, name) for name in content})


def seal(directory: Path, **changes: Any) -> None:
    """Another manifest, whole in itself."""
    path = directory / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": files._own_checksum(manifest)}))


def of_a_newer_version(directory: Path) -> None:
    state = {**json.loads((directory / "state.json").read_text()), "format": files.FORMAT + 1}
    (directory / "state.json").write_text(json.dumps(state))
    manifest = files.read_manifest(directory)
    seal(directory, files={**manifest["files"], "state.json": files.describe_file(directory, "state.json")})


def linked(directory: Path, name: str, target: str) -> None:
    (directory / name).unlink()
    (directory / name).symlink_to(target)


def dangling(directory: Path) -> None:
    shutil.move(directory, directory.parents[1] / f"moved-{directory.name}")
    directory.symlink_to("../archive")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    for step in STEPS:
        save(made, step)
    made.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 13)))
    return made


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "format": (lambda d: seal(d, format=files.FORMAT + 1), "format 4 is none of"),
    "manifest no JSON": (lambda d: (d / "manifest.json").write_bytes(b"\xff\0"), "manifest.json: is not JSON"),
    "manifest missing": (lambda d: (d / "manifest.json").unlink(), "incomplete, no manifest.json"),
    # /proc/self/mem answers a read from its beginning with EIO, as a failing disk does.
    "I/O error": (lambda d: linked(d, "manifest.json", "/proc/self/mem"), "cannot be read (Input/output error)"),
    "a folder instead": (lambda d: ((d / "manifest.json").unlink(), (d / "manifest.json").mkdir()), "Is a directory"),
    "a link to nowhere": (dangling, "is a link to ../archive, which is not there"),
    "a file": (lambda d: (shutil.rmtree(d), d.write_text("")), "incomplete, no manifest.json"),
    "state of a newer version": (of_a_newer_version, "state.json: format 4 is none of"),
    "weights truncated": (
        lambda d: os.truncate(d / "parameters/rank-00000.safetensors", 3),
        "rank-00000.safetensors: has 3 bytes, not 64",
    ),
    "weights missing": (lambda d: shutil.rmtree(d / "parameters"), "rank-00000.safetensors: is missing"),
    "renamed": (lambda d: seal(d, step=5), "is the manifest of step 5"),
}
"""Kind -> what is done to a checkpoint's directory, and what is said of it."""


def snapshot(root: Path) -> dict[str, object]:
    """Every name below a directory, with its content."""
    paths = sorted(root.rglob("*"))
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in paths
    }


@pytest.mark.parametrize("sums", [True, False], ids=["read", "glanced at"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_the_newest_that_can_be_used_is_taken_and_the_others_are_named(
    run: RunDirectory, kind: str, sums: bool
) -> None:
    spoil, words = UNUSABLE[kind]
    spoil(files.step_directory(run, 12))
    start = resuming.choose(run, "auto", sums)
    assert (start.checkpoint, start.own, start.lost) == (files.step_directory(run, 8), True, ())
    assert len(start.passed_over) == 1 and words in start.passed_over[0] and "step-00000012" in start.passed_over[0]
    last, reasons = resuming.repeated_steps(run, start, CheckpointConfig(interval=4))
    assert (last, reasons) == (12, list(start.passed_over))


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_run_never_starts_afresh_because_none_can_be_used(run: RunDirectory, kind: str) -> None:
    spoil, words = UNUSABLE[kind]
    for step in STEPS:
        spoil(files.step_directory(run, step))
    before = snapshot(run.root)
    with pytest.raises(UserError) as refused:
        resuming.choose(run, "auto")
    said = str(refused.value)
    assert said.count(words.partition(" ")[0]) >= 3 and all(f"step-{step:08d}" in said for step in STEPS), said
    assert "3 checkpoint(s), and none can be used" in said and "start afresh in another run_dir" in said
    assert (refused.value.exit_code, snapshot(run.root)) == (1, before)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Permissions hold for root as well, while this process is nobody."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("closed", "words"),
    [
        ("checkpoints/step-00000012/manifest.json", "manifest.json: cannot be read (Permission denied)"),
        ("checkpoints/step-00000012", "manifest.json: cannot be read (Permission denied)"),
        ("checkpoints/step-00000012/parameters", "rank-00000.safetensors: cannot be read (Permission denied)"),
    ],
)
def test_what_may_not_be_read_is_there_all_the_same(run: RunDirectory, closed: str, words: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # where nobody may enter, unlike in pytest's own folders
        os.chmod(place, 0o755)
        moved = RunDirectory(shutil.copytree(run.root, Path(place) / "run"))
        (moved.root / closed).chmod(0)
        with somebody_else():
            start = resuming.choose(moved, "auto")
            assert start.step == 8 and words in start.passed_over[0]
        moved.checkpoints.chmod(0)
        try:
            with (
                somebody_else(),
                pytest.raises(UserError, match=r"checkpoints: cannot be listed \(Permission denied\)"),
            ):
                resuming.choose(moved, "auto")
        finally:
            moved.checkpoints.chmod(0o755)
            (moved.root / closed).chmod(0o755)


@pytest.mark.parametrize("name", ["random/rank-00000.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("x")], ids=["missing", "damaged"])
def test_what_the_weights_do_not_need_costs_a_word(
    run: RunDirectory, name: str, spoil: Callable[[Path], object]
) -> None:
    for step in STEPS:
        spoil(files.step_directory(run, step) / name)
    start = resuming.choose(run, "auto")
    assert start.step == 12 and not start.passed_over
    assert len(start.lost) == 1 and name in start.lost[0]


def test_a_link_to_a_checkpoint_is_one(run: RunDirectory, tmp_path: Path) -> None:
    target = shutil.move(files.step_directory(run, 12), tmp_path / "elsewhere")
    files.step_directory(run, 12).symlink_to(target)
    assert resuming.choose(run, "auto").step == 12


@pytest.mark.parametrize("name", ["best", "run/checkpoints", "scratch"])
def test_a_path_that_leads_to_a_checkpoint_names_it(run: RunDirectory, tmp_path: Path, name: str) -> None:
    """A link to one under a name of its own, the folder that they are in, or a link to that."""
    (tmp_path / "best").symlink_to(files.step_directory(run, 12))
    (tmp_path / "scratch").symlink_to(run.checkpoints)
    start = resuming.choose(run, str(tmp_path / name))
    assert (start.step, start.own) == (12, True)


def test_a_checkpoint_under_another_name_is_told_its_own(run: RunDirectory) -> None:
    kept = files.set_aside(files.step_directory(run, 12))
    with pytest.raises(UserError, match=rf"{kept}: a checkpoint is named after its step, .*: rename it back"):
        resuming.choose(run, str(kept))


def test_a_link_to_a_disk_that_is_not_there_is_no_empty_run(run: RunDirectory, tmp_path: Path) -> None:
    run.checkpoints.rename(tmp_path / "disk")
    run.checkpoints.symlink_to(tmp_path / "mount/disk")
    run.events.unlink()
    with pytest.raises(UserError, match=r"checkpoints: is a link to .*mount/disk, which is not there"):
        resuming.choose(run, "auto")


@pytest.mark.parametrize("evidence", ["events.jsonl", "latest"])
def test_checkpoints_that_are_gone_are_missed(run: RunDirectory, evidence: str) -> None:
    for step in STEPS:
        shutil.rmtree(files.step_directory(run, step))
    (run.checkpoints / "latest" if evidence == "events.jsonl" else run.events).unlink()
    with pytest.raises(
        UserError, match=r"had a checkpoint of step 12, and there is none .*: put it back, .*start afresh"
    ):
        resuming.choose(run, "auto")
    (run.events if evidence == "events.jsonl" else run.checkpoints / "latest").unlink()
    start = resuming.choose(run, "auto")  # killed before its first checkpoint: nothing tells of one
    assert start.checkpoint is None
    assert resuming.repeated_steps(run, start, CheckpointConfig(interval=50)) == (12, [])


def test_a_named_checkpoint_is_the_runs_own_however_it_is_written(run: RunDirectory) -> None:
    start = resuming.choose(run, os.path.relpath(files.step_directory(run, 4)))
    assert start.own and start.step == 4
    last, reasons = resuming.repeated_steps(run, start, CheckpointConfig(interval=4))
    assert last == 12 and "step-00000012 is newer, and was not asked for" in reasons[0]


def test_a_run_is_not_begun_again_from_another_one(run: RunDirectory, tmp_path: Path) -> None:
    """As a job would that is requeued with `--resume OTHER`: its own checkpoints would be lost."""
    fresh = RunDirectory(tmp_path / "fresh")
    fresh.create()
    start = resuming.choose(fresh, str(run.root))
    assert start.checkpoint == files.step_directory(run, 12) and not start.own
    save(fresh, 14)
    with pytest.raises(UserError, match=r"has checkpoints of its own \(the newest is step-00000014\): go on .* auto"):
        resuming.choose(fresh, str(run.root))
    fresh.event("resume", step=12, checkpoint=os.path.relpath(files.step_directory(run, 12)))
    fresh.event("resume", step=14, checkpoint=str(files.step_directory(fresh, 14)))
    start = resuming.choose(fresh, str(run.root))  # it began there, and the same command was given again
    assert (start.step, start.own, start.instead_of) == (14, True, str(run.root))
    shutil.rmtree(run.root)
    assert resuming.choose(fresh, str(run.root)) == start


def resumed(run: RunDirectory, step: int, named: bool) -> None:
    """The event of a life that begins at a checkpoint of the run's own."""
    run.event("resume", step=step, checkpoint=str(files.step_directory(run, step)), named=named)


def test_a_checkpoint_that_is_named_again_is_not_begun_at_again(run: RunDirectory) -> None:
    """As by a loop that starts the same command after each preemption: it would never come further than one life."""
    named = os.path.relpath(files.step_directory(run, 4))
    resumed(run, 4, named=True)
    for step in (8, 12):
        files.set_aside(files.step_directory(run, step))
    start = resuming.choose(run, named)
    assert (start.step, start.named, start.instead_of) == (4, True, None), "nothing was saved since"
    for step in (6, 8, 10):
        save(run, step)
        start = resuming.choose(run, named)
        assert (start.step, start.own, start.named, start.instead_of) == (step, True, False, named)
        resumed(run, step, named=False)
    shutil.rmtree(files.step_directory(run, 4))  # by keep_last
    assert resuming.choose(run, named).step == 10
    (files.step_directory(run, 10) / "manifest.json").unlink()
    start = resuming.choose(run, named)
    assert start.step == 8 and "step-00000010" in start.passed_over[0]
    for step in (6, 8, 10):
        shutil.rmtree(files.step_directory(run, step))
    with pytest.raises(UserError, match=f"--resume {named}: is no directory"):
        resuming.choose(run, named)


@pytest.mark.parametrize(
    "lives",
    [
        pytest.param([(8, False), 12], id="it was the newest then, and nobody named it"),
        pytest.param([(8, True), 10, (4, True), 12], id="a life that began before it"),
        pytest.param([(8, True), 10, (4, False), 12], id="one that found no newer one"),
    ],
)
def test_a_checkpoint_of_another_history_is_begun_at(run: RunDirectory, lives: list[Any]) -> None:
    for life in lives:
        run.event("save", step=life) if isinstance(life, int) else resumed(run, *life)
    assert resuming.choose(run, str(files.step_directory(run, 8))).step == 8


def test_a_run_that_is_named_is_gone_on_with(run: RunDirectory) -> None:
    for _ in range(2):
        start = resuming.choose(run, str(run.root))
        assert (start.step, start.named, start.instead_of) == (12, False, None)
        resumed(run, 12, named=False)


@pytest.mark.parametrize(
    ("trained", "settings", "reason"),
    [
        pytest.param(15, {"interval": 4}, None, id="a kill"),
        pytest.param(19, {"interval": 4, "background": True}, None, id="a kill while saving in the background"),
        pytest.param(12, {"interval": 4}, None, id="nothing"),
        pytest.param(90, {"interval": 0}, None, id="no checkpoint was due"),
        pytest.param(90, {"interval": 4}, "a checkpoint was due every 4", id="many checkpoints are missing"),
    ],
)
def test_what_a_kill_costs_is_told_from_more(
    run: RunDirectory, trained: int, settings: dict[str, Any], reason: str | None
) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": trained}) + "\n")
    found = resuming.repeated_steps(run, resuming.choose(run, "auto"), CheckpointConfig(**settings))
    assert found[0] == trained and bool(found[1]) == (reason is not None)
    assert reason is None or reason in found[1][0]


def test_a_checkpoint_that_was_saved_and_is_gone_is_a_reason(run: RunDirectory) -> None:
    shutil.rmtree(files.step_directory(run, 12))
    start = resuming.choose(run, "auto")
    assert resuming.repeated_steps(run, start, CheckpointConfig(interval=4)) == (
        12,
        ["a checkpoint of step 12 was saved and is gone"],
    )
    run.event("resume", step=8)  # it was said: the next life goes on from there
    (run.checkpoints / "latest").write_text("step-00000008\n")
    assert resuming.repeated_steps(run, start, CheckpointConfig(interval=4)) == (12, [])


IDENTITY = {
    name: STATE[name] for name in ("family", "model", "tokenizer_sha256", "num_lanes", "world_size", "zero_stage")
}


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"model": {**STATE["model"], "d_model": 48}}, "model.d_model is 32 there and 48 here"),
        ({"model": {**STATE["model"], "tied": True}}, "model.tied is null there and true here"),
        ({"family": "backbone"}, "model.family is memformer there and backbone here"),
        ({"settings": {"optimizer": {"name": "muon"}}}, "was trained with optimizer.name adamw, and muon cannot go on"),
        ({"tokenizer_sha256": "u"}, "was written with tokenizer_sha256 t, this run has u"),
    ],
)
def test_another_model_is_refused(run: RunDirectory, identity: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resuming.check_fits(files.step_directory(run, 12), {**IDENTITY, **identity})


def test_what_has_no_weights_may_change(run: RunDirectory) -> None:
    model = {**STATE["model"], "dropout": 0.1, "segment_length": 32}
    changed = {**IDENTITY, "model": model, "num_lanes": 8, "world_size": 2}
    assert resuming.check_fits(files.step_directory(run, 12), changed) == ["1 -> 2 processes", "4 -> 8 lanes"]


def test_settings_are_named_with_both_values(run: RunDirectory) -> None:
    now = {
        "run_dir": "moved",
        "data": {"path": "e", "num_lanes": 8, "prefetch": 2},
        "optimizer": {"learning_rate": 0.1},
    }
    assert resuming.changed_settings(files.step_directory(run, 12), now) == [
        "data.path d -> e",
        "optimizer.learning_rate 0.01 -> 0.1",
    ]


def test_other_questions_by_the_same_settings_are_told(run: RunDirectory) -> None:
    """Not where a setting says it already, nor where a checkpoint from before knows nothing of it."""
    directory, identity = files.step_directory(run, 12), {"asked_sha256": "b", "settings": STATE["settings"]}
    assert resuming.changed_questions(directory, identity) == []
    state = directory / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"asked_sha256": "a"}))
    (told,) = resuming.changed_questions(directory, identity)
    assert told.startswith("evaluation.tasks asks other documents")
    assert resuming.changed_questions(directory, identity | {"settings": {"evaluation": {"seed": 1}}}) == []
    assert resuming.changed_questions(directory, identity | {"asked_sha256": "a"}) == []


def test_changes_are_told_in_the_words_of_a_configuration(run: RunDirectory) -> None:
    told = resuming.changed_settings(files.step_directory(run, 12), {"data": {"path": None}, "optimizer": {}})
    assert told == ["data.path d -> null"]


@pytest.mark.parametrize(
    ("changes", "dropout", "words"),
    [
        ([], 0.0, "nothing is lost"),
        (["2 -> 1 processes"], 0.0, "losses agree to rounding"),
        (["2 -> 1 processes"], 0.1, "dropout draws other masks"),
        (["precision fp16 -> fp32"], 0.1, "the rounding of the coarser precision"),
    ],
)
def test_only_what_is_lost_is_said_to_be(changes: list[str], dropout: float, words: str) -> None:
    assert words in resuming.not_carried(changes, dropout)


def test_a_path_that_is_no_checkpoint_is_told_with_the_other_choices(run: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"^--resume no: is no directory: give auto, never, or a run"):
        resuming.choose(run, "no")


def test_what_is_secret_in_an_address_is_not_told(run: RunDirectory) -> None:
    directory = files.step_directory(run, 12)
    signed = [{"path": "http://host/set?sig=s3cr3t", "weight": 1.0}]
    told = resuming.changed_settings(directory, {"data": {"path": signed}})
    assert told == ['data.path d -> [{"path": "http://host/set?***", "weight": 1.0}]']
    with pytest.raises(UserError, match=r"data\.path: http://host/set\?\*\*\* \(fingerprint b\)"):
        resuming.is_other_data(directory, {"fingerprint": "b"}, "refuse", "http://host/set?sig=s3cr3t")


@pytest.mark.parametrize(
    ("name", "value", "words"), [("fingerprint", "b", r"data.path: e .* \(d, .*"), ("seed", 1, "seed: is 1")]
)
def test_other_data_is_refused_or_begun(run: RunDirectory, name: str, value: object, words: str) -> None:
    newest, same = files.step_directory(run, 12), {"fingerprint": "a", "seed": 0}
    assert not resuming.is_other_data(newest, same, "refuse", "e") and not resuming.is_other_data(
        newest, {}, "refuse", "e"
    )
    with pytest.raises(UserError, match=f"{words}.* or set data.on_change to restart"):
        resuming.is_other_data(newest, {**same, name: value}, "refuse", "e")
    assert resuming.is_other_data(newest, {**same, name: value}, "restart", "e")


def test_a_checkpoints_model_is_read_as_it_would_be_written_now() -> None:
    """A truth value has become a mode; a tuple is the list that JSON has of it; what cannot be read stands as it is."""
    model = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    values = {"backbone": model | {"max_position_embeddings": 64}, "memory": {"layers": [1, 3]}}
    now = resuming._as_written_now("backbone", json.loads(json.dumps(values)))
    assert now["memory"]["layers"] == [1, 3]
    assert resuming._as_written_now("backbone", json.loads(json.dumps(now))) == now
    assert resuming._as_written_now("memformer", {"memory_forgetting": False})["memory_forgetting"] == "off"
    assert resuming._as_written_now("memformer", {"gone": 1}) == {"gone": 1}
