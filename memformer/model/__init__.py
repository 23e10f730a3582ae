# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model: torch alone, no trainer, no DeepSpeed."""

from memformer.model.config import MemformerConfig
from memformer.model.memformer import Memformer, token_losses
from memformer.model.segment import Segment

__all__ = ["Memformer", "MemformerConfig", "Segment", "token_losses"]
