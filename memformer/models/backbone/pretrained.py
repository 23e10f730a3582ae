# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The weights of a pretrained directory under this family's names, one tensor after another, checked before the first.

The check that the wrapped model says what transformers' own says is made on two layers of the same sizes with a small
vocabulary and random numbers: the whole model may not fit one process.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from memformer.models.backbone.config import BackboneConfig, MemoryConfig
from memformer.models.backbone.directory import place, read_config, tokenizer_ids, weight_places
from memformer.models.backbone.model import Backbone
from memformer.models.backbone.parts import file_names, language_model
from memformer.models.construction import Construction, StoredTensor
from memformer.replay import Segment

CHECK_LAYERS, CHECK_IDS, CHECK_TOKENS = 2, 64, 12
TOLERANCE = 1e-4
"""Of the largest logit; the two differ in the order of sums at most."""
_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Ends of the names of what older files hold beside weights."""
_PADDING = 1024
"""Ids that a model may have beyond those of its tokenizer, so that its matrices have handy sizes."""


def weights(config: BackboneConfig) -> Iterator[tuple[str, StoredTensor]]:
    """Name in this family's model and stored tensor, of every weight of the backbone; the memory's stay as drawn.

    Raises:
        ValueError: The directory does not fit the configuration, the data or this program; one line says where.
    """
    assert config.pretrained is not None
    where = f"pretrained is {config.pretrained}"
    if read_config(config.pretrained) != config.backbone:
        raise ValueError(f"{where}: its config.json says something else than model.backbone: leave the latter out")
    _check_tokenizer(config, where)
    check_logits(config, where)
    places = _places(config.pretrained, where)
    undrawn = Construction()
    undrawn.reads = True
    with torch.device("meta"):
        model = Backbone(config, undrawn)
    shapes = {name: each.shape for name, each in model.named_parameters() if file_names(name, config.architecture)}
    found = {}
    for name in shapes:
        there = [each for each in file_names(name, config.architecture) if each in places]
        if not there:
            raise ValueError(f"{where}: holds no tensor {file_names(name, config.architecture)[0]}: give a whole model")
        found[name] = there[0]
    aliases = {each for alias in config.tied() for each in file_names(alias, config.architecture)}
    for name in sorted(set(places) - set(found.values()) - aliases):
        if not name.endswith(_BUFFERS):
            raise ValueError(f"{where}: holds {name}, which a model of its config.json does not have: give another")
    return _read(found, shapes, places, where)


def _read(
    found: dict[str, str], shapes: dict[str, torch.Size], places: dict[str, Path], where: str
) -> Iterator[tuple[str, StoredTensor]]:
    for name, there in found.items():
        try:
            with safe_open(places[there], framework="pt") as file:
                tensor = file.get_slice(there)
                shape = list(tensor.get_shape())
                if shape == list(shapes[name]):
                    yield name, tensor
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{where}: {places[there].name} cannot be read ({error}): copy the model again") from None
        if shape != list(shapes[name]):
            raise ValueError(
                f"{where}: {there} has shape {shape}, its config.json asks for {list(shapes[name])}: give another"
            )


def _places(pretrained: str, where: str) -> dict[str, Path]:
    """Tensor -> its file."""
    places = weight_places(pretrained)
    if places is not None:
        return places
    single = place(pretrained) / "model.safetensors"
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where}: {single.name} cannot be read ({error}): copy the model again") from None


def _check_tokenizer(config: BackboneConfig, where: str) -> None:
    """The data's ids are those of the model: as many as its tokenizer has, and the start token where it was added."""
    ids, count = tokenizer_ids(str(config.pretrained)), config.vocab_size or 0
    if ids is not None and count not in (ids, ids + 1):
        raise ValueError(
            f"{where}: its tokenizer.json has {ids} ids, that of the data set {count} with the start token: build the "
            f"data set with --tokenizer hf:{config.pretrained}"
        )
    if ids is None and count < config.own_vocabulary - _PADDING:
        raise ValueError(
            f"{where}: has {config.own_vocabulary} ids, the data set's tokenizer {count}: build the data set with that "
            "model's own tokenizer"
        )


@torch.no_grad()
def check_logits(config: BackboneConfig, where: str) -> None:
    """Runs two layers as transformers runs them and as this family does, on random tokens.

    Raises:
        ValueError: The logits differ.
    """
    layers = config.architecture.sizes[0]
    small = dataclasses.replace(
        config,
        backbone=config.backbone | {layers: min(CHECK_LAYERS, config.num_layers), "vocab_size": CHECK_IDS},
        bos_token_id=0,
        memory=MemoryConfig(layers=(0,), d_key=2, num_write_tokens=1),
        vocab_size=CHECK_IDS,
        start_token_id=0,
        segment_length=None,
        overlap=0,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain, wrapped = language_model(small).eval(), Backbone(small).eval()
        tokens = torch.randint(1, CHECK_IDS, (2, CHECK_TOKENS))
    copy_weights(plain, wrapped)
    length, never = torch.full((2,), CHECK_TOKENS), torch.zeros(2, dtype=torch.bool)
    segment = Segment(tokens, torch.zeros_like(length), tokens, length, never)
    found, _ = wrapped.logits(segment, wrapped.initial_memory(2))
    inputs = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
    expected = plain(input_ids=inputs, use_cache=False).logits
    difference, size = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * size:
        raise ValueError(
            f"{where}: run with a memory its logits are not those of transformers (by {difference:.2g} of {size:.2g}), "
            "so something of it is not built: choose another model"
        )


def copy_weights(plain: Any, wrapped: Backbone) -> None:
    """Gives a wrapped model the numbers of transformers' own."""
    theirs = dict(plain.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            for there in file_names(name, wrapped.config.architecture):
                if there in theirs:
                    parameter.copy_(theirs[there])
                    break
