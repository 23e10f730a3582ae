# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Every way to spread a model over up to four processes against one process with full back-propagation through time.

The grid is tensor 2 x data {1, 2} x ZeRO {0, 1, 2, 3} x activation checkpointing {none, full, partitioned,
partitioned+cpu}; tests/distributed/test_zero.py has data 2 without tensor parallelism.

Tolerances: tests/distributed/short_runs.py.
"""

import itertools
from typing import Any

import pytest

from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import Case, assert_equals_reference, train_all

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CHECKPOINTING: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"mode": "full"},
    "partitioned": {"mode": "full", "partition_activations": True},
    "partitioned+cpu": {"mode": "full", "partition_activations": True, "cpu_checkpointing": True},
}
CASES = [
    Case(stage, data=data, tensor=2, clipping=0.05 * (data - 1), **CHECKPOINTING[checkpointing])
    for data, stage, checkpointing in itertools.product((1, 2), range(4), CHECKPOINTING)
]
SIZES = sorted({case.world_size for case in CASES})


@pytest.fixture(scope="module")
def trained() -> dict[Case, list[dict[str, Any]]]:
    """Results by case and rank; one set of processes of each size trains all its cases."""
    found: dict[Case, list[dict[str, Any]]] = {}
    for size in SIZES:
        cases = [case for case in CASES if case.world_size == size]
        by_rank = run_distributed(train_all, size, cases)
        found |= {case: [results[i] for results in by_rank] for i, case in enumerate(cases)}
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_one_process_with_full_bptt(case: Case, trained: dict[Case, list[dict[str, Any]]]) -> None:
    assert_equals_reference(case, trained[case])
