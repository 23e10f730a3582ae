# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A value as it was written, which becomes one of text, number, truth value or nothing only when it is known what is
asked for: a directory named 010, 2026-11-26 or no stays a text, and a text of digits is never a number by accident.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH = {
    form: value
    for word, value in (("true", True), ("yes", True), ("on", True), ("false", False), ("no", False), ("off", False))
    for form in (word, word.title(), word.upper())
}
# YAML 1.1 but for three of its surprises: a leading zero makes no octal number, 1:30 is no number of base 60, and
# 1e-4 is a number without a point.
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_OTHER_BASE = re.compile(r"[-+]?0(x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
LARGEST = 2**63 - 1

Where = tuple[str | int, ...]
"""The way to a value: keys, and numbers of list items."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A scalar of a file or of the command line.

    Attributes:
        text: What was written, without its quotes.
        source: Where: a file, or an option such as --seed.
        quoted: It was written in quotes, so that it is a text wherever it stands.
    """

    text: str
    source: str
    quoted: bool = False


class Fault(ValueError):
    """A value that is wrong whatever is asked for; its words say why."""


def settle(value: Any, asked: Any, faults: list[tuple[Where, str]], place: Where = ()) -> Any:
    """Plain values for written ones.

    Args:
        value: Dictionaries and lists of `Written`; plain values are left, but numbers must be finite.
        asked: The annotation of what is asked for there; None: it is not known.
        faults: Receives (place, words) of what cannot be a value.
        place: Where it stands.
    """
    kinds = _kinds(asked)
    asks_section = kinds and all(_is_section(kind) for kind in kinds if kind is not NoneType)
    if isinstance(value, Written) and value.text in _NOTHING and not value.quoted and asks_section:
        return None if NoneType in kinds else {}  # a section with nothing under it
    if isinstance(value, dict):
        fields = _fields(kinds)
        return {
            key: settle(each, fields.get(key, fields.get(None)), faults, (*place, key)) for key, each in value.items()
        }
    if isinstance(value, list):
        item = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), None)
        return [settle(each, item, faults, (*place, number)) for number, each in enumerate(value)]
    try:
        return _scalar(value, kinds) if isinstance(value, Written) else _finite(value)
    except Fault as fault:
        faults.append((place, str(fault)))
        return None


def _scalar(written: Written, kinds: list[Any]) -> Any:
    text = written.text
    if written.quoted or (str in kinds and not (text in _NOTHING and NoneType in kinds)):
        return text
    found = number(text)
    # A truth value is no number: `max_steps: yes` is not 1.
    return text if isinstance(found, bool) and kinds and bool not in kinds else found


def number(text: str) -> Any:
    """The number, truth value or nothing that a text stands for; the text where it is none of them.

    Raises:
        Fault: A number that a computer's numbers cannot hold.
    """
    if text in _NOTHING:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _DECIMAL.fullmatch(text):
        # Python refuses to read thousands of digits, which are too many in any case.
        return _finite(int(text.replace("_", ""))) if len(text) < 100 else _finite(math.inf)
    if _OTHER_BASE.fullmatch(text) and len(text) < 100:
        return _finite(int(text.replace("_", ""), 0))
    if _NOT_FINITE.fullmatch(text):
        return _finite(math.inf)
    if _FLOAT.fullmatch(text):
        found = float(text.replace("_", ""))
        if found == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            raise Fault(f"is {text}, which is too small for a number: write 0 or a larger one")
        if math.isinf(found):
            raise Fault(f"is {_short(text)}, which is too large for a number: write a smaller one")
        return found
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise Fault("is not a finite number: write one that is")
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise Fault(f"is {_short(str(value))}, which is too large for a number: write at most {LARGEST}")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kinds(asked: Any) -> list[Any]:
    """What an annotation allows, each by itself: `str | list[int] | None` is text, a list, or nothing."""
    origin = get_origin(asked)
    if asked in (None, Any):
        return []
    if origin is Annotated:
        return _kinds(get_args(asked)[0])
    if origin in (Union, UnionType):
        return [kind for each in get_args(asked) for kind in _kinds(each)]
    if origin is Literal:
        return [type(each) for each in get_args(asked)]
    return [asked]


def _is_section(kind: Any) -> bool:
    return get_origin(kind) is dict or _is_model(kind) or dataclasses.is_dataclass(kind)


def _is_model(kind: Any) -> bool:
    return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(kinds: list[Any]) -> dict[Any, Any]:
    """Annotation by name of what may stand in a dictionary; under None: by any other name."""
    for kind in kinds:
        if get_origin(kind) is dict:
            return {None: get_args(kind)[1]}
        if _is_model(kind):
            return {name: field.annotation for name, field in kind.model_fields.items()}
        if dataclasses.is_dataclass(kind):
            return get_type_hints(kind, include_extras=True)
    return {}


def leaves(value: Any, place: Where = ()) -> Iterator[tuple[Where, Written]]:
    """(place, scalar) of everything that was written."""
    if isinstance(value, Written):
        yield place, value
    elif isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*place, key))
