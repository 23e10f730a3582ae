# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Losses of single lanes, computed again after a step: they are those that the step had, dropout included.

The order of summation differs: 1e-5 nats a token, relative to losses of about 4 (seen: under 1e-6). Dropout masks of
another random stream change the same losses by more than 1e-2, which is tested as well.
"""

from typing import Any

import pytest

from memformer.guards.faulty_steps import lane_losses
from memformer.processes.group import World
from memformer.replay.random_state import mix_seed
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, Case, counted_of, engine_of, known_of, rollout_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CASES = {
    "whole": Case(1, data=1, dropout=0.3),
    "groups": Case(1, data=1, dropout=0.3, lanes_per_micro_batch=1),
    "uneven groups": Case(0, data=1, dropout=0.3, lanes_per_micro_batch=3),
    "two replicas": Case(1, dropout=0.3, lanes_per_micro_batch=1),
    "spread parameters": Case(3, dropout=0.3, lanes_per_micro_batch=1),
    "slices": Case(1, data=1, tensor=2, dropout=0.3, lanes_per_micro_batch=2),
    "loss weights": Case(1, dropout=0.3, lanes_per_micro_batch=1, weighted=True),
    "pieces": Case(1, data=1, segment=2, dropout=0.3, weighted=True),
    "pieces, spread parameters": Case(3, data=1, segment=2, dropout=0.3, lanes_per_micro_batch=3),
    "stages": Case(1, data=1, pipeline=2, dropout=0.3),
    "stages, one lane each": Case(1, data=1, pipeline=2, dropout=0.3, lanes_per_micro_batch=1),
}
TOLERANCE = 1e-5


def both(world: World, cases: list[Case]) -> list[dict[str, Any]]:
    """Summed losses of each segment of this process's lanes: of a training step, computed again, and of other masks."""
    found = []
    for case in cases:
        engine = engine_of(world, case)
        engine.model.train()
        lanes = LANES // case.data
        whole, carry = rollout_of(int(case.weighted), case.segments, case.weighted), engine.empty_carry(lanes)
        rollout = known_of(whole, engine)
        result = engine.rollout_backward(rollout, carry, counted_of(whole), seed=11)
        first = engine.world.mesh.data.rank * lanes
        counted = (whole.lengths if whole.loss_weights is None else whole.loss_weights.sum(2))[first : first + lanes]
        losses = {
            "step": result.segment_losses.double(),
            "again": (lane_losses(engine, rollout, carry, 11) * counted).double().sum(0),
            "other": (lane_losses(engine, rollout, carry, mix_seed(11, 0)) * counted).double().sum(0),
        }
        found.append({name: (sums / counted.sum(0)).tolist() for name, sums in losses.items()})
        engine.close()
    return found


@pytest.fixture(scope="module")
def losses() -> dict[str, list[dict[str, Any]]]:
    """What each process found, by case."""
    found: dict[str, list[dict[str, Any]]] = {}
    for size in (1, 2):
        cases = {name: case for name, case in CASES.items() if case.world_size == size}
        ranks = run_distributed(both, size, list(cases.values()))
        found |= {name: [rank[number] for rank in ranks] for number, name in enumerate(cases)}
    return found


@pytest.mark.parametrize("name", CASES)
def test_losses_computed_again_are_those_of_the_step(losses: dict[str, list[dict[str, Any]]], name: str) -> None:
    for rank in losses[name]:
        assert rank["again"] == pytest.approx(rank["step"], rel=TOLERANCE)
        differences = [abs(other - step) for other, step in zip(rank["other"], rank["step"], strict=True)]
        assert max(differences) > 1e-2, "the dropout of another stream would be seen"
