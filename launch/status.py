# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run is doing, from its files alone: no process of it and no scheduler is asked.

metrics.jsonl gives step, loss and speed; events.jsonl starts, saves and ends; lock/ the process that trains, of which
its own machine knows whether it lives; jobs.jsonl and submission.json, where a job script wrote them, the jobs and
their lives.
"""

import dataclasses
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError
from memformer.checkpoints.directory import candidates
from memformer.run import jsonl, lock
from memformer.run.directory import RunDirectory
from memformer.run.task_shares import shares_of

SPEED_STEPS = 20
"""The speed is the median of this many last steps."""

SILENT_SECONDS = 600.0
"""A run that says it is training and has written nothing for this long, or for 20 steps, is called silent."""


LIFE_EVENTS = ("start", "resume", "preemption", "failure", "hang", "end")
"""Events that begin or end a life."""

GONE = "its process has ended without a word: killed by SIGKILL, by a lack of memory, or with its machine; see logs"
UNTOLD = "its events do not say how it ended, as when the disk is full; see logs"
UNTOLD_STATES = {lock.FINISHED: "finished", lock.STOPPED: "stopped", lock.FAILED: "failed", lock.LOST: "failed"}
"""How a life ended that only its lock tells of."""

BEAT_SECONDS = 120.0
"""A heartbeat is due every few seconds; file servers may show it a minute late."""


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        run: Its directory.
        state: pending (submitted, not started), starting, running, silent, requeued (stopped, goes on by itself),
            stopped (saved, waits for someone), failed, finished, or empty (no run there yet).
        step: Optimizer steps done.
        max_steps: Steps of the whole run; None if it has written no configuration yet.
        loss: Of the last step.
        tokens_per_second: Median of the last steps.
        step_seconds: The same of the time a step takes.
        eta_seconds: To the last step; None when it is not running or has finished.
        checkpoint: The newest complete checkpoint; None: there is none.
        restarts: Lives after the first.
        jobs: Ids of the jobs, oldest first.
        nodes: Nodes of the last life.
        processes: Processes of the last life.
        seconds_since_news: Since the run last wrote anything; None: it has not.
        tasks: Step and shares of right answers (`run.task_shares`) when the run was last asked tasks; None: it was not.
        events: The last events, oldest first.
        failure: What the last failure, or what stopped the run, said; None: neither since the last start.
        process: Who trains, or trained last, and whether it lives; None where no lock tells (runs of older versions).
    """

    run: str
    state: str
    step: int
    max_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    eta_seconds: float | None
    checkpoint: str | None
    restarts: int
    jobs: list[str]
    nodes: list[str]
    processes: int | None
    seconds_since_news: float | None
    tasks: dict[str, Any] | None
    events: list[dict[str, Any]]
    failure: str | None
    process: str | None


def read_status(root: Path, last_events: int = 5, now: datetime | None = None) -> RunStatus:
    """Reads a run's files.

    Args:
        root: The run directory.
        last_events: How many events to give.
        now: The time (default: the clock's).

    Raises:
        UserError: There is no such directory, or it is no run's.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is no directory: give the run_dir of a run")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"{root}: cannot be read: mend its permissions, or ask whose it is")
    run = RunDirectory(root)
    signs = (run.events, run.metrics, run.checkpoints, run.lock, root / "jobs.jsonl", root / "submit.yaml")
    if not any(path.exists() for path in (*signs, root / "submission.json")):
        raise UserError(
            f"{root}: holds no run (no events.jsonl, metrics.jsonl or checkpoints): give the run_dir of one"
        )
    now = now or datetime.now(timezone.utc)
    metrics = jsonl.tail(run.metrics)
    events = [event for event in jsonl.tail(run.events) if "event" in event]
    lives = [life for life in jsonl.tail(root / "jobs.jsonl") if "event" in life]
    submission = _submission(root)
    last = metrics[-1] if metrics else {}
    recent = metrics[-SPEED_STEPS:]
    step_seconds = _median([row["step_seconds"] for row in recent if row.get("step_seconds")])
    max_steps = _max_steps(root)
    news = [path.stat().st_mtime for path in (run.metrics, run.events, root / "jobs.jsonl") if path.exists()]
    silence = now.timestamp() - max(news) if news else None
    trainer = _trainer(run, now)
    if trainer.job is not None:  # a job that found the directory in use says nothing of the run
        lives = [life for life in lives if life.get("job", trainer.job) == trainer.job]
    state, failure = _state(events, lives, submission, silence, step_seconds, trainer)
    step = int(last.get("step", 0))
    running = state == "running" and step_seconds is not None and max_steps is not None
    jobs = [*(submission.get("jobs", [])), *(str(life["job"]) for life in lives if "job" in life)]
    started = [life for life in lives if life["event"] == "start"]
    starts = [event for event in events if event["event"] == "start"]
    newest = next((path for path in candidates(run) if (path / "manifest.json").exists()), None)
    return RunStatus(
        run=str(root),
        state=state,
        step=step,
        max_steps=max_steps,
        loss=last.get("loss"),
        tokens_per_second=_median([row["tokens_per_second"] for row in recent if row.get("tokens_per_second")]),
        step_seconds=step_seconds,
        eta_seconds=(max_steps - step) * step_seconds if running and max_steps and step_seconds else None,
        checkpoint=newest.name if newest else None,
        restarts=max(0, max(len(started), len(starts)) - 1),
        jobs=sorted(set(jobs), key=jobs.index),
        nodes=str(started[-1].get("nodes", "")).split() if started else [],
        processes=starts[-1].get("processes") if starts else None,
        seconds_since_news=None if silence is None else round(max(0.0, silence), 1),
        tasks=_asked(events),
        events=events[max(0, len(events) - last_events) :],
        failure=failure,
        process=trainer.words,
    )


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """What the lock says of the process that trains, or trained last.

    Attributes:
        how: How that life ended (`finished`, `stopped`, `failed`, `lost`), `held`, or empty where there is no lock.
        living: Of one that holds the lock, whether it still runs; None: it cannot be known from here.
        since: When it took the lock, as events give it.
        job: The Slurm job that holds the lock.
        beat_seconds: Since its last heartbeat; 0 where it writes none.
        words: All this in words.
    """

    how: str = ""
    living: bool | None = None
    since: str = ""
    job: str | None = None
    beat_seconds: float = 0.0
    words: str | None = None


def _trainer(run: RunDirectory, now: datetime) -> _Trainer:
    entry = lock.newest(run)
    if entry is None:
        return _Trainer()
    holder = entry.holder
    if holder is None or entry.how != lock.HELD:
        return _Trainer(entry.how, words=None if holder is None else f"{holder}: {entry.how}")
    living, why = lock.is_living(entry)
    tells = {True: "runs", False: f"is gone: {why}", None: f"whether it runs cannot be told from here: {why}"}[living]
    since = datetime.fromtimestamp(holder.time, timezone.utc).isoformat(timespec="milliseconds")
    try:
        beat = now.timestamp() - (run.heartbeats / "rank-00000.json").stat().st_mtime
    except OSError:
        beat = 0.0
    return _Trainer(entry.how, living, since, holder.job, beat, f"{holder}, {tells}")


def _state(
    events: list[dict[str, Any]],
    lives: list[dict[str, Any]],
    submission: dict[str, Any],
    silence: float | None,
    step_seconds: float | None,
    trainer: _Trainer,
) -> tuple[str, str | None]:
    """The state, and what the last failure said."""
    told = [event for event in events if event["event"] in LIFE_EVENTS]
    last = told[-1] if told else None
    life = lives[-1] if lives else None
    if trainer.how == lock.HELD and trainer.living is not False and trainer.since > str((last or {}).get("time", "")):
        return "starting", None
    if last is not None and last["event"] == "end":
        return "finished", None
    if life is not None and life["event"] == "end":
        outcome, detail = life.get("outcome"), str(life.get("detail", "")) or None
        if outcome == "stopped":
            # With a state it was Slurm that ended the job, most often for scancel; a new life would say so itself.
            return ("stopped" if life.get("state") else "requeued"), None
        return ("requeued" if life.get("again") == "yes" else "failed"), detail or str(outcome)
    if submission and str(submission.get("time", "")) > str((life or last or {}).get("time", "")):
        return "pending", None
    if life is not None and (last is None or str(life["time"]) > str(last["time"])):
        return "starting", None
    if last is None and trainer.how == lock.STOPPED:
        return "stopped", "SIGTERM, before it began"
    if last is None:
        return ("failed", GONE) if trainer.how == lock.HELD and trainer.living is False else ("empty", None)
    if last["event"] == "failure":
        return "failed", _first_failure(told)
    if last["event"] == "hang":
        culprits = last.get("culprits")
        who = "; ".join(map(str, culprits)) if isinstance(culprits, list) else str(culprits)
        return "failed", f"nothing moved any more at step {last.get('step')}: {who}"
    if last["event"] == "preemption":
        return ("requeued" if lives else "stopped"), str(last.get("reason", "")) or None
    if trainer.how == lock.HELD and trainer.living is False:
        # A job script says what comes next, after a moment; until then nobody has to do anything.
        return ("silent" if lives else "failed"), GONE
    if trainer.how in UNTOLD_STATES:
        return UNTOLD_STATES[trainer.how], UNTOLD
    if not trainer.living and trainer.beat_seconds > BEAT_SECONDS:
        return "silent", f"no sign of its process for {lock.duration(trainer.beat_seconds)} h"
    patience = max(SILENT_SECONDS, 20 * (step_seconds or 0.0))
    return ("silent" if silence is not None and silence > patience else "running"), None


def _asked(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What came of the tasks of the newest event that has some; one of another version may have them otherwise."""
    event = next((event for event in reversed(events) if event["event"] == "tasks"), None)
    try:
        return None if event is None else {"step": event["step"], "shares": shares_of(event["results"])}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None


def _first_failure(told: list[dict[str, Any]]) -> str | None:
    """What went wrong first in the last life: others may have failed of it, and a launcher knows the exit code only."""
    begun = max((number for number, event in enumerate(told) if event["event"] in ("start", "resume")), default=-1)
    failures = [event for event in told[begun + 1 :] if event["event"] == "failure"]
    first = next((event for event in failures if not event.get("follows")), failures[0])
    return str(first.get("reason", "")) or None


def _submission(root: Path) -> dict[str, Any]:
    try:
        record = json.loads((root / "submission.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _max_steps(root: Path) -> int | None:
    for name in ("config.yaml", "submit.yaml"):
        try:
            return int(yaml.safe_load((root / name).read_text(encoding="utf-8"))["training"]["max_steps"])
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
            continue
    return None


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
