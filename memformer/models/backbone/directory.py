# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A pretrained model's directory, as transformers saves it: config.json, safetensors, tokenizer files. No torch here.

Nothing in these files is executed, and none outside the directory is read.
"""

import json
import os
from pathlib import Path
from typing import Any

from memformer.models.configuration import is_file_name

_OF_THE_FILE = {
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
_MEND = "give a directory that transformers' save_pretrained wrote"


def place(pretrained: str) -> Path:
    """The directory that a setting names; ~ and $VARIABLE stand for what they name."""
    return Path(os.path.expandvars(os.path.expanduser(pretrained)))


def read_config(pretrained: str) -> dict[str, Any]:
    """What config.json says of the model; its start token from the tokenizer's files, where it names none.

    Raises:
        ValueError: There is none, or it cannot be read; the message names the directory and the mend.
    """
    file = place(pretrained) / "config.json"
    values = _json(file, f"pretrained is {pretrained}")
    if not isinstance(values, dict) or "model_type" not in values:
        said = "an export of ours: set init_from to it" if isinstance(values, dict) and "model" in values else _MEND
        raise ValueError(f"pretrained is {pretrained}: its config.json names no model_type: {said}")
    if values.get("bos_token_id") is None and (start := start_token(pretrained)) is not None:
        values["bos_token_id"] = start
    return {name: value for name, value in values.items() if name not in _OF_THE_FILE}


def start_token(pretrained: str) -> int | None:
    """The id of what tokenizer_config.json names as `bos_token`; None where it names none, or no such token is there.

    Raises:
        ValueError: One of the two files is there and cannot be read.
    """
    named, file = place(pretrained) / "tokenizer_config.json", place(pretrained) / "tokenizer.json"
    if not (named.is_file() and file.is_file()):
        return None
    name, tokenizer = (_json(each, f"pretrained is {pretrained}") for each in (named, file))
    try:
        token = name["bos_token"]
        content = token["content"] if isinstance(token, dict) else token
        added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens", [])}
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = {each[0]: number for number, each in enumerate(vocabulary)}
        return int((vocabulary | added)[content])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def weight_places(pretrained: str) -> dict[str, Path] | None:
    """Tensor -> its file, of a model in several files; None where it is in one.

    Raises:
        ValueError: The index is damaged, or names a file that is missing or outside the directory.
    """
    index = place(pretrained) / "model.safetensors.index.json"
    if (place(pretrained) / "model.safetensors").is_file():
        return None
    if not index.is_file():
        raise ValueError(f"pretrained is {pretrained}: holds no model.safetensors and no index of one: {_MEND}")
    values = _json(index, f"pretrained is {pretrained}")
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f"pretrained is {pretrained}: {index.name} is no index of weights: {_MEND}")
    for name in sorted(set(map(str, places.values()))):
        if not (is_file_name(name) and (place(pretrained) / name).is_file()):
            raise ValueError(f"pretrained is {pretrained}: holds no file {name}, which {index.name} names: {_MEND}")
    return {tensor: place(pretrained) / str(name) for tensor, name in places.items()}


def tokenizer_ids(pretrained: str) -> int | None:
    """The number of ids of the directory's tokenizer.json; None where it has none that says."""
    file = place(pretrained) / "tokenizer.json"
    if not file.is_file():
        return None
    values = _json(file, f"pretrained is {pretrained}")
    try:
        vocabulary = values["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return 1 + max([*ids, *(token["id"] for token in values.get("added_tokens", []))])
    except (KeyError, TypeError, ValueError):
        return None


def _json(file: Path, where: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{where}: holds no {file.name}: {_MEND}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"{where}: {file.name} cannot be read ({reason}): {_MEND}") from None
