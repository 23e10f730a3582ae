# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The files of an exported model: what describes it, which file holds which weight, and whether they are as written.

Format 1 has every weight under the model's own name in model.safetensors, and is described by config.json. Format 2 is
laid out by its family (`family_record.Export`): config.json is then another program's, and memory.json describes it.
A large file model.safetensors is model-00001-of-0000N.safetensors, ... and model.safetensors.index.json instead.
Nothing in these files is executed, and none outside the directory is read but those of a base that memory.json names.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from memformer.models.configuration import is_file_name
from memformer.models.construction import StoredTensor

FORMAT, LAID_OUT = 1, 2
"""The formats: see above."""
DESCRIPTIONS = ("memory.json", "config.json")
"""Where the description may be; the first that is there counts."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_NUMBERS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""What weights may be stored in."""
_NO_EXPORT = "give a directory made by memformer export"
_AGAIN = "export the model again"

Place = Callable[[str], tuple[str, tuple[str, ...]]]
"""Name of a parameter -> stem of the file it is in (`model`, `memory`), and the names that it may have there; the first
is the one that is written."""


def own_place(name: str) -> tuple[str, tuple[str, ...]]:
    """Of format 1: under its own name in model.safetensors."""
    return "model", (name,)


def description_file(directory: Path) -> Path:
    """What describes an export."""
    return next((directory / name for name in DESCRIPTIONS if (directory / name).is_file()), directory / "config.json")


def read_description(directory: Path) -> dict[str, Any]:
    """What an export says of itself.

    Raises:
        FileNotFoundError: The directory holds no exported model.
        ValueError: It cannot be read, or is of another format; the message names the file.
    """
    path = description_file(directory)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{directory}: holds no config.json: {_NO_EXPORT}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from None
    of_file = FORMAT if path.name == "config.json" else LAID_OUT
    if not isinstance(description, dict) or description.get("format") != of_file or "model" not in description:
        raise ValueError(f"{path}: is not a Memformer export of format {of_file}: {_NO_EXPORT}")
    return description


def unreadable(file: Path, error: Exception) -> ValueError:
    """A file that cannot be read, in one line."""
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    return ValueError(f"{file}: cannot be read ({reason}): {_AGAIN}")


def check_facts(directory: Path, description: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuses a description of which one part contradicts another.

    Raises:
        ValueError: Names the part, what it says, and what follows from the model's configuration.
    """
    for name, value in facts.items():
        if description.get(name) != value:
            found = json.dumps(description.get(name))
            raise ValueError(
                f"{description_file(directory)}: {name} is {found}, but its model has {json.dumps(value)}: {_AGAIN}"
            )


def size_and_sum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def weights(
    directory: Path, description: Mapping[str, Any], place: Place, names: Iterable[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Name and stored tensor of each parameter of an export, one after another: what is asked for of it is read.

    The files are held to what the description says of them before the first tensor is read.

    Args:
        directory: The export.
        description: As `read_description` gives it.
        place: Where its family keeps each parameter.
        names: The parameters of the model, tied ones once.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or not the one that was written, or holds other tensors; one line.
    """
    base, named = description.get("base", {}), list(names)
    try:
        if "\0" in base.get("directory", "."):
            raise TypeError("a path has none")
        home = Path(directory / base.get("directory", "."))
        _check_sums(directory, directory, description.get("files", {}), _AGAIN)
        _check_sums(
            directory, home, base.get("files", {}), f"{DESCRIPTIONS[0]} names it as the base: put it back there"
        )
    except (TypeError, AttributeError, KeyError):
        raise ValueError(f"{description_file(directory)}: does not describe its files: {_AGAIN}") from None
    places: dict[str, dict[str, Path]] = {}
    for stem in {place(name)[0] for name in named}:
        elsewhere = home != directory and stem == "model"
        places[stem] = tensor_places(home, stem) if elsewhere else {}
        if not elsewhere or _has(directory, stem):
            places[stem] |= tensor_places(directory, stem)
    dtype = DTYPES.get(str(description.get("dtype"))) if home != directory else None
    return _tensors(directory, place, named, places, home != directory, dtype)


def _tensors(
    directory: Path,
    place: Place,
    names: list[str],
    places: Mapping[str, dict[str, Path]],
    reference: bool,
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, StoredTensor]]:
    described = description_file(directory).name
    rest = {stem: set(files) for stem, files in places.items()}
    found: list[tuple[str, str, Path]] = []
    for name in names:
        stem, candidates = place(name)
        there = next((each for each in candidates if each in places[stem]), None)
        if there is None:
            file = directory / f"{stem}.safetensors"
            raise ValueError(f"{file}: does not fit {described}: Missing key: {candidates[0]}: {_AGAIN}")
        rest[stem] -= set(candidates)
        found.append((name, there, places[stem][there]))
    for stem, unknown in rest.items():
        if unknown and not (reference and stem == "model"):  # a base may hold a tied matrix twice, and buffers
            file = directory / f"{stem}.safetensors"
            raise ValueError(f"{file}: does not fit {described}: Unexpected key: {min(unknown)}: {_AGAIN}")
    for name, there, file in found:
        try:
            with safe_open(file, framework="pt") as opened:
                stored: StoredTensor = opened.get_slice(there)
                yield name, stored if dtype is None else _Converted(stored, dtype)
        except (SafetensorError, OSError) as error:
            raise unreadable(file, error) from None


class _Converted:
    """A stored tensor of another precision; `construction.StoredTensor`."""

    def __init__(self, stored: StoredTensor, dtype: torch.dtype) -> None:
        self._stored, self._dtype = stored, dtype

    def get_shape(self) -> Sequence[int]:
        """Its shape."""
        return self._stored.get_shape()

    def __getitem__(self, part: Any) -> torch.Tensor:
        """A part of it."""
        return self._stored[part].to(self._dtype)


def _check_sums(export: Path, directory: Path, files: Mapping[str, Any], mend: str) -> None:
    for name, entry in files.items():
        path = directory / name
        if not is_file_name(name):
            raise ValueError(f"{description_file(export)}: names {name!r}, outside the directory: do not use it")
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise ValueError(f"{path}: is no file: {mend}")
        try:
            found = size_and_sum(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: is missing: {mend}") from None
        except OSError as error:
            raise unreadable(path, error) from None
        for what, words in (("bytes", "bytes"), ("sha256", "as its SHA-256")):
            if found[what] != entry[what]:
                raise ValueError(f"{path}: has {found[what]} {words}, not {entry[what]}: {mend}")


def _has(directory: Path, stem: str) -> bool:
    return any((directory / f"{stem}{end}").is_file() for end in (".safetensors", ".safetensors.index.json"))


def tensor_places(directory: Path, stem: str = "model") -> dict[str, Path]:
    """Tensor -> its file, of one file STEM.safetensors or several with their index.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One cannot be read, the index is damaged, or names a file outside the directory.
    """
    places: dict[str, Path] = {}
    for file in weight_files(directory, stem):
        try:
            with safe_open(file, framework="pt") as opened:
                held = dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise unreadable(file, error) from None
        if twice := min(places.keys() & held.keys(), default=None):
            raise ValueError(f"{file}: holds {twice}, as {places[twice].name} does: {_AGAIN}")
        places |= held
    return places


def weight_files(directory: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of an exported model.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: The index is damaged, or names a file outside the directory.
    """
    single, index = f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
    names = [single]
    if not (directory / single).is_file() and index.is_file():
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(map(str, places.values())))
        except OSError as error:
            raise unreadable(index, error) from None
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise ValueError(f"{index}: is not an index of weights: {_AGAIN}") from None
    for name in names:
        if not is_file_name(name):
            raise ValueError(f"{index}: names {name!r}, outside the directory: do not use this model")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: holds no {name}: {_NO_EXPORT}")
    return [directory / name for name in names]


def fill(
    model: Any,
    tied: Mapping[str, str],
    found: Iterable[tuple[str, StoredTensor]],
    where: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Gives a model that was made without numbers its weights, as they are and where they are.

    Args:
        model: Made on the meta device.
        tied: Second name of a parameter -> its first, as its configuration has them.
        found: Name and stored tensor of each parameter.
        where: Names the weights in errors.
        device: Where to put them.

    Raises:
        ValueError: A tensor has another shape; and what reading them raises.
    """
    tensors = {}
    for name, stored in found:
        tensors[name] = stored[...].to(device)
        if tensors[name].dtype not in _NUMBERS:
            raise ValueError(f"{where}: {name} is of {tensors[name].dtype}: {_AGAIN}")
    tensors |= {alias: tensors[owner] for alias, owner in tied.items()}
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ValueError(f"{where}: does not fit {description_file(where.parent).name}: {lines[0]}") from None
    for alias, owner in tied.items():
        part, _, name = alias.rpartition(".")
        setattr(model.get_submodule(part), name, model.get_parameter(owner))
