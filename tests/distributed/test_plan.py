# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer plan` against real processes: the bytes of every kind are those that are counted, to the last one.

Covers: memformer/planning/traffic.py, memformer/processes/collective_log.py
"""

from collections import Counter
from typing import Any

import pytest

from memformer.planning.traffic import traffic_by_stage
from memformer.processes.collective_log import LOG
from memformer.processes.group import World
from memformer.replay import Carry
from tests.distributed.collectives import counted
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, Case, config_of, engine_of, rollout_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
WORLD = 2
CASES = [Case(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]
CASES += [Case(stage, gradient_reduction="segment", lanes_per_micro_batch=1) for stage in (1, 2, 3)]
CASES += [Case(2, replay="bptt"), Case(3, mode="full"), Case(1, tie_embeddings=False)]
CASES += [Case(stage, precision, data=1, tensor=2) for stage in (0, 1, 3) for precision in ("fp32", "bf16")]
CASES += [Case(1, data=1, pipeline=2), Case(0, data=1, pipeline=2, lanes_per_micro_batch=1)]
CASES += [Case(1, "bf16", data=1, pipeline=2, pipeline_layers=[1, 3], tie_embeddings=False)]


def count_step(world: World, case: Case) -> dict[str, Any]:
    """Bytes by kind of the last step, in which nothing is set up any more."""
    engine = engine_of(world, case)
    world = engine.world
    own = LANES // case.data
    start = world.mesh.data.rank * own
    carry = Carry.empty(engine.initial_memory(own), LENGTH)
    for step in range(case.steps):
        rollout = rollout_of(step, case.segments)
        LOG.messages.clear()
        with counted() as calls:
            result = engine.rollout_backward(
                rollout.lanes(start, start + own), carry, int(rollout.lengths.sum()), seed=step
            )
            engine.step(1e-3)
        carry = result.carry
    engine.close()
    return {
        "calls": {kind: size for kind, (_, size) in calls.items()},
        "messages": {kind: size for kind, (_, size) in LOG.messages.items()},
    }


def count_all(world: World) -> list[dict[str, Any]]:
    return [count_step(world, case) for case in CASES]


@pytest.fixture(scope="module")
def counts() -> list[list[dict[str, Any]]]:
    """By rank, then by case."""
    return run_distributed(count_all, WORLD)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_bytes_by_kind(counts: list[list[dict[str, Any]]], index: int) -> None:
    case = CASES[index]
    config = config_of(case)
    stages = traffic_by_stage(config, config.model, case.world_size)
    for rank, own in enumerate(counts):
        if rank and case.tensor > 1:
            continue  # the vocabulary does not divide evenly; the plan is of the first process
        stage = stages[rank if case.pipeline > 1 else 0]
        expected = stage["data"] + stage["tensor"] + stage["replica"]
        found: Counter[str] = Counter()
        for kind, size in own[index]["calls"].items():
            found[kind.removesuffix("_into_tensor").removesuffix("_tensor")] += size
        del found["isend"]  # counted by kind in the messages
        if case.zero_stage == 3:
            # DeepSpeed compares what its processes trace; lists of numbers, whatever the width.
            assert found.pop("broadcast") < 10_000
        assert found == expected
        assert own[index]["messages"] == stage["pipeline"]
