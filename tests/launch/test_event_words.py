# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Events as sentences: every kind that a run writes, and those that this version does not know."""

import re
from pathlib import Path
from typing import Any

import pytest

from launch.event_words import SENTENCES, describe_event

ROOT = Path(__file__).resolve().parents[2]
PLACE = {"segment": 1, "lane": 3, "document": 7, "rank": 0, "loss": 2.5}
EVENTS: dict[str, tuple[dict[str, Any], str]] = {
    "start": ({"step": 4, "processes": 2}, "training from step 5 on 2 processes"),
    "resume": (
        {"step": 4, "checkpoint": "/a/run/checkpoints/step-00000004", "changes": ["ZeRO 1 -> 2"]},
        "resumed from step-00000004; changed: ZeRO 1 -> 2",
    ),
    "save": (
        {"step": 4, "bytes": 5_300_000, "pause_seconds": 0.123},
        "step 4 saved (5.3 MB, training stood still for ",
    ),
    "save_failed": ({"step": 4, "reason": "process 0: No space"}, "step 4 could not be saved: process 0: No space"),
    "fetch": (
        {"step": 4, "address": "s3://bucket/run", "bytes": 5_300_000, "seconds": 1.5},
        "step 4 fetched from s3://bucket/run (5.3 MB)",
    ),
    "mirror": (
        {"step": 4, "address": "s3://bucket/run/step-00000004", "sent": 5_300_000, "found": 0, "deleted": []},
        "step 4 copied to s3://bucket/run/step-00000004 (5.3 MB sent)",
    ),
    "mirror_failed": (
        {"step": 4, "address": "s3://bucket/run/step-00000004", "reason": "status 503"},
        "step 4 could not be copied: status 503",
    ),
    "mirror_incomplete": (
        {"steps": [4, 8], "address": "s3://bucket/run"},
        "s3://bucket/run has no complete copy of step 4, 8",
    ),
    "checkpoint_skipped": ({"reason": "x: is missing"}, "a checkpoint was skipped: x: is missing"),
    "checkpoint_incomplete": (
        {"step": 4, "lost": ["random/rank-0"]},
        "went on without what the weights do not need: r",
    ),
    "checkpoint_set_aside": (
        {"checkpoint": "/a/step-00000004", "renamed": "step-00000004.set-aside-1"},
        "step-00000004 was given up, and is kept as step-00000004.set-aside-1",
    ),
    "steps_repeated": (
        {"first": 3, "last": 4, "reasons": ["a", "b"]},
        "steps 3 to 4 are trained again: a; b",
    ),
    "metrics_missing": ({"first": 3, "last": 4}, "metrics.jsonl holds nothing of steps 3 to 4"),
    "evaluation": (
        {"step": 4, "with_memory": {"perplexity": 12.345678}, "memory_reset": {"perplexity": 20}},
        "step 4 held-out perplexity: 12.346 with memory, 20 with it reset at every segment",
    ),
    "tasks": (
        {
            "step": 4,
            "results": [
                {
                    "task": "copy",
                    "cells": [
                        {"length": length, "questions": 4, "with_memory": {"right": 3}, "memory_reset": {"right": 1}}
                        for length in (0, 1600, 1600)
                    ],
                }
            ],
        },
        "step 4 right answers with memory (with it reset): copy 0.75 (0.25) without filler, "
        "0.75 (0.25) at 1,600 tokens",
    ),
    "skip": (
        {"step": 4, "loss": None, "first_bad": PLACE, "parameter": "head.weight"},
        "step 4 skipped: no finite gradient, loss not finite, first at segment 1 lane 3 document 7",
    ),
    "overflow": ({"step": 4, "loss_scale": 65536.0}, "step 4 left out: its gradient overflowed at loss scale 65536"),
    "spike": (
        {"step": 4, "loss": 9.5, "score": 7.25, "worst": PLACE},
        "step 4: the loss jumped to 9.5 (score 7.2, wor",
    ),
    "rollback": ({"step": 4, "checkpoint": "/a/step-00000002"}, "step 4: back to the weights of step-00000002"),
    "step_times": (
        {"step": 4, "ranks": [{"step": {"p50": 0.1}}, {"step": {"p50": 0.25}}], "slow": []},
        "step 4: 0.25 s a step; no rank is slow",
    ),
    "desynchronised": ({"step": 4, "ranks": ["rank 1: head.weight"]}, "step 4: replicas differ: rank 1: head.weight"),
    "skip_document": (
        {"documents": "training", "document": 7, "reason": "shard 1"},
        "training document 7 is damaged and was left out: shard 1",
    ),
    "out_of_memory": ({"step": 4, "rank": 1, "said": "a lot"}, "step 4: rank 1 ran out of memory"),
    "hang": ({"step": 4, "culprits": ["rank 1: stopped"]}, "step 4: nothing moved any more: rank 1: stopped"),
    "preemption": ({"step": 4, "reason": "SIGTERM"}, "stopped after step 4: SIGTERM"),
    "failure": ({"rank": 1, "reason": "rank 1 was killed by SIGKILL"}, "failed: rank 1 was killed by SIGKILL"),
    "end": ({"step": 4, "tokens": 12345}, "finished at step 4, 12,345 tokens"),
}


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_is_a_sentence(kind: str) -> None:
    details, expected = EVENTS[kind]
    said = describe_event({"time": "2026-01-01T10:00:00.123+00:00", "event": kind, **details})
    assert said.startswith(f"2026-01-01 10:00:00  {expected}")
    assert not re.search(r"[{}\[\]']", said)


def test_every_event_that_is_written_has_a_sentence() -> None:
    files = [*ROOT.glob("memformer/**/*.py"), *ROOT.glob("launch/**/*.py")]
    written = {kind for path in files for kind in re.findall(r'event\(\s*"(\w+)"', path.read_text())}
    assert len(written) > 10
    assert written <= set(SENTENCES)
    assert set(EVENTS) == set(SENTENCES)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"event": "lunch_break", "minutes": 30, "who": {"rank": 1}}, "lunch break (minutes 30, who rank 1)"),
        ({"event": "save", "step": 3}, "save (step 3)"),
        (
            {"event": "end", "step": 9, "tokens": 5, "steps": 0},
            "started again, and nothing was left to do after step 9",
        ),
        ({"event": "preemption", "reason": "a second signal"}, "stopped: a second signal"),
    ],
)
def test_what_is_not_known_is_told_plainly(event: dict[str, Any], said: str) -> None:
    assert describe_event(event).strip() == said
