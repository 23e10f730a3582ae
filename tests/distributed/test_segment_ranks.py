# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Two processes that share rollouts: what crosses their seams, and rollouts that are given up half-way.

That they train as one process does is in tests/distributed/test_equivalence.py.

Covers: memformer/parallel/segment/executor.py
"""

import dataclasses
from typing import Any

import pytest
import torch

from memformer.processes.collective_log import LOG
from memformer.processes.group import World
from memformer.replay import Rollout
from memformer.run.stop_requests import StepAbandoned
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, MODEL, Case, counted_of, engine_of, known_of, rollout_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CASE = Case(1, data=1, segment=2, segments=4)
SHAPES = ((2, 8), (4, 8), (4, 40), (16, 8))  # T, S


def seams(world: World) -> list[dict[str, list[int]]]:
    """Messages of a rollout, number and bytes by kind, for each of the shapes."""
    engine, found = engine_of(world, CASE), []
    for segments, length in SHAPES:
        tokens = torch.randint(0, 49, (LANES, segments, length), generator=torch.Generator().manual_seed(1))
        rollout = Rollout.of(tokens, torch.full((LANES, segments), length), torch.zeros(LANES, segments).bool())
        carry = dataclasses.replace(engine.empty_carry(LANES), tokens=tokens[:, 0], length=rollout.lengths[:, 0])
        LOG.messages.clear()
        engine.rollout_backward(known_of(rollout, engine), carry, counted_of(rollout), seed=0)
        found.append({kind: list(entry) for kind, entry in LOG.messages.items()})
    engine.close()
    return found


def given_up(world: World) -> list[list[float]]:
    """Losses by segment of a rollout in peace, and after one was given up at each of its agreements."""
    engine, rollout, found = engine_of(world, CASE), rollout_of(0, CASE.segments), []

    def losses() -> list[float]:
        result = engine.rollout_backward(known_of(rollout, engine), engine.empty_carry(LANES), 1.0, seed=0)
        return result.segment_losses.tolist()  # type: ignore[no-any-return]

    found.append(losses())
    for at in range(5):  # two groups of lanes, three tasks each
        calls = iter(range(at + 1))

        def give_up(at: int = at, calls: Any = calls) -> None:
            if next(calls) == at:
                raise StepAbandoned

        engine.at_segment = give_up
        with pytest.raises(StepAbandoned):
            losses()
        engine.at_segment = lambda: None
        found.append(losses())
    engine.close()
    return found


def both(world: World) -> tuple[Any, Any]:
    return seams(world), given_up(world)


@pytest.fixture(scope="module")
def ranks() -> list[tuple[Any, Any]]:
    return run_distributed(both, 2, timeout_seconds=60)


def test_traffic_does_not_grow_with_the_document(ranks: list[tuple[Any, Any]]) -> None:
    """Each rank sends the memory of one of the two groups of lanes, and the gradient of the other's: B*K*D numbers."""
    numbers = LANES * MODEL.num_memory_slots * MODEL.d_model
    once = {kind: [1, 4 * numbers // 2] for kind in ("memory", "memory_gradient")}
    for messages, _ in ranks:
        assert messages == [once] * len(SHAPES)


def test_a_rollout_that_is_given_up_leaves_no_message_behind(ranks: list[tuple[Any, Any]]) -> None:
    """A message that is left would be taken for the next rollout's, and its losses would differ."""
    for _, losses in ranks:
        assert len(set(losses[0])) > 1 and all(again == losses[0] for again in losses[1:])
