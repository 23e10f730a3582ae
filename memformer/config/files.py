# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where the values of a configuration come from: YAML files that extend each other, and words of a command line.

What the values mean, and which are allowed, is in config.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, as everyone who writes it expects."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a YAML file, over those of the files it extends, under the overrides; none is checked.

    Raises:
        UserError: A file that is missing or no mapping, or a malformed override.
    """
    values = _read(path, ())
    _merge(values, _parse_overrides(overrides))
    return values


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a YAML configuration") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, not sections: start it with 'run_dir: ...'")
    bases = values.pop("extends", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: extends is {bases!r}: make it a list of YAML files")
    merged: dict[str, Any] = {}
    for base in bases:
        file = (path.parent / base).resolve()
        if file in seen or file == path.resolve():
            raise UserError(f"{path}: extends {base}, which extends this file in turn: remove one of them")
        _merge(merged, _read(file, (*seen, path.resolve())))
    _merge(merged, values)
    return merged


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, text = word.partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise UserError(f"{word!r} is not a setting: write --section.field VALUE")
        if not equals:
            if not remaining:
                raise UserError(f"{name} has no value: write {name} VALUE")
            text = remaining.pop(0)
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise UserError(f"{name} {text!r}: is not a YAML value: put it in quotes") from None
        for part in reversed(name[2:].split(".")):
            value = {part: value}
        _merge(merged, value)
    return merged
