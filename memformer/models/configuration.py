# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`ModelConfig`: what the configurations of all families have in common. Imports no torch.

A family's configuration is a frozen dataclass of the standard library that inherits from this class, so that an
exported model needs torch and safetensors alone; the training configuration validates the same class with pydantic.
"""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar

Forgetting = Literal["off", "written", "paper"]
"""How slots forget (`models.memformer.memory.before_normalisation`)."""
FORGETTING: tuple[Forgetting, ...] = ("off", "written", "paper")

LARGEST = 2**31
"""Above every size and id: larger numbers are damage, and would be found as an overflow or by the memory they take."""
MOST_LAYERS = 10_000
"""A model of more is not made to be refused by its weights later: already its empty layers take hours."""
_NAMED = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping",
    types.NoneType: "null",
}  # fmt: skip

Own = TypeVar("Own", bound="ModelConfig")


class ModelConfig:
    """The base of a family's configuration.

    Attributes:
        family: Name of the family, as `model.family` has it.
        stacks: Names of the kinds of layers, the layers of one kind being all alike; planning traces one of each.
            Fields that count them, unless `layer_counts` and `of_layers` say otherwise.
        weightless: Fields that change nothing about the weights, with dots where they lie deeper (`lora.dropout`): with
            others a run may go on, and an export be loaded.
        vocab_size: Token ids V; None: taken from the data set's tokenizer.
        start_token_id: Id of the start token; None: taken from the data set's tokenizer.
        segment_length: Tokens S of a segment; None: taken from data.segment_length.
        dropout: Dropout probability.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    family: ClassVar[str]
    stacks: ClassVar[tuple[str, ...]]
    weightless: ClassVar[frozenset[str]] = frozenset({"dropout", "segment_length"})

    vocab_size: int | None
    start_token_id: int | None
    segment_length: int | None
    dropout: float

    def reading_length(self, given: int | None) -> int:
        """Tokens S of the segments that a text is read in: those given, or those of training.

        Raises:
            ValueError: Neither is known.
        """
        length = given or self.segment_length
        if length is None:
            raise ValueError("segment_length is not in the model's configuration: give it")
        return length

    @property
    def memory_shape(self) -> tuple[int, int]:
        """[K, C] of a lane's memory; K = 0: nothing is carried, segments are independent."""
        raise NotImplementedError

    def layer_counts(self) -> dict[str, int]:
        """Its number of layers of each of `stacks`."""
        return {stack: getattr(self, stack) for stack in self.stacks}

    def advanced_counts(self) -> dict[str, int]:
        """How many layers of each of `stacks` the model's `advance` runs, where it may stop before the last."""
        return self.layer_counts()

    def of_layers(self: Own, counts: Mapping[str, int]) -> Own:
        """The same with so many layers of each of `stacks`."""
        return dataclasses.replace(self, **counts)  # type: ignore[type-var]  # subclasses are dataclasses

    @property
    def adapted(self) -> bool:
        """Whether the model has low-rank adapters."""
        return False

    def summary(self) -> str:
        """Its size in a few words, for the line that a run starts with."""
        raise NotImplementedError

    def rows(self) -> dict[str, str]:
        """Its size as rows of a table, for the card of an export."""
        raise NotImplementedError

    def tied(self) -> Mapping[str, str]:
        """Names of parameters that are another one under a second name -> that one's name; files hold it once."""
        return {}

    def completed(self: Own, vocab_size: int, start_token_id: int, segment_length: int) -> Own:
        """The same with what the data set decides filled in."""
        decided = {"vocab_size": vocab_size, "start_token_id": start_token_id, "segment_length": segment_length}
        return dataclasses.replace(self, **decided)  # type: ignore[type-var]  # subclasses are dataclasses

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: a tuple is a list, so that it equals what was saved of it."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return values

    @classmethod
    def from_dict(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """The inverse of `to_dict`.

        Raises:
            ValueError: An unknown field, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown model field {unknown[0]!r}; the fields are {', '.join(sorted(known))}")
        check_types(cls, values)
        return cls(**values)


def first_difference(
    saved: Mapping[str, Any], here: Mapping[str, Any], ignored: frozenset[str] = frozenset(), within: str = ""
) -> tuple[str, Any, Any] | None:
    """What two models, as `ModelConfig.to_dict` has them, differ in first.

    Args:
        saved: One of them, whole.
        here: The other, or as much of it as is known; what it leaves out is not compared.
        ignored: Names with dots that may differ: `ModelConfig.weightless`.
        within: Stands before every name.

    Returns:
        The name, with dots within sections that both have, and both values; None: nothing.
    """
    for key, value in here.items():
        name, there = f"{within}{key}", saved.get(key)
        if there == value or name in ignored:
            continue
        if not (isinstance(there, Mapping) and isinstance(value, Mapping)):
            return name, there, value
        found = first_difference(there, value, ignored, f"{name}.")
        if found is not None:
            return found
    return None


class SegmentFlops(Protocol):
    """Floating-point operations of one forward of one lane's full segment: matrix products, a multiply-add as 2."""

    @property
    def forward(self) -> int:
        """The whole segment, as a call of the cell computes it."""

    @property
    def advance(self) -> int:
        """The memory's own path, as `advance` computes it; 0 where no memory is written."""

    @property
    def layers(self) -> int:
        """What layer checkpointing computes again."""


def forgetting_of(value: Forgetting | bool, name: str) -> Forgetting:
    """A mode of forgetting, also as the truth value that it once was; a YAML file's `off` is one as well.

    Raises:
        ValueError: It is none; the message names the field and the mend.
    """
    if isinstance(value, bool):
        return "paper" if value else "off"
    require(value in FORGETTING, name, value, "choose off, written or paper")
    return value


def check_types(kind: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Holds values that a file gave to the annotations of a dataclass's fields, as pydantic does for settings.

    A file is edited by hand, and a dataclass takes what it is given: the wrong kind of value would be found where it is
    computed with, in words that name no field, or never.

    Args:
        kind: The dataclass.
        values: By field.
        prefix: Stands before a field's name in errors.

    Raises:
        ValueError: One is of another type, or a number that is not finite or beyond every size.
    """
    for field in dataclasses.fields(kind):
        if field.name in values and not _fits(values[field.name], field.type):
            require(False, prefix + field.name, repr(values[field.name]), f"give {_words(field.type)}")


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, parts[0]) for each in value)
    if kind in (int, float):
        return type(value) in (int, kind) and math.isfinite(value) and abs(value) < LARGEST
    return isinstance(value, types.NoneType if kind is None else origin or kind)


def _words(kind: Any) -> str:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, parts))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_words(parts[0])}"
    return _NAMED.get(typing.get_origin(kind) or kind, "its fields")


def is_file_name(name: str) -> bool:
    """Whether a name that a file gave can be one of a file beside it: no path, and nothing that a line cannot show."""
    return name not in ("", ".", "..") and os.sep not in name and name.isprintable() and len(name.encode()) < 256


def require(holds: bool, name: str, value: object, mend: str) -> None:
    """Refuses a field's value.

    Raises:
        ValueError: It does not hold; the message names the field, the value and the mend.
    """
    if not holds:
        raise ValueError(f"{name} is {value}: {mend}")
