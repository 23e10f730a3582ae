# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The training run, from top to bottom."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.training.trainer import train

__all__ = [
    "train",
]

__getattr__ = face(
    __name__,
    {
        "train": "trainer",
    },
)
