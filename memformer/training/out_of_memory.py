# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One line for a process whose memory runs out: where it was, what the plan expected, what to lower."""

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from data_pipeline.errors import UserError
from memformer.planning.arrangement import arrange
from memformer.planning.memory import largest, stage_memory
from memformer.training.callbacks import TrainingState

_OF_THE_HOST = "can't allocate memory"
"""What torch's allocator for the CPU says, in an error of no type of its own."""
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.,]+ ?\w+)")


@contextlib.contextmanager
def told_when_out_of_memory(state: TrainingState, segments_done: Callable[[], int]) -> Iterator[None]:
    """Around a step's rollout and optimizer step.

    Args:
        state: The run before that step.
        segments_done: How many of the rollout's segments have been back-propagated; of its windows, where it is trained
            by windows.

    Raises:
        UserError: The device or the host has no more memory; with exit code 1.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and _OF_THE_HOST not in str(error):
            raise
        state.run.event("out_of_memory", step=state.progress.step + 1, rank=state.world.rank, said=str(error))
        raise UserError(line(state, segments_done(), str(error)), exit_code=1) from error


def line(state: TrainingState, segments_done: int, said: str) -> str:
    """The line.

    Args:
        state: The run before the step.
        segments_done: As of `told_when_out_of_memory`.
        said: The allocator's words.
    """
    world, config = state.world, state.config
    asked = _ASKED.search(said)
    where = f"step {state.progress.step + 1}, rank {world.rank} on {world.device}"
    parts = "windows" if config.training.wavefront_window else "segments"
    run = arrange(config, state.engine.model.config, world.size)
    memory, _ = stage_memory(run, world.mesh.pipe.rank)
    name, size, mend = largest(memory)
    return (
        f"out of memory at {where}, {parts} of the rollout that were done: {segments_done}"
        f"{f', asked for: {asked[1]}' if asked else ''}; the plan expected "
        f"{sum(memory.values()) / 1e9:.3g} GB, most of it {name} ({size / 1e9:.3g} GB): try {mend}"
    )
