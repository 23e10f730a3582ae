# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One run in a directory: who holds it, whether that process lives, and what is taken over from the dead."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.run import lock
from memformer.run.directory import RunDirectory
from memformer.run.lock import RunLock

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    return RunDirectory(tmp_path / "runs/run")


def files(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.lock.iterdir())


def held_by(run: RunDirectory, **changes: Any) -> None:
    """A lock of this process, with some of what it says of itself changed."""
    taken = RunLock.take(run)
    taken.accept()
    (path,) = run.lock.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def train_until_killed(root: Path) -> None:
    taken = RunLock.take(RunDirectory(root))
    taken.accept()
    (root / "taken").touch()
    time.sleep(60)


def killed(run: RunDirectory) -> BaseProcess:
    """A process that has taken the lock and was killed; it is not reaped before `join`."""
    process = FORK.Process(target=train_until_killed, args=(run.root,))
    process.start()
    while not (run.root / "taken").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


def test_one_life_after_another(run: RunDirectory) -> None:
    for number, how in enumerate((lock.FINISHED, lock.STOPPED, lock.FAILED), start=1):
        taken = RunLock.take(run)
        taken.accept()
        assert files(run) == [f"{number:08d}.held"], "what earlier lives left is gone"
        taken.release(how)
        taken.release(lock.FINISHED)
        assert files(run) == [f"{number:08d}.{how}"], "the first word counts"


def test_a_second_one_is_refused_and_told_whom_it_would_disturb(run: RunDirectory) -> None:
    RunLock.take(run)
    with pytest.raises(UserError) as refused:
        RunLock.take(run)
    said = str(refused.value)
    assert f"run_dir: {run.root} is in use: process {os.getpid()} on {socket.gethostname()} trains there" in said
    assert f"touch {run.stop_file}" in said
    assert refused.value.exit_code == 2
    assert files(run) == ["00000001.held"]


def test_a_life_that_is_refused_leaves_everything_as_it_was(run: RunDirectory, tmp_path: Path) -> None:
    RunLock.take(run).withdraw()
    assert not (tmp_path / "runs").exists()
    first = RunLock.take(run)
    first.accept()
    first.release(lock.FINISHED)
    RunLock.take(run).withdraw()
    assert files(run) == ["00000001.finished"]


@pytest.mark.parametrize("where", ["os.fsync", "_files"])
def test_a_key_press_while_it_is_taken_leaves_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def pressed(_: object) -> None:
        if list(run.root.glob("lock/*")):
            raise KeyboardInterrupt

    monkeypatch.setattr(lock.os if where == "os.fsync" else lock, where.removeprefix("os."), pressed)
    monkeypatch.setattr(lock, "refuse_held", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        RunLock.take(run)
    assert not run.root.exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(run: RunDirectory, reaped: bool) -> None:
    process = killed(run)
    if reaped:
        process.join()
    RunLock.take(run).accept()
    assert files(run) == ["00000002.held"]
    process.join()


OTHERS: dict[str, tuple[dict[str, Any], dict[str, str], bool | None]] = {
    "this very process": ({}, {}, True),
    "its number is another process's now": ({"started": 1}, {}, False),
    "no process has that number": ({"process": 2**22 + 1}, {}, False),
    "another container, whose flock is held": ({"namespace": "pid:[1]"}, {}, True),
    "another container, without an flock": ({"namespace": "pid:[1]", "flocked": False}, {}, None),
    "another machine": ({"boot": "other", "host": "node7", "machine": "other"}, {}, None),
    "another machine of the same name": ({"boot": "other", "machine": "other", "time": 1.0}, {}, None),
    "this machine before it was started": ({"boot": "other", "time": 1.0}, {}, False),
    "a machine with the same identity, later": ({"boot": "other"}, {}, None),
    "an earlier life of this job": ({"boot": "other", "job": "7"}, {"SLURM_RESTART_COUNT": "1"}, False),
    "this life of this job, elsewhere": ({"boot": "other", "job": "7", "life": 1}, {"SLURM_RESTART_COUNT": "1"}, None),
    "another cluster's job": ({"boot": "other", "job": "7", "cluster": "b"}, {"SLURM_RESTART_COUNT": "1"}, None),
    "an earlier life that lives here": ({"job": "7"}, {"SLURM_RESTART_COUNT": "1"}, True),
}


@pytest.mark.parametrize("case", OTHERS)
def test_whether_a_holder_lives(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    changes, environment, living = OTHERS[case]
    monkeypatch.setattr(lock, "MACHINE_ID", run.root.parent / "machine-id")
    run.root.mkdir(parents=True)
    (run.root.parent / "machine-id").write_text("this one\n")
    held_by(run, **changes)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    entry = lock.newest(run)
    assert entry is not None
    assert lock.is_living(entry)[0] is living
    if living is False:
        RunLock.take(run)
    else:
        with pytest.raises(UserError, match="in use"):
            RunLock.take(run)


def test_the_flock_of_a_dead_process_of_another_container_is_free(run: RunDirectory) -> None:
    process = killed(run)
    (path,) = run.lock.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"namespace": "pid:[1]"}))
    process.join()
    entry = lock.newest(run)
    assert entry is not None and lock.is_living(entry)[0] is False


def test_a_copy_of_a_run_is_not_in_use(run: RunDirectory, tmp_path: Path) -> None:
    taken = RunLock.take(run)
    taken.accept()
    copy = RunDirectory(tmp_path / "copy")
    copy.lock.mkdir(parents=True)
    (copy.lock / "00000001.held").write_bytes((run.lock / "00000001.held").read_bytes())
    RunLock.take(copy)


ANSWERS: list[tuple[bool | None, int | None, str]] = [
    (True, None, ""),
    (False, 2, "its job has not ended"),
    (None, 1, "Slurm does not say whether its job has ended"),
]


@pytest.mark.parametrize(("answer", "code", "said"), ANSWERS)
def test_a_job_on_another_machine_is_asked_for(
    run: RunDirectory, answer: bool | None, code: int | None, said: str
) -> None:
    held_by(run, boot="other", host="node7", machine="", job="12")
    asked: list[str | None] = []
    ask: Callable[[lock.Holder], bool | None] = lambda holder: asked.append(holder.job) or answer  # noqa: E731
    if code is None:
        lock.refuse_held(run, ask)
        assert files(run) == ["00000001.lost"]
        RunLock.take(run)
    else:
        with pytest.raises(UserError) as refused:
            lock.refuse_held(run, ask)
        assert refused.value.exit_code == code
        for part in (said, "on node7 (Slurm job 12)", f"rm -r {run.lock}"):
            assert part in str(refused.value)
        assert files(run) == ["00000001.held"]
    assert asked == ["12"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"host": 3'])
def test_a_damaged_lock_is_no_free_directory(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(lock, "WRITING_SECONDS", 0.05)
    run.lock.mkdir(parents=True)
    (run.lock / "00000001.held").write_text(content)
    with pytest.raises(UserError, match=rf"is damaged.*rm -r {run.lock}"):
        RunLock.take(run)


@pytest.mark.parametrize(
    "damage",
    [{"time": None}, {"time": 1e30}, {"process": "7"}, {"process": 10**30}, {"started": None}, {"file": 3}, {"job": 7}],
)
def test_a_lock_that_says_what_none_would_is_damaged(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, damage: dict[str, Any]
) -> None:
    monkeypatch.setattr(lock, "WRITING_SECONDS", 0.05)
    held_by(run, **damage)
    with pytest.raises(UserError, match="is damaged"):
        RunLock.take(run)


@pytest.mark.parametrize("stray", ["README", "00000001.held~", "00000009.bak", "\u00b2.held"])
def test_files_that_no_life_makes_do_not_count(run: RunDirectory, stray: str) -> None:
    RunLock.take(run).accept()
    (run.lock / stray).write_text("")
    with pytest.raises(UserError, match="is in use"):
        RunLock.take(run)


def contend(root: Path, barrier: Any, answers: Any) -> None:
    run = RunDirectory(root)
    barrier.wait()
    try:
        RunLock.take(run).accept()
    except UserError as error:
        answers.put(str(error))
    else:
        answers.put("")
    barrier.wait()


@pytest.mark.parametrize("left", ["nothing", "a dead life"])
def test_of_several_at_the_same_moment_exactly_one_wins(run: RunDirectory, left: str) -> None:
    if left == "a dead life":
        killed(run).join()
    count = 8
    for _ in range(5):
        barrier, answers = FORK.Barrier(count), FORK.Queue()
        processes = [FORK.Process(target=contend, args=(run.root, barrier, answers)) for _ in range(count)]
        for process in processes:
            process.start()
        said = [answers.get(timeout=30) for _ in processes]
        for process in processes:
            process.join(30)
        assert said.count("") == 1, said
        assert all("is in use" in line for line in said if line)


def test_a_number_that_was_taken_long_ago_does_not_win(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process looks, sleeps while two lives pass, and finds its number free again."""
    killed(run).join()
    create = RunLock._create.__func__  # type: ignore[attr-defined]
    late = [True]

    def delayed(cls: type[RunLock], run: RunDirectory, number: int) -> RunLock | None:
        if late and late.pop():
            (run.root / "taken").unlink()
            killed(run).join()  # number 2, and then one that trains
            living = create(cls, run, 3)
            assert living is not None
            living.accept()
            kept.append(living)
        return create(cls, run, number)  # type: ignore[no-any-return]

    kept: list[RunLock] = []
    monkeypatch.setattr(RunLock, "_create", classmethod(delayed))
    with pytest.raises(UserError, match="is in use"):
        RunLock.take(run)
    assert files(run) == ["00000003.held"]


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be locked"):
        RunLock.take(RunDirectory(tmp_path / "file/run"))


def test_the_job_of_a_process() -> None:
    assert lock.slurm_job({"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "2"}) == ("5", 2)
    array = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "1"}
    assert lock.slurm_job(array) == ("4_1", 0)
