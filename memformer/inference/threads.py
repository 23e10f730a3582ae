# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""No more threads on a CPU than what a small model computes is worth."""

import contextlib
import os
from collections.abc import Iterator

import torch

from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of

BYTES_A_THREAD = 2**28  # weights that one core reads in some hundredths of a second
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


def spare_threads(model: MemoryModel) -> None:
    """Computes with as many threads as one token's work is worth, unless OMP_NUM_THREADS says how many.

    A token reads every weight once and computes little. Small models are done before several threads have met, and on
    busy cores a thread that waits for its turn holds up all others at every product.
    """
    if model.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        size = sum(weight.nbytes for _, weight in model.named_parameters())
        torch.set_num_threads(min(torch.get_num_threads(), 1 + size // BYTES_A_THREAD))
