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
from safetensors import SafetensorError
from safetensors.torch import load_file

from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Family
from memformer.models.registry import DEFAULT, UnknownFamily, family, family_of_architecture

FORMAT = 1
_MEND = "give a directory made by memformer export"
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
    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(directory):
        try:
            weights.update(load_file(file, device=str(device)))
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from None
    weights |= {alias: weights[owner] for alias, owner in config.tied().items() if owner in weights}
    try:
        with torch.device("meta"):
            model = kind.build(config)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None
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
        ValueError: It cannot be read, or is of another format; the message names the file.
    """
    path = directory / "config.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{directory}: holds no config.json: {_MEND}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(description, dict) or description.get("format") != FORMAT or "model" not in description:
        raise ValueError(f"{path}: is not a Memformer export of format {FORMAT}: {_MEND}")
    return description


def _unreadable(file: Path, error: Exception) -> ValueError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return ValueError(f"{file}: cannot be read ({reason}): export the model again")


def described_model(directory: Path, description: dict[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and configuration that an export's description names.

    Raises:
        ValueError: There is no such family here, or the configuration does not fit it.
    """
    try:
        architecture = description.get("architecture", family(DEFAULT).architecture)
        kind = family_of_architecture(str(architecture))
        return kind, kind.config.from_dict(description["model"])
    except (UnknownFamily, ValueError) as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None
    except (TypeError, AttributeError):
        raise ValueError(f"{directory / 'config.json'}: does not describe a model: export it again") from None


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
        except OSError as error:
            raise _unreadable(directory / INDEX, error) from None
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{directory / INDEX}: is not an index of weights: export the model again") from None
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{directory / INDEX}: names {name!r}, outside the directory: do not use this model")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: holds no {name}: {_MEND}")
    return [directory / name for name in names]
