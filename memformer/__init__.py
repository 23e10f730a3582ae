# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memformer: a transformer with an external memory, and its distributed training system."""

from memformer.loading import load_model
from memformer.model import Memformer, MemformerConfig

__all__ = ["Memformer", "MemformerConfig", "load_model"]
