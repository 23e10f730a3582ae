# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`evaluation_mode`: a model in evaluation mode for the length of a block, however the block ends."""

import contextlib
from collections.abc import Iterator

from memformer.models.protocol import MemoryModel


@contextlib.contextmanager
def evaluation_mode(model: MemoryModel) -> Iterator[None]:
    """Inside the block the model draws no dropout; afterwards it is in the mode that it was in before.

    An evaluation may be broken off by an exception, after which the run goes on with the same model: it must not train
    the rest of its steps without dropout.

    Args:
        model: The model, in training mode or not.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
