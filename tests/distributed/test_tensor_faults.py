# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Faults on one of four processes (tensor 2 x data 2): all skip the step, and a process that differs is named.

Covers: memformer/guards/replicas.py
"""

from typing import Any

import pytest
import torch

from memformer.engine.base import Engine
from memformer.engine.making import make_engine
from memformer.guards.replicas import different_replicas
from memformer.processes.group import World
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import Case, config_of, model_of, rollout_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STAGES = (0, 1, 2)
SLICED = "encoder.0.feed_forward.up.weight"


def poison(world: World, stage: int) -> dict[str, Any]:
    """A step whose gradient is not finite in one slice of one process, then one that is sound."""
    world = world.arranged(2, 1)
    case = Case(stage, data=2, tensor=2)
    engine = make_engine(model_of(case), config_of(case), world, "fp32")
    parameter: Any = engine.module.get_parameter(SLICED)
    before = parameter.detach().clone()
    carry, rollout, rank = engine.empty_carry(2), rollout_of(0), world.mesh.data.rank
    lanes = rollout.lanes(2 * rank, 2 * rank + 2)
    handle = parameter.register_hook(lambda gradient: gradient * float("nan")) if world.rank == 3 else None
    engine.rollout_backward(lanes, carry, int(rollout.lengths.sum()), seed=0)
    skipped, names = engine.step(1e-3), engine.bad_parameters()
    unchanged = torch.equal(parameter, before)
    if handle is not None:
        handle.remove()
    engine.rollout_backward(lanes, carry, int(rollout.lengths.sum()), seed=1)
    sound = engine.step(1e-3)
    found = {"skipped": not skipped.applied, "names": names, "unchanged": unchanged, "sound": sound.applied}
    if stage == 0:
        found["different"] = corrupt(world, engine)
    engine.close()
    return found


def corrupt(world: World, engine: Engine) -> list[list[str]]:
    """What the comparison says of sound parameters, of a slice changed on rank 2, and of a norm changed on rank 1."""
    lines = [different_replicas(engine.model, world.mesh)]
    for name, rank in ((SLICED, 2), ("encoder_norm.weight", 1)):
        parameter = engine.module.get_parameter(name).data.view(-1)
        kept = parameter[0].item()
        if world.rank == rank:
            parameter[0] += 1e-3
        lines.append(different_replicas(engine.model, world.mesh))
        parameter[0] = kept
    return lines


def poison_all(world: World) -> list[dict[str, Any]]:
    return [poison(world, stage) for stage in STAGES]


@pytest.fixture(scope="module")
def poisoned() -> list[list[dict[str, Any]]]:
    return run_distributed(poison_all, 4)


@pytest.mark.parametrize("index", range(len(STAGES)))
def test_all_processes_skip_a_step_that_one_slice_makes_bad(poisoned: list[list[dict[str, Any]]], index: int) -> None:
    for rank in poisoned:
        assert rank[index]["skipped"] and rank[index]["unchanged"] and rank[index]["sound"]
    assert SLICED in poisoned[3][index]["names"] and not poisoned[0][index]["names"]


def test_a_process_that_differs_is_named(poisoned: list[list[dict[str, Any]]]) -> None:
    """Slices are compared with the same slices, replicated parameters with everyone's."""
    for rank in poisoned:
        assert rank[0]["different"] == [[], [f"rank 2: {SLICED}"], ["rank 1: encoder_norm.weight"]]
