# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`worthwhile_threads`: no more threads than the operations of a small model are worth."""

import contextlib
from collections.abc import Iterator

import torch

from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of

SHARED = 2**31  # floating-point operations of a segment, from which on it is shared by several threads: 25 ms or more


@contextlib.contextmanager
def worthwhile_threads(model: MemoryModel, segment_length: int) -> Iterator[None]:
    """Inside the block a CPU computes with one thread, where a segment of one lane is small.

    An operation that takes microseconds gains next to nothing from a second thread, but waits for it: on a machine
    whose cores are busy for the scheduler's time slice, a hundred times a segment, spinning. Reading 70 kB with a model
    of width 128 took 114 s of processor time with two threads on two busy cores, and 4 s with one.

    Args:
        model: The model that reads.
        segment_length: Tokens a segment.
    """
    threads = torch.get_num_threads()
    if family_of(model.config).flops(model.config, segment_length).advance < SHARED:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
