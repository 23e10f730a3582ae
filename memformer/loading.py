# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`load_model`: an exported model, with torch and safetensors alone.

MODEL/model.safetensors  config.json  tokenizer.json
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from memformer.model import Memformer, MemformerConfig

FORMAT = 1
TIED = "head.weight"  # left out of the file when it is the embedding


def load_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Memformer:
    """Loads an exported model in evaluation mode.

    Args:
        path: Directory that `memformer export` wrote.
        device: Where to put it.
        dtype: Convert the weights; None keeps the file's.

    Raises:
        FileNotFoundError: The directory holds no exported model.
        ValueError: The files do not fit each other, or are of another format; the message names the file.
    """
    directory = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: holds no {name}: give a directory made by memformer export")
    description = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if description.get("format") != FORMAT or "model" not in description:
        raise ValueError(f"{directory / 'config.json'}: is not a Memformer export of format {FORMAT}")
    config = MemformerConfig.from_dict(description["model"])
    weights = load_file(directory / "model.safetensors", device=str(device))
    if config.tie_embeddings:
        weights[TIED] = weights["embedding.tokens.weight"]
    with torch.device("meta"):
        model = Memformer(config)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ValueError(f"{directory / 'model.safetensors'}: does not fit config.json: {lines[0]}") from None
    if config.tie_embeddings:
        model.head.weight = model.embedding.tokens.weight
    if dtype is not None:
        model.to(dtype)
    return model.requires_grad_(False).eval()
