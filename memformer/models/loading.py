# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`load_model`: an exported model, with torch and safetensors alone.

MODEL/model.safetensors  config.json  tokenizer.json  README.md
A large model has model-00001-of-0000N.safetensors, ... and model.safetensors.index.json instead of the one file.
Nothing in these files is executed, and none outside the directory is read.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Family
from memformer.models.registry import DEFAULT, UnknownFamily, family, family_of_architecture

FORMAT = 1
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """Loads an exported model in evaluation mode: a `torch.nn.Module` of its family, such as `Memformer`.

    Args:
        path: Directory that `memformer export` wrote.
        device: Where to put it.
        dtype: Convert the weights; None keeps the file's.

    Raises:
        FileNotFoundError: The directory holds no exported model.
        ValueError: The files do not fit each other, or are of another format; the message names the file.
    """
    directory = Path(path)
    kind, config = described_model(directory, read_description(directory))
    weights = {}
    for file in weight_files(directory):
        weights.update(load_file(file, device=str(device)))
    for alias, owner in config.tied().items():
        weights[alias] = weights[owner]
    with torch.device("meta"):
        model = kind.build(config)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ValueError(f"{directory / SINGLE}: does not fit config.json: {lines[0]}") from None
    for alias, owner in config.tied().items():
        place, _, name = alias.rpartition(".")
        setattr(model.get_submodule(place), name, model.get_parameter(owner))
    if dtype is not None:
        model.to(dtype)
    return model.requires_grad_(False).eval()


def read_description(directory: Path) -> dict[str, Any]:
    """What config.json says of an exported model.

    Raises:
        FileNotFoundError: The directory holds no exported model.
        ValueError: It is of another format.
    """
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory}: holds no config.json: give a directory made by memformer export")
    description: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if description.get("format") != FORMAT or "model" not in description:
        raise ValueError(f"{directory / 'config.json'}: is not a Memformer export of format {FORMAT}")
    return description


def described_model(directory: Path, description: dict[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and configuration that an export's description names.

    Raises:
        ValueError: There is no such family here, or the configuration does not fit it.
    """
    try:
        architecture = description.get("architecture", family(DEFAULT).architecture)
        kind = family_of_architecture(str(architecture))
        return kind, kind.config.from_dict(description["model"])
    except (UnknownFamily, ValueError, TypeError) as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of an exported model.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: The index is damaged, or names a file outside the directory.
    """
    names = [SINGLE]
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():
        try:
            places = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(map(str, places.values())))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{directory / INDEX}: is not an index of weights: export the model again") from None
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{directory / INDEX}: names {name!r}, outside the directory: do not use this model")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: holds no {name}: give a directory made by memformer export")
    return [directory / name for name in names]
