# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer train` on a run directory that holds a run: what is refused changes no byte of it, what differs is said.

Covers: launch/acceptance.py, memformer/training/resumption.py
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from memformer.checkpoints import directory as files
from memformer.run import jsonl
from memformer.run.directory import RunDirectory
from tests.books import TINY_MODEL, small_dataset
from tests.commands import end, run_command, start_ranks
from tests.faults.lives import assert_every_token_once, audit_of, events_of, metrics_of

STEPS = 6


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets (the second of other text, the third of another tokenizer) and a finished run of six steps."""
    root = tmp_path_factory.mktemp("workshop")
    small_dataset(root / "bytes")
    small_dataset(root / "other", characters=5_000)
    small_dataset(root / "bpe", tokenizer="train-bpe:300")
    settings = {
        "run_dir": str(root / "run"),
        "device": "cpu",
        "tensorboard": False,
        "model": {**TINY_MODEL, "dropout": 0.1},
        "data": {
            "path": str(root / "bytes" / "data"),
            "num_lanes": 4,
            "segment_length": 32,
            "num_segments": 2,
            "audit": True,
        },
        "training": {"max_steps": STEPS, "eval_interval": 0},
        "optimizer": {"warmup_steps": 0, "learning_rate": 0.01},
        "checkpoint": {"interval": 2, "keep_last": 3},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    done = run_command("train", str(root / "config.yaml"))
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def run(workshop: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the finished run."""
    return RunDirectory(shutil.copytree(workshop / "run", tmp_path / "run"))


def words(workshop: Path, run: RunDirectory, *more: str) -> list[str]:
    return [str(workshop / "config.yaml"), "--run_dir", str(run.root), *more]


def content(run: RunDirectory) -> dict[str, object]:
    """Every file of a run to the byte, and every folder; not when folders changed: a lock comes and goes in one."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in sorted(run.root.rglob("*"))
    }


def newer_format(run: RunDirectory) -> None:
    for directory in files.candidates(run):
        (directory / "manifest.json").write_text('{"format": 4}')


REFUSALS: dict[str, tuple[list[str], str, Callable[[RunDirectory], object] | None]] = {
    "width": (["--model.d_model", "48"], "model.d_model is 32 there and 48 here", None),
    "family": (["--model.family", "nobody"], "model.family", None),
    "tokenizer": (["--data.path", "{root}/bpe/data"], "model.vocab_size", None),
    "data set": (["--data.path", "{root}/other/data"], "is not the data set that", None),
    "seed": (["--seed", "7"], "seed: is 7", None),
    "format": ([], "3 checkpoint(s), and none can be used", newer_format),
    "gone": ([], "had a checkpoint of step 6, and there is none", lambda run: shutil.rmtree(run.checkpoints)),
}


@pytest.mark.parametrize("command", ["train", "launch local --nproc 2", "launch slurm", "launch submitit"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_refused_has_changed_nothing(workshop: Path, run: RunDirectory, kind: str, command: str) -> None:
    settings, said, spoil = REFUSALS[kind]
    if spoil is not None:
        spoil(run)
        run.create()
    before = content(run)
    more = ["--training.max_steps", "9", *(word.format(root=workshop) for word in settings)]
    done = run_command(*command.split(), *words(workshop, run, *more))
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert done.returncode in (1, 2) and len(lines) == 1, done.stdout + done.stderr
    assert said in lines[0] and "Traceback" not in done.stderr
    assert content(run) == before


@pytest.mark.parametrize("kind", ["width", "data set", "format"])
def test_nor_when_several_processes_have_met(workshop: Path, run: RunDirectory, kind: str, tmp_path: Path) -> None:
    settings, said, spoil = REFUSALS[kind]
    if spoil is not None:
        spoil(run)
    before = content(run)
    more = [word.format(root=workshop) for word in settings]
    ranks = start_ranks(*words(workshop, run, "--training.max_steps", "9", *more), count=2, log=tmp_path / "log")
    for rank in ranks:
        rank.join(60)
    end(ranks)
    assert {rank.exitcode for rank in ranks} <= {1, 2}
    assert all(said in (tmp_path / f"log-{number}").read_text() for number in range(2))
    assert content(run) == before


def test_what_nobody_needs_does_not_hold_a_run_up(workshop: Path, run: RunDirectory, tmp_path: Path) -> None:
    """Files that others left in it, a purged random state: it goes on from there, to the bit, and says what is lost."""
    whole = RunDirectory(shutil.copytree(run.root, tmp_path / "whole"))
    newest = files.step_directory(run, STEPS)
    (newest / "parameters" / "rank-00002.safetensors").touch()
    (newest / "random" / "rank-00000.safetensors").unlink()
    for each in (run, whole):
        done = run_command("train", *words(workshop, each, "--training.max_steps", "8"))
        assert done.returncode == 0, done.stderr
    assert metrics_of(run) == metrics_of(whole) and len(metrics_of(run)) == 8
    (event,) = events_of(run, "checkpoint_incomplete")
    assert len(event["lost"]) == 1 and "random/rank-00000.safetensors: is missing" in event["lost"][0]
    assert not events_of(run, "steps_repeated") and not events_of(whole, "checkpoint_incomplete")


def test_an_older_checkpoint_is_taken_with_a_word_and_nothing_is_deleted(workshop: Path, run: RunDirectory) -> None:
    """The newest is damaged, the one before was purged whole."""
    (files.step_directory(run, STEPS) / "manifest.json").write_text("{")
    shutil.rmtree(files.step_directory(run, 4))
    done = run_command("train", *words(workshop, run))
    assert done.returncode == 0, done.stderr
    (event,) = events_of(run, "steps_repeated")
    assert (event["first"], event["last"]) == (3, STEPS) and "manifest.json: is not JSON" in event["reasons"][0]
    assert "steps 3 to 6 are trained again" in done.stdout and "kept as step-00000006.set-aside-1" in done.stdout
    assert (run.checkpoints / "step-00000006.set-aside-1" / "manifest.json").read_text() == "{"
    assert metrics_of(run) == metrics_of(RunDirectory(workshop / "run"))
    assert_every_token_once(run)


def test_a_future_that_is_given_up_is_kept_under_another_name(workshop: Path, run: RunDirectory) -> None:
    earlier = str(files.step_directory(run, 2))
    done = run_command("train", *words(workshop, run, "--resume", earlier, "--training.max_steps", "3"))
    assert done.returncode == 0, done.stderr
    kept = {path.name for path in run.checkpoints.iterdir()}
    assert kept == {"latest", "step-00000002", "step-00000003", *(f"step-0000000{n}.set-aside-1" for n in (4, 6))}
    (event,) = events_of(run, "steps_repeated")
    assert "step-00000006 is newer, and was not asked for" in event["reasons"][0]
    again = run_command("train", *words(workshop, run, "--training.max_steps", "4"))
    assert again.returncode == 0 and len(events_of(run, "steps_repeated")) == 1, "said once"
    assert [row["step"] for row in metrics_of(run)] == [1, 2, 3, 4]


def test_the_same_command_goes_on_where_it_names_an_earlier_checkpoint(workshop: Path, run: RunDirectory) -> None:
    earlier = str(files.step_directory(run, 2))
    for last in (3, 4, 5):  # two are kept: the third life finds it gone
        more = ["--resume", earlier, "--training.max_steps", str(last), "--checkpoint.interval", "1"]
        done = run_command("train", *words(workshop, run, *more, "--checkpoint.keep_last", "2"))
        assert done.returncode == 0, done.stderr
        assert (f"--resume {earlier}: the run began there and has saved since" in done.stdout) == (last > 3)
    assert [event["step"] for event in events_of(run, "resume")] == [2, 3, 4]
    assert len(events_of(run, "checkpoint_set_aside")) == 2, "those of steps 4 and 6, by the first"
    assert [row["step"] for row in metrics_of(run)] == [1, 2, 3, 4, 5] and not os.path.exists(earlier)


def test_steps_that_a_kill_cost_are_told_without_alarm(workshop: Path, run: RunDirectory) -> None:
    row = jsonl.records(run.metrics)[-1]
    with run.metrics.open("a") as file:
        file.write(json.dumps({**row, "step": STEPS + 1}) + "\n")
    done = run_command("train", *words(workshop, run, "--training.max_steps", "7"))
    assert done.returncode == 0, done.stderr
    assert "steps 7 to 7 are trained again: they were not saved" in done.stdout
    assert not events_of(run, "steps_repeated")


def test_a_hole_in_the_metrics_is_told(workshop: Path, run: RunDirectory) -> None:
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:3]) + lines[3][:20])
    done = run_command("train", *words(workshop, run, "--training.max_steps", "7"))
    assert done.returncode == 0, done.stderr
    (event,) = events_of(run, "metrics_missing")
    assert (event["first"], event["last"]) == (4, 6) and "holds nothing of steps 4 to 6" in done.stdout
    assert [row["step"] for row in metrics_of(run)] == [1, 2, 3, 7]


def test_changes_are_named_with_the_jump_of_the_learning_rate(workshop: Path, run: RunDirectory) -> None:
    more = ["--training.max_steps", "12", "--optimizer.weight_decay", "0.5", "--data.num_segments", "4"]
    done = run_command("train", *words(workshop, run, *more))
    assert done.returncode == 0, done.stderr
    rate = metrics_of(run)[STEPS]["learning_rate"]
    (event,) = events_of(run, "resume")
    assert event["changes"] == [
        "data.num_segments 2 -> 4",
        "training.max_steps 6 -> 12",
        "optimizer.weight_decay 0.1 -> 0.5",
        f"learning rate of step 7 0.001 -> {rate:.4g}",
    ]
    assert rate > 0.004 and f"changed since step 6: {', '.join(event['changes'])}" in done.stdout
    assert_every_token_once(run)


@pytest.mark.parametrize("length", [48, 20])
def test_segments_of_another_length_and_dropout_are_carried_over(
    workshop: Path, run: RunDirectory, length: int
) -> None:
    """A document goes on at the token where it stood, with its memory and what fits of the segment before."""
    changed = ["--data.segment_length", str(length), "--model.dropout", "0.3", "--model.overlap", "6"]
    changed += ["--data.num_lanes", "2"]
    for last, settings in (("8", changed), ("10", [*changed[:-1], "4"])):
        done = run_command("train", *words(workshop, run, "--training.max_steps", last, *settings))
        assert done.returncode == 0, done.stderr
    changes = [event["changes"] for event in events_of(run, "resume")]
    assert f"data.segment_length 32 -> {length}" in changes[0] and "model.dropout 0.1 -> 0.3" in changes[0]
    assert "model.overlap 0 -> 6" in changes[0]
    assert not any("segment_length" in change for change in changes[1])
    assert_every_token_once(run)
    first = [row for row in audit_of(run) if row["step"] == STEPS + 1 and row["segment"] == 0]
    assert any(row["start"] and not row["reset"] and row["length"] == length for row in first)


def test_a_run_goes_on_with_new_data_once(workshop: Path, run: RunDirectory) -> None:
    """Weights, optimizer and schedule go on; the new data begins at its beginning, and the next life reads on in it."""
    new = ["--data.path", str(workshop / "other" / "data"), "--data.on_change", "restart"]
    for last in ("8", "10"):
        done = run_command("train", *words(workshop, run, "--training.max_steps", last, *new))
        assert done.returncode == 0, done.stderr
    changes = [event["changes"] for event in events_of(run, "resume")]
    told = [[change for change in each if "another data set" in change] for each in changes]
    assert [len(each) for each in told] == [1, 0] and any(change.startswith("data.path ") for change in changes[0])
    rows = audit_of(run)
    first, later = ([row for row in rows if row["step"] == step and row["segment"] == 0] for step in (7, 9))
    assert all(row["reset"] and row["start"] == 0 for row in first), "fresh memories"
    assert not all(row["start"] == 0 for row in later), "the second life reads on"
    at: dict[tuple[int, int], int] = {}
    for row in rows:
        if row["step"] > STEPS:
            assert row["start"] == at.get((row["epoch"], row["document"]), 0)
            at[row["epoch"], row["document"]] = row["start"] + row["length"]
    found = metrics_of(run)
    assert [row["step"] for row in found] == list(range(1, 11))
    assert found[-1]["tokens"] == sum(row["length"] for row in rows)
    assert found[STEPS]["loss"] < found[0]["loss"], "the weights are those that were trained"


def test_an_export_that_is_gone_is_not_missed_by_a_run_that_resumes(workshop: Path, run: RunDirectory) -> None:
    done = run_command("train", *words(workshop, run, "--training.max_steps", "7", "--init_from", "nowhere"))
    assert done.returncode == 0, done.stderr
    fresh = ["--run_dir", str(run.root / "fresh"), "--init_from", "nowhere"]
    refused = run_command("train", str(workshop / "config.yaml"), *fresh)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "init_from: nowhere: holds no config.json" in refused.stderr and not (run.root / "fresh").exists()


def test_export_does_not_take_an_older_step_without_a_word(workshop: Path, run: RunDirectory, tmp_path: Path) -> None:
    os.truncate(files.step_directory(run, STEPS) / "parameters" / "rank-00000.safetensors", 100)
    refused = run_command("export", str(run.root), "--out", str(tmp_path / "model"))
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1 and not (tmp_path / "model").exists()
    older = files.step_directory(run, 4)
    assert "its newest checkpoint cannot be used" in refused.stderr and f"{older}: name it to use it" in refused.stderr
    (older / "tokenizer.json").unlink()
    shutil.rmtree(older / "lanes")
    shutil.rmtree(older / "random")
    missing = run_command("export", str(older), "--out", str(tmp_path / "model"))
    assert missing.returncode == 1 and "tokenizer.json: is missing: the newest that can be used is " in missing.stderr
    assert "; a tokenizer.json can be copied from the run's data set" in missing.stderr
    shutil.copy(workshop / "bytes" / "data" / "train" / "tokenizer.json", older)
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    done = run_command("export", str(older), "--out", str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk/config.json").is_file()


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "config cut": ("config.json", lambda path: os.truncate(path, 40), "config.json: cannot be read"),
    "config a list": ("config.json", lambda path: path.write_text("[]"), "config.json: is not a Memformer export"),
    "config no text": ("config.json", lambda path: path.write_bytes(b"\xff\xfe\0"), "config.json: cannot be read"),
    "config nested": ("config.json", lambda path: path.write_text("[" * 10**5), "config.json: cannot be read"),
    "config without a size": (
        "config.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {}})),
        "config.json: vocab_size and start_token_id are None",
    ),
    "config with a word for a size": (
        "config.json",
        lambda path: path.write_text(path.read_text().replace('"d_model": 32', '"d_model": "32"')),
        "config.json: d_model is '32': give a whole number",
    ),
    "weights cut": ("model.safetensors", lambda path: os.truncate(path, 500), "model.safetensors: has 500 bytes, not"),
    "weights gone": ("model.safetensors", Path.unlink, "model.safetensors: is missing: export the model again"),
    "tokenizer gone": ("tokenizer.json", Path.unlink, "tokenizer.json: is missing: export the model again, or copy"),
    "tokenizer cut": ("tokenizer.json", lambda path: os.truncate(path, 9), ": export the model again, or copy"),
}


@pytest.fixture(scope="module")
def model(workshop: Path) -> Path:
    done = run_command("export", str(workshop / "run"), "--out", str(workshop / "model"))
    assert done.returncode == 0, done.stderr
    return workshop / "model"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_is_one_line_that_names_the_file(model: Path, tmp_path: Path, kind: str) -> None:
    name, spoil, said = DAMAGE[kind]
    spoil(shutil.copytree(model, tmp_path / "model") / name)
    done = run_command("generate", str(tmp_path / "model"), "--prompt", "a", "--max-new-tokens", "1")
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path / "model") in done.stderr and said in done.stderr
