# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Lives of a run: that it has its directory to itself, and that each says how it ended, whatever the disk does.

Covers: memformer/training/reports.py
"""

import hashlib
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from launch.status import read_status
from memformer.checkpoints import directory
from memformer.checkpoints.saving import SaveReport
from memformer.processes.group import World
from memformer.run import jsonl
from memformer.run.directory import RunDirectory
from memformer.training import Callback, TrainingState, train
from tests.books import small_dataset
from tests.commands import end, run_command, start_ranks
from tests.distributed.processes import run_distributed
from tests.faults.lives import events_of, metrics_of, tiny_config, wait_for
from tests.held import hold, release

STEPS = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lives")
    small_dataset(root, characters=3_000)
    (root / "config.yaml").write_text(yaml.safe_dump(tiny_config(root, "run").values()))
    return root


def contents(run: Path) -> dict[str, str]:
    """Every file of a run by its name, with a sum of what is in it."""
    found = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return {str(name): hashlib.sha256(data).hexdigest() for name, data in found.items()}


def last_event(run: Path) -> dict[str, Any]:
    return jsonl.records(run / "events.jsonl")[-1]


def command(root: Path, run: Path, *words: str) -> list[str]:
    return [str(root / "config.yaml"), "--run_dir", str(run), *words]


def test_a_second_run_is_refused_while_the_first_trains_and_leaves_it_alone(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hold(run, 3)
    ranks = start_ranks(*command(root, run), count=1, log=tmp_path / "log", hold=True)
    try:
        wait_for(lambda: len(jsonl.records(run / "metrics.jsonl")) == 3, ranks)
        assert read_status(run).state == "running"
        before = contents(run)
        for words in (["train"], ["launch", "local"]):
            second = run_command(*words, *command(root, run, "--training.max_steps", "5"))
            assert second.returncode == 2
            assert f"run_dir: {run} is in use: process {ranks[0].pid} on " in second.stderr
            assert second.stderr.count("\n") == 1
        assert {name: contents(run)[name] for name in before if "heartbeats" not in name} == {
            name: sha for name, sha in before.items() if "heartbeats" not in name
        }
        release(run)
        ranks[0].join(60)
        assert ranks[0].exitcode == 0
    finally:
        end(ranks)
    assert [row["step"] for row in jsonl.records(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert read_status(run).state == "finished"


def test_a_killed_run_is_told_from_one_that_lives_and_goes_on(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hold(run, 5)
    ranks = start_ranks(*command(root, run), count=1, log=tmp_path / "log", hold=True)
    wait_for(lambda: len(jsonl.records(run / "metrics.jsonl")) == 5, ranks)
    end(ranks)
    status = read_status(run)
    assert (status.state, status.eta_seconds) == ("failed", None)
    assert "ended without a word" in str(status.failure) and "is gone" in str(status.process)
    done = run_command("train", *command(root, run))
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout and "step 4" in done.stdout
    assert (last_event(run)["event"], last_event(run)["steps"]) == ("end", STEPS - 4)
    again = run_command("train", *command(root, run))
    assert again.returncode == 0
    assert (last_event(run)["event"], last_event(run)["step"], last_event(run)["steps"]) == ("end", STEPS, 0)
    assert read_status(run).state == "finished"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_loses_the_others_says_so_in_one_line(root: Path, tmp_path: Path) -> None:
    """What came first stands in the other's log, and is not buried under this one's traceback."""
    run = tmp_path / "run"
    hold(run, 3)
    ranks = start_ranks(*command(root, run), count=2, log=tmp_path / "log", hold=True)
    wait_for(lambda: len(jsonl.records(run / "metrics.jsonl")) == 3, ranks)
    ranks[1].kill()
    ranks[1].join()
    release(run)
    ranks[0].join(60)
    said = (tmp_path / "log-0").read_text()
    assert ranks[0].exitcode == 1, said
    assert said.splitlines()[-1].startswith("memformer train: error: rank 0: another process of the run has ended")
    assert "Traceback" not in said
    assert "another process of the run has ended" in last_event(run)["reason"]
    assert read_status(run).state == "failed"


def test_a_stop_file_that_cannot_be_removed_is_named(root: Path, tmp_path: Path) -> None:
    """A directory in its place, for root may remove every file."""
    run = tmp_path / "run"
    (run / "stop").mkdir(parents=True)
    stopped = run_command("train", *command(root, run))
    assert stopped.returncode == 75, stopped.stderr
    assert f"{run}/stop: cannot be removed" in stopped.stdout
    assert (last_event(run)["event"], last_event(run)["step"]) == ("preemption", 1)
    status = read_status(run)
    assert (status.state, status.failure) == ("stopped", f"the file {run}/stop")


def test_a_refused_start_changes_nothing(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_command("train", *command(root, run, "--training.max_steps", "2")).returncode == 0
    before = contents(run)
    refused = run_command("train", *command(root, run, "--resume", "never"))
    assert refused.returncode == 2
    assert contents(run) == before
    fresh = run_command("train", *command(root, tmp_path / "a/fresh", "--resume", str(tmp_path)))
    assert fresh.returncode == 2
    assert not (tmp_path / "a").exists()


def test_the_settings_of_a_run_are_replaced_whole(root: Path, tmp_path: Path) -> None:
    """A file that is written over in its place is empty when the disk is full; what an old name still has tells."""
    run = tmp_path / "run"
    assert run_command("train", *command(root, run, "--training.max_steps", "2")).returncode == 0
    os.link(run / "config.yaml", tmp_path / "before.yaml")
    assert run_command("train", *command(root, run, "--training.max_steps", "3")).returncode == 0
    assert "max_steps: 2\n" in (tmp_path / "before.yaml").read_text()
    assert "max_steps: 3\n" in (run / "config.yaml").read_text()


def test_a_run_that_is_asked_to_stop_at_its_start_says_so(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hold(run, 1)  # however fast it is, it has not finished
    ranks = start_ranks(*command(root, run), count=1, log=tmp_path / "log", hold=True)
    wait_for(lambda: bool(list(run.glob("lock/*.held"))), ranks)
    os.kill(ranks[0].pid or 0, signal.SIGTERM)
    ranks[0].join(60)
    assert ranks[0].exitcode in (143, 75), "before it listens, or after its first step"
    assert [path.suffix for path in (run / "lock").iterdir()] == [".stopped"]
    status = read_status(run)
    assert status.state == "stopped" and "SIGTERM" in str(status.failure)


@pytest.mark.parametrize("file", ["config.yaml", "deepspeed.json"])
def test_a_file_that_cannot_be_written_at_the_start_is_one_line(root: Path, tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    (run / file).mkdir(parents=True)
    failed = run_command("train", *command(root, run))
    assert failed.returncode == 1
    (said,) = [line for line in failed.stderr.splitlines() if "memformer train: error: " in line]
    assert "start the run again: it goes on from the last checkpoint" in said
    assert "Traceback" not in failed.stderr
    assert last_event(run)["event"] == "failure"


class Disk(Callback):
    """A disk that is full from a step on, to another one: no file of this process grows beyond what it has then."""

    def __init__(self, full: int, free: int | None) -> None:
        self.full, self.free = full, free
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == self.full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (state.run.events.stat().st_size + 10, self.before[1]))
        if state.progress.step == self.free:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class FreedAndStopped(Disk):
    """Somebody makes room when a save has failed, and the run is asked to stop before its next step."""

    def after_save(self, state: TrainingState, report: SaveReport) -> None:
        if report.error is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
            state.run.stop_file.touch()


class Unlisted(Callback):
    """What there is to be deleted cannot be known, once a checkpoint is complete."""

    def __init__(self) -> None:
        self.real = directory.candidates

    def before_save(self, state: TrainingState) -> None:
        def fails(run: RunDirectory) -> list[Path]:
            raise UserError(f"{run.checkpoints}: cannot be listed (Stale file handle)")

        directory.candidates = fails

    def after_save(self, state: TrainingState, report: SaveReport) -> None:
        directory.candidates = self.real


def on_a_full_disk(world: World, root: str) -> dict[str, Any]:
    """What becomes of runs: on two disks there is room again, on one there is not; a fourth cannot be cleared up."""
    found: dict[str, Any] = {}
    disks = {"freed": Disk(3, 7), "full": Disk(3, None), "stopped": FreedAndStopped(3, None), "unlisted": Unlisted()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, disk in disks.items():
        config = tiny_config(Path(root), name, training={"max_steps": STEPS}).model_copy(update={"tensorboard": True})
        try:
            found[name] = train(config, callbacks=[disk])
        except UserError as error:
            found[name] = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_a_full_disk_ends_no_run_for_the_sake_of_a_line(root: Path) -> None:
    found = run_distributed(on_a_full_disk, 2, str(root))[0]
    assert found["freed"] == 0
    freed, full = RunDirectory(root / "freed"), RunDirectory(root / "full")
    assert [row["step"] for row in metrics_of(freed)] == list(range(1, STEPS + 1))
    assert [event["step"] for event in events_of(freed, "save_failed")] == [4, 6]
    assert [event["step"] for event in events_of(freed, "save")] == [2, 8]
    assert len([row for path in freed.audit.iterdir() for row in jsonl.records(path)]) == STEPS * 4 * 2
    assert "checkpoint: step 8 could not be saved" in found["full"] and "make room" in found["full"]
    assert found["unlisted"] == 0
    assert [event["step"] for event in events_of(RunDirectory(root / "unlisted"), "save")] == [2, 4, 6, 8]
    stopped = RunDirectory(root / "stopped")
    assert found["stopped"] == 75, "the step whose save had failed was saved when the run had to stop"
    assert [event["step"] for event in events_of(stopped, "save_failed")] == [4]
    assert [event["step"] for event in events_of(stopped, "save")] == [2, 4]
    status = read_status(full.root)
    assert status.state == "failed", "although its events had no room either"
    assert [path.name for path in full.lock.iterdir()] == ["00000001.failed"]


class Poisoned(Callback):
    """No gradient is ever finite."""

    def before_data(self, state: TrainingState) -> None:
        if state.progress.step == 0:
            parameter = dict(state.engine.module.named_parameters())["writer.query.weight"]
            parameter.register_hook(lambda gradient: gradient * float("inf"))


class Swept(Callback):
    """Somebody clears up: the checkpoints go, and the data set's tokenizer is away until the last step."""

    def __init__(self, root: Path) -> None:
        self.tokenizer, self.away = root / "data/train/tokenizer.json", root / "tokenizer.away"

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == 1:
            self.tokenizer.rename(self.away)
        if state.progress.step == 5:
            shutil.rmtree(state.run.checkpoints)
        if state.progress.step == STEPS:
            self.away.rename(self.tokenizer)


class Broken(Callback):
    """One process raises what no run expects."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == 3 and state.world.rank == self.rank:
            raise RuntimeError("the roof is leaking\nsecond line")


def failing(world: World, root: str) -> dict[str, str]:
    """What each of several runs ends with."""
    found: dict[str, str] = {}
    usual: dict[str, Any] = {"guards": {"max_skips": 100}}
    rate = {"optimizer": {"learning_rate": 1e6, "warmup_steps": 0}}
    cases: list[tuple[str, str, Callback, dict[str, Any]]] = [
        ("poisoned", "poisoned", Poisoned(), usual),
        ("again", "poisoned", Callback(), usual),
        ("too fast", "fast", Callback(), usual | rate),
        ("swept", "swept", Swept(Path(root)), usual),
        ("broken", "broken", Broken(world.rank), usual),
    ]
    for name, run, callback, sections in cases:
        try:
            train(tiny_config(Path(root), run, **sections), callbacks=[callback])
        except (UserError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_a_life_that_failed_says_why(root: Path) -> None:
    (found,) = run_distributed(failing, 1, str(root))
    for name in ("poisoned", "again"):
        assert found[name].startswith(f"UserError: training: none of the {STEPS} steps was applied")
    assert "the model gives no finite loss any more: lower optimizer.learning_rate" in found["too fast"]
    for run in ("poisoned", "fast"):
        assert last_event(root / run)["event"] == "failure"
    saves = [event["step"] for event in events_of(RunDirectory(root / "swept"), "save")]
    assert "swept" not in found and saves == [2, 4, 6, 8]
    assert found["broken"].startswith("RuntimeError: the roof")
    assert last_event(root / "broken")["reason"] == "RuntimeError: the roof is leaking"
    status = read_status(root / "broken")
    assert (status.state, status.failure) == ("failed", "RuntimeError: the roof is leaking")
