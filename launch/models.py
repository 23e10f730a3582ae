# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the commands on exported models share: opening one, with its tokenizer, on a device."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cloud_settings import is_cloud
from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from data_pipeline import Tokenizer
    from memformer.models.configuration import ModelConfig
    from memformer.models.protocol import MemoryModel, Wavefront


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --device, --dtype."""
    parser.add_argument("model", metavar="MODEL", help="directory made by memformer export, or the address of one")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="precision of the weights")


def model_here(arguments: argparse.Namespace) -> Path:
    """The directory of the model that the arguments name; from an address it is fetched, and they name the copy then.

    Raises:
        UserError: There is no exported model, or it cannot be had.
    """
    if is_cloud(arguments.model):
        from memformer.checkpoints.export_copy import fetch_export

        arguments.model = str(fetch_export(arguments.model))
    path = Path(arguments.model)
    check_model(path)
    return path


def check_model(path: Path, said: str = "") -> None:
    """Refuses what is no exported model at a glance, before torch is imported.

    Args:
        path: Where it should be.
        said: The setting that names it, for the message; the command's argument needs no name.

    Raises:
        UserError: There is none.
    """
    from memformer.checkpoints.directory import refuse_unexported

    refuse_unexported(path, f"{said}: " if said else "")
    named = f"{said}: {path}" if said else str(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{named}: holds no config.json: give a directory made by memformer export")


def add_wavefront_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """--wavefront."""
    parser.add_argument(
        "--wavefront",
        action="store_true",
        help=f"{what} along the diagonals of segments and layers, equal to rounding: faster for one or a few documents "
        "where one layer's segment is little work for the device (memory.kind associative alone)",
    )


def check_wavefront(path: Path) -> None:
    """Refuses --wavefront for a model that has none, before torch is imported.

    A description that cannot be read is left to `open_model`, which says what of it is wrong.

    Raises:
        UserError: It has none.
    """
    from memformer.models.registry import wavefronts_of

    config = _described(path)
    if config is None:
        return
    try:
        wavefronts_of(config).check(config)
    except ValueError as error:
        raise UserError(f"--wavefront: {error}: leave it out") from None


def check_decoder_batch(path: Path, group: int) -> None:
    """Refuses --segments-per-decoder-batch for a model without a decoder apart, as `check_wavefront`.

    Raises:
        UserError: It has none.
    """
    from memformer.models.registry import family_of

    config = _described(path)
    if config is not None and not family_of(config).decoder_apart:
        raise UserError(
            f"--segments-per-decoder-batch is {group}: not built for family {config.family}, whose memory waits for "
            "all layers: leave it out"
        )


def _described(path: Path) -> "ModelConfig | None":
    """The configuration that an export describes, without torch; None: it cannot be read."""
    from memformer.models.registry import DEFAULT, UnknownFamily, family, family_of_architecture

    file = next(file for file in (path / "memory.json", path / "config.json") if file.is_file())
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        kind = family_of_architecture(described.get("architecture", family(DEFAULT).architecture))
        config: ModelConfig = kind.config.from_dict(described["model"])
    except (UnknownFamily, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return config


def open_wavefront(model: "MemoryModel") -> "Wavefront":
    """What reads documents along diagonals with a model.

    Raises:
        UserError: Its layers are not alike.
    """
    from memformer.models.registry import wavefronts_of

    try:
        found: Wavefront = wavefronts_of(model.config).build(model)
    except ValueError as error:
        raise UserError(f"--wavefront: {error}: leave it out") from None
    return found


def open_model(arguments: argparse.Namespace) -> "tuple[MemoryModel, Tokenizer]":
    """The model and the tokenizer that the arguments name.

    Raises:
        UserError: There is no exported model there, it is damaged, or the device does not exist.
    """
    path = model_here(arguments)
    import torch

    from data_pipeline import load_tokenizer
    from memformer.models.exported import read_description
    from memformer.models.loading import load_model

    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: there is no such device here: use --device cpu") from None
    try:
        model = load_model(path, device, torch.bfloat16 if arguments.dtype == "bf16" else torch.float32)
        description = read_description(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    mend = "export the model again, or copy the tokenizer.json of the data set that it was trained on"
    file = path / Path(str(description.get("tokenizer_file", "tokenizer.json"))).name
    if not file.exists():
        raise UserError(f"{file}: is missing: {mend}")
    try:
        tokenizer = load_tokenizer(file)
    except UserError as error:
        raise UserError(f"{error}: {mend}") from None
    if tokenizer.sha256 != description.get("tokenizer_sha256"):
        raise UserError(f"{file}: is not the model's tokenizer: {mend}")
    return model, tokenizer
