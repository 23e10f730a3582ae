# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The section `profile`: of which optimizer steps a run writes down where their time and memory went."""

from typing import Annotated

from pydantic import AfterValidator, Field

from memformer.config.section import Section

MOST_STEPS = 20
"""A trace of one step of a large model has some hundred thousand lines."""


def _window(steps: list[int]) -> list[int]:
    if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
        raise ValueError(f"is {steps}: give the first and the last step to be traced, such as [10, 12], or []")
    if steps and steps[1] - steps[0] >= MOST_STEPS:
        raise ValueError(f"is {steps}: trace at most {MOST_STEPS} steps, such as [{steps[0]}, {steps[0] + 2}]")
    return steps


def _ranks(ranks: list[int]) -> list[int]:
    if not ranks or min(ranks) < 0 or len(set(ranks)) < len(ranks):
        raise ValueError(f"is {ranks}: name processes by their number, from 0 on, each once")
    return ranks


class ProfileConfig(Section):
    """Traces of a few optimizer steps (docs/operations.md)."""

    steps: Annotated[list[int], AfterValidator(_window)] = Field([])
    """First and last optimizer step of which run_dir/profile gets a trace, such as [10, 12]; empty: none."""
    ranks: Annotated[list[int], AfterValidator(_ranks)] = Field([0])
    """Processes that write one; a number that the run does not have is left out."""
    memory: bool = False
    """Also who takes and gives back how much memory: in the trace, and of a GPU as a snapshot besides."""
