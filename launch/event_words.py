# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Events of a run as sentences, for `memformer status`; events.jsonl itself has every detail."""

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from memformer.run.task_shares import in_words, shares_of

Event = dict[str, Any]


def describe_event(event: Event) -> str:
    """One line: the time, and what happened; an event that is not known here is given by its names and values."""
    words = SENTENCES.get(str(event.get("event")), _plainly)
    try:
        said = words(event)
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version: with other details
        said = _plainly(event)
    return f"{str(event.get('time', ''))[:19].replace('T', ' ')}  {said}"


def _save(event: Event) -> str:
    pause = f", training stood still for {event['pause_seconds']:.2g} s" if "pause_seconds" in event else ""
    return f"step {event['step']} saved ({_size(event['bytes'])}{pause})"


def _evaluation(event: Event) -> str:
    names = {"with_memory": "with memory", "memory_reset": "with it reset at every segment"}
    if event.get("with_memory", {}).get("counted_tokens") == 0:
        return f"step {event['step']} held-out perplexity: none, no token that was read counts"
    scores = [f"{_number(event[mode]['perplexity'])} {words}" for mode, words in names.items() if mode in event]
    return f"step {event['step']} held-out perplexity: {', '.join(scores)}"


def _tasks(event: Event) -> str:
    return f"step {event['step']} {in_words(shares_of(event['results']))}"


def _resume(event: Event) -> str:
    changes = event.get("changes") or []
    said = f"; changed: {', '.join(map(_value, changes))}" if changes else ""
    return f"resumed from {PurePath(event['checkpoint']).name}{said}"


def _skip(event: Event) -> str:
    place = f", first at {_value(event['first_bad'])}" if event.get("first_bad") else ""
    parameter = f", parameter {event['parameter']}" if event.get("parameter") else ""
    loss = "not finite" if event["loss"] is None else _number(event["loss"])
    return f"step {event['step']} skipped: no finite gradient, loss {loss}{place}{parameter}"


def _spike(event: Event) -> str:
    worst = f", worst at {_value(event['worst'])}" if event.get("worst") else ""
    return f"step {event['step']}: the loss jumped to {_number(event['loss'])} (score {event['score']:.1f}{worst})"


def _step_times(event: Event) -> str:
    medians = [rank["step"]["p50"] for rank in event["ranks"]]
    slow = "; ".join(map(str, event["slow"])) or "no rank is slow"
    return f"step {event['step']}: {max(medians):.3g} s a step; {slow}"


def _end(event: Event) -> str:
    if event.get("steps") == 0:
        return f"started again, and nothing was left to do after step {event['step']}"
    return f"finished at step {event['step']}, {event['tokens']:,} tokens"


SENTENCES: dict[str, Callable[[Event], str]] = {
    "start": lambda e: f"training from step {e['step'] + 1} on {_count(e['processes'], 'process', 'processes')}",
    "resume": _resume,
    "save": _save,
    "save_failed": lambda e: f"step {e['step']} could not be saved: {e['reason']}",
    "fetch": lambda e: f"step {e['step']} fetched from {e['address']} ({_size(e['bytes'])})",
    "mirror": lambda e: f"step {e['step']} copied to {e['address']} ({_size(e['sent'])} sent)",
    "mirror_failed": lambda e: f"step {e['step']} could not be copied: {e['reason']}",
    "mirror_incomplete": lambda e: f"{e['address']} has no complete copy of step {_value(e['steps'])}",
    "checkpoint_skipped": lambda e: f"a checkpoint was skipped: {e['reason']}",
    "checkpoint_incomplete": lambda e: f"went on without what the weights do not need: {_value(e['lost'])}",
    "checkpoint_set_aside": lambda e: f"{PurePath(e['checkpoint']).name} was given up, and is kept as {e['renamed']}",
    "steps_repeated": lambda e: f"steps {e['first']} to {e['last']} are trained again: {'; '.join(e['reasons'])}",
    "metrics_missing": lambda e: f"metrics.jsonl holds nothing of steps {e['first']} to {e['last']}",
    "evaluation": _evaluation,
    "tasks": _tasks,
    "skip": _skip,
    "overflow": lambda e: f"step {e['step']} left out: its gradient overflowed at loss scale {e['loss_scale']:g}",
    "spike": _spike,
    "rollback": lambda e: f"step {e['step']}: back to the weights of {PurePath(e['checkpoint']).name}",
    "step_times": _step_times,
    "desynchronised": lambda e: f"step {e['step']}: replicas differ: {'; '.join(map(str, e['ranks']))}",
    "skip_document": lambda e: f"{e['documents']} document {e['document']} is damaged and was left out: {e['reason']}",
    "out_of_memory": lambda e: f"step {e['step']}: rank {e['rank']} ran out of memory",
    "hang": lambda e: f"step {e['step']}: nothing moved any more: {'; '.join(map(str, e['culprits']))}",
    "preemption": lambda e: f"stopped{_after(e)}: {e['reason']}",
    "failure": lambda e: f"failed: {e['reason']}",
    "end": _end,
}
"""What each event says, by its name."""


def _plainly(event: Event) -> str:
    details = [
        f"{key.replace('_', ' ')} {_value(value)}" for key, value in event.items() if key not in ("time", "event")
    ]
    return " ".join([str(event.get("event", "")).replace("_", " ")] + ([f"({', '.join(details)})"] if details else []))


def _value(value: Any) -> str:
    """A value without the marks of a programming language."""
    if isinstance(value, dict):
        return " ".join(f"{str(key).replace('_', ' ')} {_value(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return _number(value)
    return "none" if value is None else str(value)


def _after(event: Event) -> str:
    return f" after step {event['step']}" if "step" in event else ""


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
