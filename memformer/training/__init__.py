# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The training run, from top to bottom, and the points at which one's own code may take part in it."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.training.callbacks import Callback, TrainingState
    from memformer.training.trainer import train

__all__ = [
    "Callback",
    "TrainingState",
    "train",
]

__getattr__ = face(
    __name__,
    {
        "Callback": "callbacks",
        "TrainingState": "callbacks",
        "train": "trainer",
    },
)
