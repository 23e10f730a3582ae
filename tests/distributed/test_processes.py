# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the tool that runs test processes says of ranks that raise, die, hang, or have an answer that cannot travel."""

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memformer.processes.group import World
from tests.distributed.processes import Crew, run_distributed

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def misbehave(world: World, manner: str) -> Any:
    """Rank 1 does as it is told; the others wait for it."""
    if world.rank == 1:
        if manner == "raise":
            raise ValueError("the cause of it all")
        if manner == "die":
            os._exit(7)
        if manner == "return a function":
            return lambda: None
        while manner == "sleep":
            take_a_nap()
    if manner == "return a function":
        return world.rank
    dist.barrier()
    return torch.full((2,), world.rank)


def take_a_nap() -> None:
    time.sleep(0.1)


def said_of(manner: str, processes: int = 2, **options: float) -> str:
    with pytest.raises(AssertionError) as caught:
        run_distributed(misbehave, processes, manner, **options)
    return str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def results() -> list[Any]:
    """Of ranks that do well. Before all else, since the first processes wait for their server to start."""
    return run_distributed(misbehave, 2, "well")


def test_results_come_by_rank(results: list[Any]) -> None:
    assert [result.tolist() for result in results] == [[0, 0], [1, 1]]


def test_a_rank_that_raises_is_told_before_what_it_causes() -> None:
    said = said_of("raise", processes=3)
    assert said.startswith("rank 1 failed:\n")
    assert "ValueError: the cause of it all" in said.partition("rank 0")[0]
    for rank in (0, 2):
        assert f"rank {rank} failed:" in said or f"rank {rank} has not answered" in said
    assert said.count("in misbehave") == 3


def test_a_rank_that_dies_is_noticed_at_once() -> None:
    began = time.monotonic()
    said = said_of("die", timeout_seconds=200)
    assert time.monotonic() - began < 100
    assert said.startswith("rank 1 died without an answer, exit code 7")
    assert "rank 0" in said


def test_a_rank_that_is_late_tells_where_it_is() -> None:
    said = said_of("sleep", timeout_seconds=15)
    first, _, second = said.partition("rank 1 has not answered after 15 s; it is at\n")
    assert "in take_a_nap" in second and "in misbehave" in second
    assert "rank 0 has not answered after 15 s" in first
    assert "in take_a_nap" not in first and "in barrier" in first


def test_a_result_that_cannot_be_pickled_is_that_ranks_failure() -> None:
    said = said_of("return a function")
    assert said.startswith("rank 1 failed:\n") and "pickle" in said
    assert "rank 0" not in said


def process_of(world: World) -> int:
    return os.getpid()


def test_a_crew_goes_on_with_the_same_processes_and_after_a_failure_with_others() -> None:
    with Crew(2) as crew:
        first = crew.run(process_of)
        assert len(set(first)) == 2 and crew.run(process_of) == first
        assert [each.tolist() for each in crew.run(misbehave, "well")] == [[0, 0], [1, 1]]
        with pytest.raises(AssertionError, match="rank 1 died without an answer, exit code 7"):
            crew.run(misbehave, "die")
        again = crew.run(process_of)
        assert not set(again) & set(first)
    for process in (*first, *again):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
