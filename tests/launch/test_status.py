# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer status`: every state of a run, told from files written by hand.

Covers: launch/commands/status.py
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from memformer.run import lock

EVENTS = {
    "submission": {"time": "2026-01-01T10:00:00+00:00", "jobs": ["7"]},
    "life": {"time": "2026-01-01T10:01:00+00:00", "event": "start", "job": "7", "life": 0, "nodes": "node1 node2"},
    "start": {"time": "2026-01-01T10:01:30.500+00:00", "event": "start", "step": 0, "processes": 4},
    "preemption": {"time": "2026-01-01T10:02:00.100+00:00", "event": "preemption", "step": 4, "reason": "SIGUSR1"},
    "stopped": {"time": "2026-01-01T10:02:05+00:00", "event": "end", "job": "7", "life": 0, "outcome": "stopped"},
    "cancelled": {"time": "2026-01-01T10:02:06+00:00", "event": "end", "outcome": "stopped", "state": "CANCELLED"},
    "life 1": {"time": "2026-01-01T10:03:00+00:00", "event": "start", "job": "7", "life": 1, "nodes": "node1 node3"},
    "resume": {"time": "2026-01-01T10:03:30.000+00:00", "event": "resume", "step": 4},
    "start 1": {"time": "2026-01-01T10:03:30.001+00:00", "event": "start", "step": 4, "processes": 4},
    "again": {"time": "2026-01-01T10:04:00+00:00", "event": "end", "outcome": "failed", "again": "yes", "detail": "x"},
    "failed": {"time": "2026-01-01T10:04:00+00:00", "event": "end", "outcome": "failed", "again": "no", "detail": "x"},
    "gave up": {"time": "2026-01-01T10:05:00+00:00", "event": "end", "outcome": "gave up"},
    "end": {"time": "2026-01-01T10:04:00.000+00:00", "event": "end", "step": 10, "tokens": 5},
    "nothing left": {"time": "2026-01-01T10:05:00+00:00", "event": "end", "step": 10, "tokens": 5, "steps": 0},
    "failure": {"time": "2026-01-01T10:02:00.100+00:00", "event": "failure", "rank": 1, "reason": "rank 1 was killed"},
    "hang": {"time": "2026-01-01T10:02:00.100+00:00", "event": "hang", "step": 5, "culprits": ["rank 1: stopped"]},
}
JOBS = ("life", "stopped", "cancelled", "life 1", "again", "failed", "gave up")


def write_run(root: Path, *names: str) -> Path:
    """A run directory with the named records."""
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text("training:\n  max_steps: 10\n")
    for name in names:
        if name == "submission":
            (root / "submission.json").write_text(json.dumps(EVENTS[name]))
            continue
        file = root / ("jobs.jsonl" if name in JOBS else "events.jsonl")
        with file.open("a") as lines:
            lines.write(json.dumps(EVENTS[name]) + "\n")
    return root


def status(capsys: pytest.CaptureFixture[str], root: Path) -> dict[str, Any]:
    assert cli.main(["status", str(root), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ("", "empty"),
        ("submission", "pending"),
        ("submission life", "starting"),
        ("submission life start", "running"),
        ("start", "running"),
        ("submission life start preemption", "requeued"),
        ("submission life start preemption stopped", "requeued"),
        ("submission life start preemption stopped cancelled", "stopped"),
        ("start preemption", "stopped"),
        ("submission life start preemption stopped,life 1", "starting"),
        ("submission life start preemption stopped,life 1,resume,start 1", "running"),
        ("submission life start,life 1,resume,start 1,again", "requeued"),
        ("submission life start,life 1,resume,start 1,failed", "failed"),
        ("submission life start,gave up", "failed"),
        ("submission life start,end", "finished"),
        ("start,end,resume,nothing left", "finished"),
        ("start,failure", "failed"),
        ("start,hang", "failed"),
        ("start,failure,start 1", "running"),
    ],
)
def test_states(capsys: pytest.CaptureFixture[str], tmp_path: Path, names: str, state: str) -> None:
    given = [name for part in names.split(",") for name in ([part] if part in EVENTS else part.split())]
    assert status(capsys, write_run(tmp_path / "run", *given))["state"] == state


HERE = {"boot": lock._line(Path("/proc/sys/kernel/random/boot_id")), "namespace": os.readlink("/proc/self/ns/pid")}
ALIVE = {**HERE, "process": os.getpid(), "started": lock._started(os.getpid())}
GONE = {**HERE, "process": 2**22 + 1}
ELSEWHERE = {"boot": "other", "process": 5}
NOW, BEFORE = time.time(), 1767261690.0  # the second: when "start" is
LOCKS: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    # events, how the lock stands, its holder, state, what is said
    "it runs": ("start", "held", ALIVE, "running", "runs"),
    "it was killed": ("start", "held", GONE, "failed", "ended without a word"),
    "it was killed before it began": ("", "held", GONE, "failed", "ended without a word"),
    "it was killed in a job": ("submission life start", "held", GONE, "silent", "ended without a word"),
    "on another machine": ("start", "held", ELSEWHERE, "running", "cannot be told from here"),
    "it begins": ("start,end", "held", {**ALIVE, "time": NOW}, "starting", "runs"),
    "it begins elsewhere": ("start,end", "held", {**ELSEWHERE, "time": NOW}, "starting", "cannot be told from here"),
    "its failure could not be written": ("start", "failed", GONE, "failed", "do not say how it ended"),
    "its end could not be written": ("start", "finished", GONE, "finished", "finished"),
    "its job has ended": ("start", "lost", ELSEWHERE, "failed", "lost"),
    "a later job found it in use": ("life start,failed", "held", {**ALIVE, "job": "7"}, "running", "runs"),
}


@pytest.mark.parametrize("case", LOCKS)
def test_a_process_that_lives_is_told_from_one_that_is_gone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    names, how, holder, state, said = LOCKS[case]
    given = [name for part in names.split(",") for name in ([part] if part in EVENTS else part.split())]
    run = write_run(tmp_path / "run", *given)
    if case.startswith("a later job"):
        (run / "jobs.jsonl").write_text((run / "jobs.jsonl").read_text().replace('"outcome"', '"job": "8", "outcome"'))
    (run / "lock").mkdir()
    (run / f"lock/00000003.{how}").write_text(json.dumps({"host": "node7", "time": BEFORE, **holder}))
    found = status(capsys, run)
    assert found["state"] == state
    assert said in f"{found['failure']} {found['process']}"
    assert cli.main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert ("next: the command that started it starts afresh" in shown) == (state == "failed")


def test_a_run_without_heartbeats_for_long_is_not_called_running(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On another machine, where nobody can look for the process."""
    run = write_run(tmp_path / "run", "start")
    for name, content in (("lock/00000001.held", {"host": "node7", "time": BEFORE, **ELSEWHERE}), ("heartbeats", {})):
        path = run / name if content else run / "heartbeats/rank-00000.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    assert status(capsys, run)["state"] == "running"
    long_ago = time.time() - 200
    os.utime(run / "heartbeats/rank-00000.json", (long_ago, long_ago))
    found = status(capsys, run)
    assert (found["state"], found["eta_seconds"]) == ("silent", None)
    assert "no sign of its process for 0:03:2" in found["failure"]


def test_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "submission", "life", "start", "life 1", "resume", "start 1")
    rows = [{"step": step, "loss": 5.0 - step, "step_seconds": 2.0, "tokens_per_second": 50.0} for step in range(1, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    (run / "checkpoints/step-00000004").mkdir()
    (run / "checkpoints/step-00000004/manifest.json").write_text("{}")
    (run / "checkpoints/step-00000005").mkdir()
    found = status(capsys, run)
    expected = {
        "step": 4,
        "max_steps": 10,
        "loss": 1.0,
        "step_seconds": 2.0,
        "tokens_per_second": 50.0,
        "eta_seconds": 12.0,
        "checkpoint": "step-00000004",
        "restarts": 1,
        "jobs": ["7"],
        "nodes": ["node1", "node3"],
        "processes": 4,
    }
    assert {name: found[name] for name in expected} == expected
    assert [event["event"] for event in found["events"]] == ["start", "resume", "start"]
    assert cli.main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    for part in ("running", "step 4/10 (40 %), loss 1.0000", "done in 0:00:12", "step-00000004", "node1, node3"):
        assert part in said


def test_a_run_that_says_nothing_for_long_is_not_called_running(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", "start")
    long_ago = time.time() - 3600
    os.utime(run / "events.jsonl", (long_ago, long_ago))
    found = status(capsys, run)
    assert found["state"] == "silent"
    assert found["seconds_since_news"] > 3500


def test_follow_ends_with_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "submission", "life", "start", "end")
    assert cli.main(["status", str(run), "--follow"]) == 0
    assert capsys.readouterr().out.startswith("finished")


def test_only_the_end_of_long_metrics_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "start")
    line = json.dumps({"step": 1, "loss": 1.0, "note": "x" * 1000}) + "\n"
    (run / "metrics.jsonl").write_text(line * 2000 + json.dumps({"step": 9, "loss": 2.0}) + "\n")
    assert status(capsys, run)["step"] == 9


CAUSES = {
    "the rank's own word": ([{"reason": "no room"}, {"reason": "rank 0 failed (exit code 1)"}], "no room"),
    "the launcher's": ([{"reason": "lost it", "follows": True}, {"reason": "rank 1 was killed"}], "rank 1 was killed"),
    "another rank's": (
        [{"reason": "lost it", "follows": True}, {"reason": "roof"}, {"reason": "rank 1 failed"}],
        "roof",
    ),
    "the only one": ([{"reason": "lost it", "follows": True}], "lost it"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_of_several_failures_the_one_that_came_first_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    failures, told = CAUSES[case]
    run = write_run(tmp_path / "run", "start", "failure", "resume", "start 1")
    with (run / "events.jsonl").open("a") as lines:
        for failure in failures:
            lines.write(json.dumps({"time": "2026-01-01T10:05:00", "event": "failure", **failure}) + "\n")
    found = status(capsys, run)
    assert (found["state"], found["failure"]) == ("failed", told)


@pytest.mark.parametrize("content", [None, "", "notes.txt", "config.yaml"])
def test_no_such_run_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None) -> None:
    root = tmp_path / "none"
    if content is not None:
        root.mkdir()
        if content:
            (root / content).write_text("a: 1\n")
    assert cli.main(["status", str(root)]) == 2
    out, err = capsys.readouterr()
    assert "give the run_dir of" in err and err.count("\n") == 1
    assert out == ""


def test_as_many_events_are_shown_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", "start", "preemption", "resume", "start 1")
    for number, shown in ((0, 0), (1, 1), (4, 4), (9, 4)):
        assert cli.main(["status", str(run), "--json", "--events", str(number)]) == 0
        assert len(json.loads(capsys.readouterr().out)["events"]) == shown
    assert cli.main(["status", str(run), "--events", "-1"]) == 2
    assert "--events is -1: give 0 or more" in capsys.readouterr().err
