# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Whole runs on data with loss weights: on two processes as on one, resumed to the last bit, on other lanes too.

The marked part of every document lies so far behind that nothing counts in the first steps. On two processes the
decoder takes two segments at once, in evaluation too.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, ShardStore, build_dataset
from data_pipeline.loss_weights import ONE
from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.training import Callback, TrainingState, train
from tests.books import book_text
from tests.distributed.processes import run_distributed
from tests.faults.lives import assert_every_token_once, audit_of, events_of, metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS, MOVE_AT, CRASH_AT, CHARACTERS = 8, 4, 7, 300
EMPTY = 3  # steps of 64 tokens a lane before the first marked character


class Crash(BaseException):
    """Breaks a run off."""


class Crashing(Callback):
    """Breaks a run off between an optimizer step and its log line."""

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == CRASH_AT:
            raise Crash


class Counting(Callback):
    """Counts the batches of evaluations."""

    batches = 0

    def during_evaluation(self, state: TrainingState) -> None:
        self.batches += 1


def life(root: str, name: str, steps: int = STEPS, lanes: int = 4, group: int = 1, callbacks: Any = ()) -> None:
    training = {"max_steps": steps, "eval_interval": STEPS, "diagnostics_interval": 3, "lanes_per_micro_batch": 1}
    training["segments_per_decoder_batch"] = group
    train(tiny_config(Path(root), name, training=training, data={"num_lanes": lanes}), callbacks=callbacks)


def on_two(world: World, root: str) -> None:
    counting = Counting()
    life(root, "two", group=2, callbacks=[counting])
    assert counting.batches == 5, "ten segments of the one document that a process has"
    with pytest.raises(Crash):
        life(root, "broken", group=2, callbacks=[Crashing()])
    life(root, "broken", group=2)
    life(root, "moved", MOVE_AT)


def on_one(world: World, root: str) -> None:
    counting = Counting()
    life(root, "one", callbacks=[counting])
    assert counting.batches == 10
    life(root, "moved", lanes=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weighted")
    records = [
        {"text": book_text(CHARACTERS, skip=9_000 * number), "loss_weights": [[200, 220 + number, 1], [240, 260, 0.3]]}
        for number in range(9)
    ]
    (root / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    sources, out = [root / "records.jsonl"], root / "data"
    build_dataset(sources, out, validation_fraction=0.25, loss_weights_key="loss_weights")
    for function, processes in ((on_two, 2), (on_one, 1)):
        run_distributed(function, processes, str(root))
    return root


@pytest.mark.parametrize("name", ["one", "two", "broken", "moved"])
def test_each_step_counts_the_weights_of_the_tokens_that_it_read(runs: Path, name: str) -> None:
    index = DocumentIndex.load(runs / "data" / "train")
    weights = index.loss_weights
    assert weights is not None
    store, run = ShardStore(weights), RunDirectory(runs / name)
    assert_every_token_once(run)
    counted: dict[int, float] = defaultdict(float)
    for row in audit_of(run):
        counted[row["step"]] += int(store.read(row["document"], row["start"], row["length"]).sum()) / ONE
    rows = metrics_of(run)
    assert [row["counted_tokens"] for row in rows] == [counted[row["step"]] for row in rows]
    # Nothing to learn from is a step without a loss and with no gradient, and no step that was left out.
    assert [row["loss"] is None for row in rows[: EMPTY + 1]] == [True] * EMPTY + [False]
    assert [row["grad_norm"] == 0 for row in rows[: EMPTY + 1]] == [True] * EMPTY + [False]
    assert {row["skipped_steps"] for row in rows} == {0}
    assert all(np.isfinite(row["loss"]) for row in rows if row["counted_tokens"])


def test_two_processes_equal_one(runs: Path) -> None:
    """To rounding, 1e-5 relative on losses and 1e-4 on norms, as without weights."""
    one, two = (RunDirectory(runs / name) for name in ("one", "two"))
    for expected, row in zip(metrics_of(one), metrics_of(two), strict=True):
        assert row.keys() == expected.keys() and row["counted_tokens"] == expected["counted_tokens"]
        if expected["loss"] is not None:
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    scored, other = (events_of(run, "evaluation")[0] for run in (one, two))
    held_out = DocumentIndex.load(runs / "data" / "validation")
    for mode in ("with_memory", "memory_reset"):
        assert scored[mode]["counted_tokens"] == other[mode]["counted_tokens"] == held_out.counted_tokens
        assert scored[mode]["tokens"] == held_out.num_tokens > held_out.counted_tokens
        assert other[mode]["loss"] == pytest.approx(scored[mode]["loss"], rel=1e-5)


def test_a_resumed_run_is_bit_equal(runs: Path) -> None:
    whole, broken = (RunDirectory(runs / name) for name in ("two", "broken"))
    assert metrics_of(broken) == metrics_of(whole)
    assert [event["step"] for event in events_of(broken, "resume")] == [CRASH_AT - 1]
    assert events_of(broken, "evaluation")[0]["with_memory"] == events_of(whole, "evaluation")[0]["with_memory"]
