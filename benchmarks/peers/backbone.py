# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The family `backbone` for benchmarks: a tiny byte-level Llama that has read books, and readers with its weights.

The plain backbone is the same model whose memory is never learned: readers of `slots` begin with output zero, and
frozen they keep it, so that its logits are those of transformers' own model to the last bit.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch

from benchmarks.peers.reader import MemoryReader
from benchmarks.tasks.text import BYTES, START
from benchmarks.texts import rollouts, texts
from benchmarks.training import Recipe, train
from data_pipeline.tokenizer import Tokenizer
from memformer.models.backbone.config import BackboneConfig, MemoryConfig
from memformer.models.backbone.model import Backbone
from memformer.models.backbone.pretrained import weights
from memformer.models.construction import Construction

WIDTH, LAYERS = 64, 4
TINY = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""181,000 parameters."""
MEMORIES = {
    "associative": MemoryConfig("associative"),
    "slots": MemoryConfig("slots", write_layer=None),
    "slots-half": MemoryConfig("slots"),
    "tokens": MemoryConfig("tokens"),
    "plain": MemoryConfig("slots", layers=(0,), num_slots=1),
}
PRETRAINING = Recipe(600, 3e-3, "wsd")
PRETRAINED_LANES, PRETRAINED_LENGTH = 16, 128


def make(memory: MemoryConfig, segment_length: int, overlap: int | None = None) -> Backbone:
    """A tiny byte-level backbone with a memory, its weights drawn."""
    return Backbone(
        BackboneConfig(
            backbone=dict(TINY),
            overlap=overlap,
            memory=memory,
            vocab_size=BYTES + 1,
            start_token_id=START,
            segment_length=segment_length,
        )
    )


MEMORY_NAMES = ("memory.", *(f"stack.{number}.reader." for number in range(1024)))
"""Beginnings of the names of a memory's parameters."""


def load(
    directory: str, tokenizer: Tokenizer, memory: MemoryConfig, segment_length: int, device: torch.device
) -> Backbone:
    """A pretrained model with a new memory.

    Args:
        directory: As transformers saves it.
        tokenizer: The directory's own.
        memory: Which memory.
        segment_length: S; the overlap is a quarter of it.
        device: Where it shall be.
    """
    config = BackboneConfig(
        pretrained=directory,
        memory=memory,
        vocab_size=tokenizer.vocab_size,
        start_token_id=tokenizer.start_token_id,
        segment_length=segment_length,
    )
    model = Backbone(config)
    parameters = dict(model.named_parameters())
    place = Construction()
    for name, stored in weights(config):
        place.read(name, parameters[name], stored)
    return model.to(device)


def is_of_memory(name: str) -> bool:
    """Whether a parameter belongs to the memory and not to the backbone."""
    return name.startswith(MEMORY_NAMES)


def freeze(model: torch.nn.Module, chosen: Callable[[str], bool]) -> None:
    """Takes parameters out of training by their names."""
    for name, parameter in model.named_parameters():
        if chosen(name):
            parameter.requires_grad_(False)


def plain(model: Backbone) -> MemoryReader:
    """A reader of the backbone alone."""
    freeze(model, is_of_memory)
    return MemoryReader(model, "plain", memory_reset=True)


@functools.cache
def pretrained(steps: int = PRETRAINING.steps, device: str = "cpu", seed: int = 0) -> dict[str, torch.Tensor]:
    """The backbone's weights after reading excerpts of books, each from a start token on."""
    torch.manual_seed(seed)
    reader = plain(make(MEMORIES["plain"], PRETRAINED_LENGTH, overlap=0).to(device))
    data = rollouts(texts("books").trained, PRETRAINED_LANES, PRETRAINED_LENGTH, 1, PRETRAINED_LENGTH, seed)
    recipe = dataclasses.replace(PRETRAINING, steps=steps)
    train(reader, data, recipe, lambda line: print(f"pretraining {line}", flush=True))
    return {name: weight for name, weight in reader.module.state_dict().items() if not is_of_memory(name)}


def reader_of(kind: str, backbone: dict[str, torch.Tensor], segment_length: int, seed: int) -> MemoryReader:
    """A pretrained backbone with a new memory, where its weights are.

    Args:
        kind: Of `MEMORIES`.
        backbone: Its weights, of `pretrained`.
        segment_length: S.
        seed: Of the memory's first numbers.
    """
    torch.manual_seed(seed)
    model = make(MEMORIES[kind], segment_length)
    missing, unexpected = model.load_state_dict(backbone, strict=False)
    assert not unexpected and all(map(is_of_memory, missing))
    model.to(next(iter(backbone.values())).device)
    return plain(model) if kind == "plain" else MemoryReader(model, kind)
