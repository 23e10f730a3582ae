# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model that a new run starts with: drawn from the seed, or the weights of an export (`init_from`)."""

import json
import logging
from pathlib import Path

import torch

from data_pipeline import UserError
from memformer.config import Config
from memformer.loading import load_model
from memformer.model import Memformer, MemformerConfig
from memformer.training_data import TrainingData

LOG = logging.getLogger("memformer")
_FREE = ("dropout", "segment_length")  # they change nothing about the weights


def initial_model(config: Config, model_config: MemformerConfig, data: TrainingData) -> Memformer:
    """The model before the first step, equal on all processes.

    Raises:
        UserError: `init_from` is no export, or is one of another model or tokenizer.
    """
    torch.manual_seed(config.seed)
    model = Memformer(model_config)
    if config.init_from is None:
        return model
    source = Path(config.init_from)
    try:
        exported = load_model(source, dtype=torch.float32)
        tokenizer = json.loads((source / "config.json").read_text(encoding="utf-8")).get("tokenizer_sha256")
    except Exception as error:  # safetensors raises a class of its own for a file that it cannot read
        raise UserError(
            f"init_from: {source} cannot be loaded ({error}): give a directory of memformer export"
        ) from None
    if tokenizer != data.train.tokenizer.sha256:
        raise UserError(
            f"init_from: {source} was trained with another tokenizer than {data.train.path} was built with: build the "
            "data set with the tokenizer.json of the export"
        )
    for name, there in exported.config.to_dict().items():
        here = model_config.to_dict().get(name)
        if name not in _FREE and here != there:
            raise UserError(f"init_from: model.{name} is {there} in {source} and {here} here: set it to {there}")
    model.load_state_dict(exported.state_dict())
    LOG.info("weights from %s", source)
    return model
