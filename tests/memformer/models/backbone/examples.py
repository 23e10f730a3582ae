# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tiny backbones of every supported kind, without weights or as directories that transformers wrote."""

import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memformer.models.backbone import Backbone, BackboneConfig, MemoryConfig
from memformer.models.backbone.parts import language_model

VOCABULARY = 31
START = 30
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
_GROUPED = _SIZES | {"num_key_value_heads": 1}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True} | _GROUPED,
    "qwen2": {"model_type": "qwen2"} | _GROUPED,
    "qwen3": {"model_type": "qwen3", "head_dim": 8} | _GROUPED,
    "mistral": {"model_type": "mistral"} | _GROUPED,
    "gpt_neox": {"model_type": "gpt_neox"} | _SIZES,
    "gpt2": {"model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 64},
}
MEMORIES = {
    "associative": MemoryConfig(d_key=3, num_write_tokens=2),
    "armt": MemoryConfig(d_key=3, num_write_tokens=2, rule="armt", layers=(0, 2)),
    "one layer": MemoryConfig(d_key=3, num_write_tokens=2, layers=(1,)),
    "slots": MemoryConfig(kind="slots", num_slots=3),
    "slots half-way": MemoryConfig(kind="slots", num_slots=3, write_layer=2, layers=(1, 2), forgetting="written"),
    "tokens": MemoryConfig(kind="tokens", num_slots=3),
}


def config_of(kind: str = "llama", memory: str = "associative", **changes: Any) -> BackboneConfig:
    values = {"vocab_size": VOCABULARY, "start_token_id": START, "overlap": 2} | changes
    return BackboneConfig(backbone=dict(SIZES[kind]), memory=MEMORIES[memory], **values)


def make(config: BackboneConfig, dtype: torch.dtype = torch.float64, moved: float = 0.0) -> Backbone:
    """The same model at every call; `moved`: away from the zeros that it starts with."""
    torch.manual_seed(0)
    model = Backbone(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    if dtype == torch.float64:
        exact_norms(model)
    return model


def exact_norms(model: nn.Module) -> None:
    """transformers computes RMS norms in float32 whatever it is given; here in what it is given."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(forward, module)


def plain_of(model: Backbone) -> Any:
    """transformers' own model with the numbers of a wrapped one."""
    from memformer.models.backbone.parts import file_names

    plain = language_model(model.config).to(model.embedding.weight.dtype).train(model.training)
    theirs = dict(plain.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for there in file_names(name, model.config.architecture):
                if there in theirs:
                    theirs[there].copy_(parameter)
    if model.embedding.weight.dtype == torch.float64:
        exact_norms(plain)
    return plain


def saved(kind: str, directory: Path, **options: Any) -> Path:
    """A pretrained directory as transformers writes it."""
    torch.manual_seed(7)
    language_model(config_of(kind)).save_pretrained(directory, **options)
    return directory
