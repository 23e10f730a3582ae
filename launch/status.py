# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run is doing, from its files alone: no process of it and no scheduler is asked.

metrics.jsonl gives step, loss and speed; events.jsonl starts, saves and ends; jobs.jsonl and submission.json, where a
job script wrote them, the jobs and their lives.
"""

import dataclasses
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError
from memformer.checkpoints.directory import candidates
from memformer.run import jsonl
from memformer.run.directory import RunDirectory

SPEED_STEPS = 20
"""The speed is the median of this many last steps."""

SILENT_SECONDS = 600.0
"""A run that says it is training and has written nothing for this long, or for 20 steps, is called silent."""


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
        events: The last events, oldest first.
        failure: What the last failure said; None: there was none since the last start.
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
    events: list[dict[str, Any]]
    failure: str | None


def read_status(root: Path, last_events: int = 5, now: datetime | None = None) -> RunStatus:
    """Reads a run's files.

    Args:
        root: The run directory.
        last_events: How many events to give.
        now: The time (default: the clock's).

    Raises:
        UserError: There is no such directory.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is no directory: give the run_dir of a run")
    run = RunDirectory(root)
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
    state, failure = _state(events, lives, submission, silence, step_seconds)
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
        events=events[-last_events:],
        failure=failure,
    )


def _state(
    events: list[dict[str, Any]],
    lives: list[dict[str, Any]],
    submission: dict[str, Any],
    silence: float | None,
    step_seconds: float | None,
) -> tuple[str, str | None]:
    """The state, and what the last failure said."""
    told = [event for event in events if event["event"] in ("start", "resume", "preemption", "failure", "end")]
    last = told[-1] if told else None
    life = lives[-1] if lives else None
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
    if last is None:
        return "empty", None
    if last["event"] == "failure":
        return "failed", str(last.get("reason", "")) or None
    if last["event"] == "preemption":
        return ("requeued" if lives else "stopped"), None
    patience = max(SILENT_SECONDS, 20 * (step_seconds or 0.0))
    return ("silent" if silence is not None and silence > patience else "running"), None


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
