# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memformer: a transformer with an external memory, and its distributed training system."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.models.loading import load_model
    from memformer.models.memformer.config import MemformerConfig
    from memformer.models.memformer.model import Memformer

__all__ = [
    "Memformer",
    "MemformerConfig",
    "load_model",
]

__getattr__ = face(
    __name__,
    {
        "Memformer": "models.memformer.model",
        "MemformerConfig": "models.memformer.config",
        "load_model": "models.loading",
    },
)
