# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What torch.compile makes of a rollout's layers, counted in a real engine: graphs, and places where they break.

The compiler behind dynamo is left out: what it gets is what is counted. On the commit before, layers that are
recomputed gave 68 captured calls instead of 346, since nothing was compiled, and ZeRO-3 43 graphs with 72 breaks.
"""

import functools
from typing import Any

import pytest
import torch

from memformer.engine.making import make_engine
from memformer.processes.group import World
from memformer.replay import Carry
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, Case, config_of, counted_of, model_of, rollout_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CASES = [Case(1, data=1, mode="full"), Case(3, data=1, decoder_batch=2)]


def losses_of(world: World, case: Case, compiled: bool) -> list[float]:
    """Two steps with a reset, ragged lanes and full ones, then an evaluation."""
    config = config_of(case).model_copy(update={"compile": compiled})
    engine = make_engine(model_of(case), config, world.arranged(1, 1), "fp32")
    carry, found = Carry.empty(engine.initial_memory(LANES), LENGTH), []
    for step in range(2):
        rollout = rollout_of(step)
        result = engine.rollout_backward(rollout, carry, counted_of(rollout), seed=step)
        engine.step(1e-3)
        carry = result.carry
        found.append(float(result.segment_losses.sum()))
    with torch.no_grad():
        found.append(float(engine.model.losses(rollout.segment(0, carry), carry.memory)[0].sum()))
    engine.close()
    return found


def count_graphs(world: World) -> list[dict[str, Any]]:
    """Of each case: losses with and without compilation, calls that were captured, graphs, breaks."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]
    found = []
    for case in CASES:
        plain = losses_of(world, case, compiled=False)
        torch._dynamo.reset()
        counters.clear()
        compiled = losses_of(world, case, compiled=True)
        figures = {"calls": counters["stats"]["calls_captured"], "graphs": counters["stats"]["unique_graphs"]}
        found.append({"plain": plain, "compiled": compiled, "breaks": dict(counters["graph_break"]), **figures})
    return found


def test_layers_are_compiled_whole() -> None:
    for case, found in zip(CASES, run_distributed(count_graphs, 1)[0], strict=True):
        assert found["compiled"] == pytest.approx(found["plain"], rel=1e-6), case
        assert not found["breaks"], case
        assert found["calls"] > 300 and found["graphs"] <= 12, (case, found["calls"], found["graphs"])
