# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model in a DeepSpeed engine, trained by whole rollouts."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.engine.base import Engine
    from memformer.engine.making import make_engine

__all__ = [
    "Engine",
    "make_engine",
]

__getattr__ = face(
    __name__,
    {
        "Engine": "base",
        "make_engine": "making",
    },
)
