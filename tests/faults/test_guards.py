# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Injected faults, each named by the run: NaN, spike, slow process, replicas that differ, a process that stands still.

The faulty process is rank 1 of two; its lanes are 2 and 3 of four.

Covers: memformer/guards/faulty_steps.py, memformer/guards/guards.py, memformer/guards/stragglers.py,
memformer/guards/watchdog.py, memformer/training/stopping.py
"""

import itertools
import json
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from memformer.guards.faulty_steps import spike_score
from memformer.guards.watchdog import Watchdog, find_culprits
from memformer.processes.group import World
from memformer.processes.topology import Mesh
from memformer.run import exit_codes
from memformer.run.directory import RunDirectory
from memformer.training import Callback, TrainingState, train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import (
    assert_every_token_once,
    audit_of,
    events_of,
    finish,
    metrics_of,
    start,
    tiny_config,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS, BAD_STEP, BAD_LANE = 8, 5, 3
PARAMETER = "writer.query.weight"


class Fault(Callback):
    """Does something in step BAD_STEP, before its rollout."""

    def before_rollout(self, state: TrainingState) -> None:
        if state.progress.step + 1 == BAD_STEP:
            self.strike(state)

    def strike(self, state: TrainingState) -> None:
        """Nothing, in a healthy run."""


class PoisonedMemory(Fault):
    def strike(self, state: TrainingState) -> None:
        if state.world.rank == 1:
            state.lanes.carry.memory[BAD_LANE - 2] = float("nan")


class PoisonedEveryStep(PoisonedMemory):
    def before_rollout(self, state: TrainingState) -> None:
        self.strike(state)


class PoisonedGradient(Fault):
    """Every loss stays finite."""

    def strike(self, state: TrainingState) -> None:
        parameter = dict(state.engine.module.named_parameters())[PARAMETER]
        if state.world.rank == 1:
            parameter.register_hook(
                lambda gradient: gradient * (float("inf") if state.progress.step + 1 == BAD_STEP else 1)
            )


class ScrambledWeights(Fault):
    def strike(self, state: TrainingState) -> None:
        with torch.no_grad():
            state.engine.module.head.weight.mul_(-30)


class ChangedReplica(Fault):
    """At stage 0, where no gather makes the replicas equal again."""

    def strike(self, state: TrainingState) -> None:
        if state.world.rank == 1:
            dict(state.engine.module.named_parameters())[PARAMETER].data.view(-1)[3] += 1e-3


class Slowness(Callback):
    def between_segments(self, state: TrainingState) -> None:
        if state.world.rank == 1:
            time.sleep(0.2)


SPIKES = {"spike_threshold": 6.0, "spike_window": 4}
FAULTS: dict[str, tuple[Callback, dict[str, Any]]] = {
    "memory": (PoisonedMemory(), {}),
    "memory kept": (PoisonedMemory(), {"guards": {"memory_after_skip": "keep"}}),
    "gradient": (PoisonedGradient(), {}),
    "gradient unsharded": (PoisonedGradient(), {"parallel": {"zero_stage": 0}}),
    "budget": (PoisonedEveryStep(), {"guards": {"max_skips": 2, "memory_after_skip": "keep"}}),
    "spike": (ScrambledWeights(), {"guards": SPIKES, "parallel": {"zero_stage": 0}}),
    "rollback": (ScrambledWeights(), {"guards": {**SPIKES, "spike_action": "rollback"}, "parallel": {"zero_stage": 0}}),
    "replicas": (ChangedReplica(), {"guards": {"checksum_interval": 1}, "parallel": {"zero_stage": 0}}),
    "slow": (Slowness(), {"guards": {"straggler_interval": 4}, "data": {"num_segments": 3}}),
    "none": (Fault(), {"guards": {**SPIKES, "checksum_interval": 1, "straggler_factor": 50.0}}),
}


def test_a_heartbeat_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("memformer").propagate = True
    run = RunDirectory(tmp_path)
    run.heartbeats.write_text("")
    world = World(0, 1, 0, torch.device("cpu"), Mesh.of_data(0, 1))
    with Watchdog(run, world, 600, lambda: None) as watchdog:
        for _ in range(3):
            watchdog._try_beat(0.0)
    assert len(caplog.records) == 1
    assert "heartbeats: cannot be written" in caplog.text


def inject(world: World, root: str) -> dict[str, str]:
    """What each faulty run says at its end."""
    said: dict[str, str] = {}
    for name, (fault, sections) in FAULTS.items():
        config = tiny_config(Path(root), name, training={"max_steps": STEPS}, **sections)
        try:
            said[name] = str(train(config, callbacks=[fault]))
        except UserError as error:
            said[name] = str(error)
    return said


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("guards")
    small_dataset(root, characters=3_000)
    return root, run_distributed(inject, 2, str(root))[0]


@pytest.mark.parametrize("name", ["memory", "memory kept"])
def test_a_nan_is_named_by_segment_lane_and_document(faulty: tuple[Path, dict[str, str]], name: str) -> None:
    run = RunDirectory(faulty[0] / name)
    skip, *more = events_of(run, "skip")
    assert skip["step"] == BAD_STEP and not more
    row = next(row for row in audit_of(run) if row["step"] == BAD_STEP and row["lane"] == BAD_LANE)
    found = skip["first_bad"]
    assert (found["lane"], found["segment"], found["rank"]) == (BAD_LANE, 0, 1)
    assert (found["document"], found["start"]) == (row["document"], row["start"])
    assert skip["parameter"].endswith("(rank 1)") and skip["lanes_concerned"] == 1
    assert skip["memory"] == ("keep" if name == "memory kept" else "reset")
    assert faulty[1][name] == "0" and metrics_of(run)[-1]["skipped_steps"] == 1
    assert_every_token_once(run)


@pytest.mark.parametrize("name", ["gradient", "gradient unsharded"])
def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(
    faulty: tuple[Path, dict[str, str]], name: str
) -> None:
    skip, *more = events_of(RunDirectory(faulty[0] / name), "skip")
    assert skip["step"] == BAD_STEP and not more
    assert skip["first_bad"] is None and skip["parameter"] == f"{PARAMETER} (rank 1)"
    assert skip["lanes_concerned"] == 0


def test_the_budget_of_skips_ends_the_run(faulty: tuple[Path, dict[str, str]]) -> None:
    assert "guards.max_skips is 2, and 3 of the last 1000 steps had no finite gradient" in faulty[1]["budget"]
    assert f"lane {BAD_LANE} (rank 1)" in faulty[1]["budget"]


@pytest.mark.parametrize("name", ["spike", "rollback"])
def test_a_spike_is_named_and_rolled_back_if_asked(faulty: tuple[Path, dict[str, str]], name: str) -> None:
    run = RunDirectory(faulty[0] / name)
    spike = events_of(run, "spike")[0]
    assert spike["step"] == BAD_STEP and spike["score"] > 6 and spike["worst"]["loss"] > spike["loss"]
    losses = [row["loss"] for row in metrics_of(run)]
    rollbacks = events_of(run, "rollback")
    if name == "spike":
        assert not rollbacks and losses[BAD_STEP] > 2 * losses[0]
    else:
        assert [event["step"] for event in rollbacks] == [BAD_STEP] and rollbacks[0]["skipped_from"] == 5
        assert losses[BAD_STEP] < losses[0] + 0.5
        assert_every_token_once(run)


def test_a_score_needs_a_history_and_ignores_noise() -> None:
    assert spike_score([5.0, 5.0], 50.0, 64) == 0.0
    assert spike_score([5.0, 5.01, 4.99, 5.0], 5.01, 4) < 2
    assert spike_score([5.0, 5.01, 4.99, 5.0], 7.0, 4) > 100
    assert spike_score([5.0, 5.01, 4.99, 5.0], float("nan"), 4) == 0.0


def test_replicas_that_differ_end_the_run(faulty: tuple[Path, dict[str, str]]) -> None:
    assert f"step {BAD_STEP}: the replicas' parameters are no longer equal" in faulty[1]["replicas"]
    assert PARAMETER in faulty[1]["replicas"]


def test_a_slow_process_is_named(faulty: tuple[Path, dict[str, str]]) -> None:
    reports = events_of(RunDirectory(faulty[0] / "slow"), "step_times")
    assert [report["step"] for report in reports] == [4, 8]
    for report in reports:
        assert len(report["slow"]) == 1 and report["slow"][0].startswith("rank 1 on ")
        assert "most of it in compute" in report["slow"][0]
        assert report["ranks"][0]["communication"]["p50"] > report["ranks"][1]["communication"]["p50"]


def test_a_healthy_run_raises_no_alarm(faulty: tuple[Path, dict[str, str]]) -> None:
    run = RunDirectory(faulty[0] / "none")
    assert faulty[1]["none"] == "0"
    for kind in ("skip", "spike", "rollback", "desynchronised", "hang"):
        assert events_of(run, kind) == []
    assert not list(run.heartbeats.iterdir())


def stopped_run(root: Path, timeout_seconds: float) -> list[Any]:
    """An endless run whose rank 1 has been stopped (SIGSTOP) in the middle."""
    sections = {
        "training": {"max_steps": 100_000},
        "checkpoint": {"interval": 0},
        "guards": {"hang_timeout_seconds": timeout_seconds},
    }
    processes = start(root, "stopped", sections)
    metrics = RunDirectory(root / "stopped").metrics
    wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3, processes)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGSTOP)
    return processes


def test_a_hang_is_reported_with_stacks_and_the_rank_at_fault(tmp_path: Path) -> None:
    small_dataset(tmp_path, characters=3_000)
    processes = stopped_run(tmp_path, timeout_seconds=3)
    processes[0].join(90)
    assert finish(processes, seconds=0)[0] == exit_codes.HUNG
    run = RunDirectory(tmp_path / "stopped")
    (event,) = events_of(run, "hang")
    (culprit,) = event["culprits"]
    assert culprit.startswith(f"rank 1 (process {processes[1].pid} on ") and "stopped or dead" in culprit
    stacks = (run.hangs / f"step-{event['step']:08d}" / "rank-00000.txt").read_text()
    assert "inside collective" in stacks and re.search(r"training/loop\.py\", line \d+ in run", stacks)
    last = stacks.split("\nlast collectives\n")[1].splitlines()
    assert len(last) >= 2 and all(re.search(r" gloo:\w+ \d+ of \S+ \w+: ", line) for line in last), last
    assert any(line.endswith("not completed") for line in last) and any(line.endswith(": completed") for line in last)
    record = json.loads((run.hangs / f"step-{event['step']:08d}" / "rank-00000.collectives.json").read_text())
    assert record["entries"] and record["pg_config"]


def test_a_second_signal_ends_a_process_that_waits_for_another(tmp_path: Path) -> None:
    """Its Python handlers do not run then: it waits inside a collective."""
    small_dataset(tmp_path, characters=3_000)
    processes = stopped_run(tmp_path, timeout_seconds=200)
    for number in (signal.SIGTERM, signal.SIGINT):
        time.sleep(0.5)
        os.kill(processes[0].pid, number)
    processes[0].join(30)
    assert finish(processes, seconds=0)[0] == 128 + signal.SIGINT


def test_the_rank_that_others_wait_for_is_the_culprit() -> None:
    def beat(rank: int, collectives: int, age: float = 0.0) -> dict[str, Any]:
        place = {"rank": rank, "host": "n", "process": 1, "step": 7, "phase": "data", "collective": "after ..."}
        return {**place, "collectives": collectives, "age_seconds": age}

    assert find_culprits({0: beat(0, 9), 1: beat(1, 8), 2: beat(2, 9)}, 5)[0].startswith("rank 1 (process 1 on n): in")
    assert find_culprits({0: beat(0, 9), 1: beat(1, 8, age=60)}, 5)[0].endswith("last seen in data of step 7")
    assert "rank 1: has no heartbeat" in find_culprits({0: beat(0, 9), 1: None}, 5)[0]
    assert find_culprits({0: beat(0, 9), 1: beat(1, 9)}, 5)[0].startswith("no single rank")


SIGNALS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGUSR2: 75, signal.SIGINT: 130}


class Signalling(Callback):
    """Sends this process one signal, at the first of one kind of point that it reaches.

    Args:
        number: The signal; None: this process gets none.
    """

    def __init__(self, number: int | None) -> None:
        self.number = number

    def send(self) -> None:
        number, self.number = self.number, None
        if number is not None:
            os.kill(os.getpid(), number)


class WhileDataIsRead(Signalling):
    def before_data(self, state: TrainingState) -> None:
        self.send()


class InTheRollout(Signalling):
    def before_rollout(self, state: TrainingState) -> None:
        self.send()


class InTheOptimizerStep(Signalling):
    def before_optimizer_step(self, state: TrainingState) -> None:
        self.send()


class InTheEvaluation(Signalling):
    def during_evaluation(self, state: TrainingState) -> None:
        self.send()


class InTheSave(Signalling):
    def before_save(self, state: TrainingState) -> None:
        self.send()


PHASES = (WhileDataIsRead, InTheRollout, InTheOptimizerStep, InTheEvaluation, InTheSave)


def interrupt(world: World, root: str) -> list[int]:
    """A run of many lives: in each, one process gets one signal in one phase; its exit codes."""
    codes = []
    sections = {"checkpoint": {"interval": 1}, "optimizer": {"schedule": "constant"}}
    for life, (number, phase) in enumerate(itertools.product(SIGNALS, PHASES)):
        signalling = phase(number if world.rank == life % 2 else None)
        # Every other life abandons the step that it is in.
        training = {
            "max_steps": 60,
            "eval_interval": 1,
            "eval_segments": 2,
            "finish_step_seconds": 0 if life % 2 else 100,
        }
        codes.append(train(tiny_config(Path(root), "signals", training=training, **sections), callbacks=[signalling]))
        assert signalling.number is None, "the point was not reached"
    done = json.loads((Path(root) / "signals" / "metrics.jsonl").read_text().splitlines()[-1])["step"] + 2
    limit = {"max_steps": 60, "eval_interval": 0, "wall_clock_limit_seconds": 1e-6}
    codes.append(train(tiny_config(Path(root), "signals", training=limit, **sections)))
    for name in ("signals", "whole"):
        codes.append(train(tiny_config(Path(root), name, training={"max_steps": done}, **sections)))
    return codes


def test_each_signal_in_each_phase_saves_and_loses_nothing(tmp_path: Path) -> None:
    small_dataset(tmp_path, characters=3_000)
    codes = run_distributed(interrupt, 2, str(tmp_path))
    expected = [code for code in SIGNALS.values() for _ in PHASES]
    assert codes[0] == codes[1] == [*expected, 75, 0, 0]
    run = RunDirectory(tmp_path / "signals")
    assert metrics_of(run) == metrics_of(RunDirectory(tmp_path / "whole"))
    assert_every_token_once(run)
    assert len(events_of(run, "preemption")) == len(expected) + 1
