# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The paper's model: an encoder that reads the memory, a writer, a decoder."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.models.memformer.config import MemformerConfig
    from memformer.models.memformer.model import Memformer

__all__ = [
    "Memformer",
    "MemformerConfig",
]

__getattr__ = face(
    __name__,
    {
        "Memformer": "model",
        "MemformerConfig": "config",
    },
)
