# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The models: what a memory model is, the families there are, and how an export of one is loaded. torch alone."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.models.loading import load_model
    from memformer.models.memformer.config import MemformerConfig
    from memformer.models.memformer.model import Memformer
    from memformer.models.registry import family

__all__ = [
    "Memformer",
    "MemformerConfig",
    "family",
    "load_model",
]

__getattr__ = face(
    __name__,
    {
        "Memformer": "memformer.model",
        "MemformerConfig": "memformer.config",
        "family": "registry",
        "load_model": "loading",
    },
)
