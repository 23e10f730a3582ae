# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""fp16's loss scale on two real processes: overflows leave steps out whole, and a run finds its scale by itself.

Covers: memformer/engine/precision.py
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import UserError
from memformer.config.schema import LossScaleConfig
from memformer.engine.making import make_engine
from memformer.engine.optimizer import make_optimizer
from memformer.engine.precision import LossScale
from memformer.processes.group import World
from memformer.replay import Carry, bptt_backward
from memformer.run.directory import RunDirectory
from memformer.training.trainer import train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, Case, config_of, flat, model_of, rollout_of
from tests.faults.lives import events_of, metrics_of, tiny_config

HUGE = 2.0**26
CASES = [Case(stage, "fp16", clipping=0.05) for stage in range(4)]
CASES += [Case(2, "fp16", clipping=0.05, offload="optimizer")]
MAX_STEPS = 24


def test_scale_halves_and_grows() -> None:
    scale = LossScale(LossScaleConfig(initial=8.0, minimum=2.0, growth_interval=3))
    seen = []
    for applied in (False, True, True, False, True, True, True, True, False, False, False):
        scale.update(applied)
        seen.append(scale.value)
    assert seen == [4, 4, 4, 2, 2, 2, 4, 4, 2, 2, 2]
    other = LossScale(LossScaleConfig())
    other.load(scale.state())
    assert other.state() == scale.state()


def search_scale(world: World, case: Case) -> dict[str, Any]:
    """The same rollout again and again from a scale that overflows, until a step is applied; then the next one."""
    config = config_of(case)
    config = config.model_copy(update={"loss_scale": LossScaleConfig(initial=HUGE)})
    engine = make_engine(model_of(case), config, world, "fp16")
    own = LANES // world.size
    start = world.rank * own
    carry = Carry.empty(engine.initial_memory(own), LENGTH)
    scales: list[float] = []
    losses: list[float] = []
    unchanged, norms = True, []
    before = flat(model_of(case))
    step = 0
    while step < 2 and len(scales) < MAX_STEPS:
        rollout = rollout_of(step)
        count = int(rollout.lengths.sum())
        result = engine.rollout_backward(rollout.lanes(start, start + own), carry, count, seed=step)
        report = engine.step(config.optimizer.learning_rate)
        scales.append(report.loss_scale or 0.0)
        with engine.whole_model():
            weights = flat(engine.module)
        if not report.applied:
            assert not math.isfinite(report.grad_norm)
            unchanged = unchanged and torch.equal(weights, before)
            continue
        before = weights
        norms.append(report.grad_norm)
        losses.append(float(result.segment_losses.sum()) / count)
        carry, step = result.carry, step + 1
    memory_norms = result.memory_gradient_norms.tolist()
    engine.close()
    return {
        "scales": scales,
        "unchanged": unchanged,
        "norms": norms,
        "weights": weights.numpy(),
        "memory_norms": memory_norms,
    }


def reference() -> tuple[list[float], list[float], torch.Tensor, torch.Tensor]:
    """Two steps of one process in fp32: gradient norms, the memory's in the last one, weights before and after."""
    case = dataclasses.replace(CASES[0], precision="fp32")
    config, model = config_of(case), model_of(case)
    optimizer = make_optimizer(model, config.optimizer, torch.device("cpu"))
    initial, carry, norms = flat(model), Carry.empty(model.initial_memory(LANES), LENGTH), []
    for step in range(2):
        rollout = rollout_of(step)
        optimizer.zero_grad()
        result = bptt_backward(model, rollout, carry, denominator=int(rollout.lengths.sum()))
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), case.clipping or math.inf)))
        optimizer.step()
        carry = result.carry
    return norms, result.memory_gradient_norms.tolist(), initial, flat(model)


def runs(world: World, root: str) -> tuple[list[dict[str, Any]], str]:
    found = [search_scale(world, case) for case in CASES]
    settings = {"loss_scale": {"initial": HUGE, "growth_interval": 4}, "guards": {"max_skips": 0}}
    many = {"training": {"max_steps": MAX_STEPS, "eval_interval": 0, "diagnostics_interval": 0}}
    healthy = tiny_config(Path(root), "healthy", **settings, **many)
    train(healthy.model_copy(update={"precision": "fp16"}))
    settings = {"loss_scale": {"initial": HUGE, "minimum": HUGE}, "guards": {"max_skips": 3}}
    stuck = tiny_config(Path(root), "stuck", **settings)
    with pytest.raises(UserError) as error:
        train(stuck.model_copy(update={"precision": "fp16"}))
    return found, str(error.value)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[list[dict[str, Any]], str]]]:
    root = tmp_path_factory.mktemp("fp16")
    small_dataset(root, characters=3_000)
    return root, run_distributed(runs, 2, str(root))


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_an_overflow_leaves_the_step_out_on_all_processes(done: Any, index: int) -> None:
    """Weights stay as they were to the last bit, the scale halves, and what follows is as if nothing had been.

    Tolerances: float16 has 11 bits of mantissa; seen are 1e-3 of the update and of the norms, 8e-3 of the memory's.
    """
    ranks = [found[index] for found, _ in done[1]]
    norms, memory_norms, initial, expected = reference()
    for rank in ranks:
        assert rank["unchanged"]
        overflows = len(rank["scales"]) - 2
        assert overflows >= 3
        # Halved by every overflow; of the two steps that were applied, one is the last.
        assert sorted(set(rank["scales"]), reverse=True) == [HUGE / 2**i for i in range(overflows + 1)]
        assert rank["scales"] == sorted(rank["scales"], reverse=True)
        assert rank["norms"] == pytest.approx(norms, rel=5e-3)
        weights = torch.from_numpy(rank["weights"])
        assert float((weights - expected).norm() / (expected - initial).norm()) < 5e-3
    assert (ranks[0]["weights"] == ranks[1]["weights"]).all()
    squares = [sum(rank["memory_norms"][i] ** 2 for rank in ranks) for i in range(len(memory_norms))]
    # Each process's objective is divided by the count of valid targets per process.
    assert [square**0.5 / 2 for square in squares] == pytest.approx(memory_norms, rel=2e-2)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_healthy_run_finds_its_scale_and_is_not_ended_for_it(done: Any) -> None:
    """guards.max_skips is 0: the search for the scale is no fault; steps, data and schedule go on meanwhile."""
    run = RunDirectory(done[0] / "healthy")
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == list(range(1, MAX_STEPS + 1))
    overflows = events_of(run, "overflow")
    assert 3 <= len(overflows) < MAX_STEPS - 10 and not events_of(run, "skip")
    assert rows[-1]["skipped_steps"] == len(overflows)
    scales = [row["loss_scale"] for row in rows]
    assert scales[0] == HUGE and min(scales) < 2.0**23
    assert any(after == 2 * before for before, after in itertools.pairwise(scales))
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_gradient_that_is_never_finite_ends_the_run(done: Any) -> None:
    told = done[1][0][1]
    assert "guards.max_skips is 3, and 4 of the last" in told
