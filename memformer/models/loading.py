# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`load_model`: an exported model, with torch and safetensors alone (and transformers, for a family built on it).

How the files lie is in exported.py. Nothing in them is executed: not even the modeling_*.py that an export has for
transformers' `trust_remote_code`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from memformer.models.configuration import ModelConfig
from memformer.models.construction import StoredTensor
from memformer.models.exported import (
    FORMAT,
    SINGLE,
    Place,
    check_facts,
    description_file,
    fill,
    own_place,
    read_description,
    weights,
)
from memformer.models.family_record import Family
from memformer.models.registry import DEFAULT, UnknownFamily, family, family_of_architecture


def load_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """Loads an exported model in evaluation mode: a `torch.nn.Module` of its family, such as `Memformer`.

    Args:
        path: Directory that `memformer export` wrote.
        device: Where to put it.
        dtype: Convert the weights; None keeps the file's.

    Raises:
        FileNotFoundError: The directory holds no exported model, or a file of it is missing.
        ValueError: The files do not fit each other, or are of another format; the message names the file.
    """
    directory = Path(path)
    description = read_description(directory)
    kind, config = described_model(directory, description)
    try:
        with torch.device("meta"):
            model = kind.build(config)
    except ValueError as error:
        raise ValueError(f"{description_file(directory)}: {error}") from None
    names = [name for name, _ in model.named_parameters()]
    fill(model, config.tied(), exported_weights(directory, description, names), directory / SINGLE, device)
    if dtype is not None:
        model.to(dtype)
    return model.requires_grad_(False).eval()


def exported_weights(
    directory: Path, description: dict[str, Any], names: list[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Name and stored tensor of each parameter that an export holds, one after another.

    Args:
        directory: The export.
        description: As `exported.read_description` gives it.
        names: The parameters of the model, tied ones once.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: See `exported.weights`.
    """
    return weights(directory, description, _place(*described_model(directory, description), description), names)


def _place(kind: Family, config: ModelConfig, description: dict[str, Any]) -> Place:
    if description["format"] == FORMAT or kind.export is None or kind.export.place is None:
        return own_place
    return kind.export.place(config)


def described_model(directory: Path, description: dict[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and configuration that an export's description names.

    Raises:
        ValueError: There is no such family here, or the configuration does not fit it.
    """
    file = description_file(directory)
    try:
        architecture = description.get("architecture", family(DEFAULT).architecture)
        kind = family_of_architecture(str(architecture))
        config = kind.config.from_dict(description["model"])
    except (UnknownFamily, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        raise ValueError(f"{file}: does not describe a model: export it again") from None
    if description["format"] != FORMAT:
        if kind.export is None:
            raise ValueError(f"{file}: family {kind.name} has no exports of that format: export it again")
        try:
            facts = kind.export.facts(config)
        except ValueError as error:
            raise ValueError(f"{file}: model.{error}") from None
        check_facts(directory, description, facts)
    return kind, config
