# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A decoder-only language model of Hugging Face's transformers, pretrained or not, to which a memory is added."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.models.backbone.config import BackboneConfig, LoraConfig, MemoryConfig
    from memformer.models.backbone.model import Backbone

__all__ = [
    "Backbone",
    "BackboneConfig",
    "LoraConfig",
    "MemoryConfig",
]

__getattr__ = face(
    __name__,
    {
        "Backbone": "model",
        "BackboneConfig": "config",
        "LoraConfig": "config",
        "MemoryConfig": "config",
    },
)
