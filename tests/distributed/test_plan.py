# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer plan` against real processes: the bytes of every kind are those that are counted, to the last one.

tests/distributed/test_zero.py and test_equivalence.py count those of the steps that they train anyway; here is what is
trained nowhere else.

Covers: memformer/planning/traffic.py, memformer/processes/collective_log.py
"""

from collections.abc import Iterator

import pytest

from memformer.planning.arrangement import arrange
from memformer.planning.memory import moments
from tests.distributed.short_runs import (
    LANES,
    MODEL,
    Case,
    Trained,
    assert_equals_reference,
    assert_traffic_as_planned,
    config_of,
    trained_when_asked,
)

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
WORLD = 2
CASES = [Case(stage, gradient_reduction="segment", lanes_per_micro_batch=1) for stage in (1, 2, 3)]
CASES += [Case(1, tie_embeddings=False)]
CASES += [Case(stage, "bf16", data=1, tensor=2) for stage in (0, 1)]
CASES += [Case(1, data=1, tensor=2, partition_activations=True, memory_interval=2, segments=6)]
CASES += [Case(1, "bf16", data=1, pipeline=2, pipeline_layers=(1, 3), tie_embeddings=False)]


@pytest.fixture(scope="module")
def trained() -> Iterator[Trained]:
    with trained_when_asked() as results:
        yield results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_by_kind(case: Case, trained: Trained) -> None:
    assert_traffic_as_planned(case, trained(case))


def test_memories_that_are_computed_again_change_nothing(trained: Trained) -> None:
    """Of six segments four memories are kept, half of each on a process; the weights are those of the reference."""
    case = next(each for each in CASES if each.memory_interval > 1)
    assert_equals_reference(case, trained(case))
    whole = 4 * LANES * MODEL.num_memory_slots * MODEL.d_model
    assert [rank["buffer"] for rank in trained(case)] == [4 * whole // 2] * 2
    run = arrange(config_of(case), MODEL, WORLD)
    assert moments(run, 0)["rollout"]["replay buffer"] == 4 * whole // 2
