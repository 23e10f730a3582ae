# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerForCausalLM`: a Memformer as transformers knows models; source of a bundle."""

from typing import Any

from transformers import PreTrainedConfig

from memformer.models.exported import Place, own_place
from memformer.models.hub.causal_lm import MemoryCausalLM
from memformer.models.memformer.config import MemformerConfig
from memformer.models.memformer.model import Memformer
from memformer.models.memformer.reader import MemformerReader


class MemformerHubConfig(PreTrainedConfig):
    """config.json as transformers reads it; the model's sizes are in its `model`."""

    model_type = "memformer"
    vocab_size: int | None = None
    model: dict[str, Any] | None = None


class MemformerForCausalLM(MemoryCausalLM):
    """The paper's model."""

    config_class = MemformerHubConfig
    memory_config, module, reader = MemformerConfig, Memformer, MemformerReader

    @staticmethod
    def place(config: MemformerConfig) -> Place:
        """Under its own name."""
        return own_place
