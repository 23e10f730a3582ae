# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The line of metrics.jsonl: which fields it has, in which order, and when."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from memformer.run.directory import TIMING_FIELDS, RunDirectory
from memformer.run.metrics import MetricsWriter, StepFigures, log_line

FIGURES = StepFigures(
    loss=math.log(8),
    grad_norm=0.5,
    applied=True,
    loss_scale=None,
    learning_rate=1e-3,
    tokens=100,
    epochs=0.25,
    replay_buffer_bytes=64,
    memory_gradient_norms=[0.1, 0.2],
    memory=None,
    seconds=2.0,
    data_seconds=0.5,
    peak_memory_bytes=2**30,
)
BEFORE = [
    "step",
    "loss",
    "perplexity",
    "tokens",
    "num_segments",
    "epochs",
    "learning_rate",
    "grad_norm",
    "skipped_steps",
]
BEFORE += ["replay_buffer_bytes"]
TIMES = ["step_seconds", "data_seconds", "tokens_per_second", "mfu", "hfu", "peak_memory_bytes"]
UNKNOWN = {"mfu": None, "hfu": None}


def test_fields_stand_in_their_order() -> None:
    line = FIGURES.line(7, 900, 0, UNKNOWN, spike_score=1.5)
    assert list(line) == [*BEFORE, "memory_gradient_norms", *TIMES, "spike_score"]
    assert set(TIMES) == TIMING_FIELDS
    assert (line["step"], line["tokens"], line["spike_score"]) == (7, 900, 1.5)
    assert line["perplexity"] == pytest.approx(8)
    assert line["tokens_per_second"] == 50.0


def test_fields_that_only_some_steps_have() -> None:
    full = dataclasses.replace(FIGURES, memory_learning_rate=0.1, loss_scale=1024.0, memory={"self_weight": 0.8})
    line = full.line(7, 900, 1, UNKNOWN, spike_score=None)
    some = ["memory_learning_rate", "loss_scale", "memory"]
    assert list(line) == [*BEFORE, "memory_gradient_norms", *some, *TIMES], "skipped: no score"
    assert dataclasses.replace(FIGURES, memory={}).line(1, 1, 0, UNKNOWN, None)["memory"] == {}, "a model without slots"


def test_a_step_of_data_with_loss_weights_says_how_much_counted_and_may_have_no_loss(tmp_path: Path) -> None:
    """Speed and tokens are of all that was read."""
    run = RunDirectory(tmp_path)
    steps = [
        dataclasses.replace(FIGURES, counted_tokens=12.5),
        dataclasses.replace(FIGURES, loss=None, counted_tokens=0.0),
    ]
    with MetricsWriter(run, enabled=True, tensorboard=True, first_step=1) as writer:
        for number, figures in enumerate(steps, start=1):
            writer.step(figures.line(number, 100, 0, UNKNOWN, None))
    first, second = map(json.loads, run.metrics.read_text().splitlines())
    assert (first["loss"], first["counted_tokens"], first["tokens_per_second"]) == (math.log(8), 12.5, 50.0)
    assert (second["loss"], second["perplexity"], second["counted_tokens"]) == (None, None, 0.0)
    assert "loss    none | ppl      none |" in log_line(second, 100, 2.0)


def test_a_loss_that_is_no_number_is_null_in_the_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    bad = dataclasses.replace(FIGURES, loss=math.nan, grad_norm=math.inf, applied=False)
    with MetricsWriter(run, enabled=True, tensorboard=False, first_step=1) as writer:
        writer.step(bad.line(1, 100, 1, UNKNOWN, None))
    (row,) = map(json.loads, run.metrics.read_text().splitlines())
    assert row["loss"] is None and row["perplexity"] is None and row["grad_norm"] is None


def test_the_line_of_the_log_counts_down() -> None:
    line = FIGURES.line(5, 900, 0, {"mfu": 0.125, "hfu": 0.25}, 0.0)
    text = log_line(line, max_steps=1805, seconds_per_step=2.0)
    assert text.startswith("step    5/1805 | loss  2.0794 | ppl      8.00 | lr 1.00e-03")
    assert "mfu 12.5%" in text and text.endswith("eta 1:00:00")
