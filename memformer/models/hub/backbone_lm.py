# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneForCausalLM`: a language model with a memory, as transformers knows models; source of a bundle."""

from typing import Any

from memformer.models.backbone.config import BackboneConfig
from memformer.models.backbone.exports import memory_facts, weight_place
from memformer.models.backbone.model import Backbone
from memformer.models.backbone.reader import BackboneReader
from memformer.models.exported import Place
from memformer.models.hub.causal_lm import MemoryCausalLM


class BackboneForCausalLM(MemoryCausalLM):
    """A decoder of transformers with the memory of memory.json and memory.safetensors."""

    memory_config, module, reader = BackboneConfig, Backbone, BackboneReader

    @staticmethod
    def place(config: BackboneConfig) -> Place:
        """See `exports.weight_place`."""
        return weight_place(config)

    @staticmethod
    def facts(config: BackboneConfig) -> dict[str, Any]:
        """See `exports.memory_facts`."""
        return memory_facts(config)
