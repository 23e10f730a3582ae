# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The schema in other forms: its settings by their dotted names, and as JSON Schema, by which editors check YAML files.

Everything is read from what pydantic says of the classes in schema.py.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from memformer.config.builtin import PREFIX, builtin_names
from memformer.config.faults import ITEM
from memformer.models.registry import DEFAULT

_DIALECT = "http://json-schema.org/draft-07/schema#"
"""What yaml-language-server and most editors read; nothing newer is used."""
_FAMILY = (
    "Kind of model: memformer; backbone, a pretrained one with a memory; or that of an installed package. It decides "
    "which other settings of this section there are."
)
_EXTENDS = (
    "Files whose settings come first, in this order, under those of this file: paths relative to it, or builtin:NAME."
)
Json = dict[str, Any]


def settings_of(schema: type[BaseModel], items: bool = False) -> Iterator[tuple[str, Json]]:
    """(dotted name, JSON schema) of every setting that is not a section.

    Args:
        schema: Of a family, as `schema_of` gives it.
        items: Also of sections in lists, with `ITEM` in the place of their number.
    """
    whole = schema.model_json_schema()

    def walk(section: Json, prefix: str) -> Iterator[tuple[str, Json]]:
        for name, field in section["properties"].items():
            if "$ref" in field:
                if name == "model" and not prefix:
                    yield "model.family", {"default": DEFAULT, "description": _FAMILY}
                yield from walk(_definition(whole, field), f"{prefix}{name}.")
            else:
                # What a factory makes is not in the schema: the settings that have one are empty mappings.
                told = {**field, "description": " ".join(field.get("description", "").split())}
                if name not in section.get("required", ()):
                    told.setdefault("default", {})
                yield f"{prefix}{name}", told
                for each in field.get("anyOf", ()):
                    item = each.get("items", {})
                    if "$ref" in each:  # a section that may be left out
                        yield from walk(_definition(whole, each), f"{prefix}{name}.")
                    elif "$ref" in item and items:
                        yield from walk(_definition(whole, item), f"{prefix}{name}.{ITEM}.")

    return walk(whole, "")


def file_schema(schema: type[BaseModel], family: str) -> Json:
    """What a configuration file of a family may hold, as JSON Schema (draft 7).

    A file may leave out what one that it extends, or the command line, says: nothing is required but in the items of
    lists, which come from one file whole.

    Args:
        schema: Of the family, as `schema_of` gives it.
        family: Its name.
    """
    whole = schema.model_json_schema()
    in_lists = {reference for reference, listed in _references(whole, False) if listed}
    for section in (whole, *(each for name, each in whole["$defs"].items() if name not in in_lists)):
        section.pop("required", None)
    named: Json = {"enum": [family], "description": _FAMILY}
    if family == DEFAULT:
        named["default"] = DEFAULT
    model = _definition(whole, whole["properties"]["model"])
    model["properties"] = {"family": named, **model["properties"]}
    # The names that there are come first, which editors offer.
    file = {"anyOf": [{"enum": [PREFIX + name for name in builtin_names()]}, {"type": "string"}]}
    extends = {"anyOf": [*file["anyOf"], {"type": "array", "items": file}], "description": _EXTENDS}
    whole["properties"] = {"extends": extends, **whole["properties"]}
    return {"$schema": _DIALECT, **whole, "title": f"Memformer configuration, family {family}"}


def _definition(whole: Json, reference: Json) -> Json:
    definition: Json = whole["$defs"][reference["$ref"].rsplit("/", 1)[-1]]
    return definition


def _references(node: Any, listed: bool) -> Iterator[tuple[str, bool]]:
    """(name of a definition, whether it is that of the items of a list) wherever one is meant."""
    if isinstance(node, dict):
        for key, each in node.items():
            if key == "$ref":
                yield each.rsplit("/", 1)[-1], listed
            else:
                yield from _references(each, key == "items")
    elif isinstance(node, list):
        for each in node:
            yield from _references(each, False)
