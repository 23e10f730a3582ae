# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How ids are stored in files that others wrote: whole numbers of 1 to 8 bytes, little-endian.

Ids are never negative, so a signed type is read as the unsigned one of its size; what is negative comes out above every
vocabulary and is refused. A file that does not say its type is read in the widest one that gives ids of the vocabulary:
in a narrower one most ids would be 0, in a wider one most would be far above the vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_pipeline.errors import UserError

TYPES = {
    "uint8": "<u1",
    "uint16": "<u2",
    "int16": "<u2",
    "uint32": "<u4",
    "int32": "<u4",
    "uint64": "<u8",
    "int64": "<u8",
}
_UNTYPED = ("uint64", "uint32", "uint16")  # bytes are never guessed: they are ids of every vocabulary
_ENOUGH_BYTES = 1 << 20


def stored_as(name: str, where: str) -> np.dtype[Any]:
    """The unsigned little-endian type in which ids of a type are read.

    Raises:
        UserError: It is not a type of whole numbers.
    """
    if name not in TYPES:
        raise UserError(f"{where} is {name}, which holds no ids; they are {', '.join(TYPES)}")
    return np.dtype(TYPES[name])


def type_of(contents: Iterable[bytes], ids: int, where: str) -> str:
    """The type of numbers whose file does not tell it, by the vocabulary.

    Args:
        contents: What was stored, one document or more at a time; no more is read than is needed.
        ids: Ids of the vocabulary that text has.
        where: Names the file in errors.

    Raises:
        UserError: No type gives ids of the vocabulary, or all of them do.
    """
    fitting, seen, told = list(_UNTYPED), 0, False
    for content in contents:
        fitting = [name for name in fitting if _fits(content, np.dtype(TYPES[name]), ids)]
        seen, told = seen + len(content), told or any(content)
        if not fitting:
            raise UserError(
                f"{where} does not say the type of its ids, and in none of {', '.join(_UNTYPED)} are they below "
                f"{ids:,}; give the tokenizer that made the tokens, or their type with --dtype"
            )
        if told and (len(fitting) == 1 or seen > _ENOUGH_BYTES):
            break
    if not told:
        raise UserError(f"{where} does not say the type of its ids, and its tokens do not tell it: give --dtype")
    return fitting[0]


def shown(value: int, dtype: np.dtype[Any]) -> int:
    """An id as whoever stored it meant it: a number above half of its type's range was negative."""
    return value - (1 << 8 * dtype.itemsize) if value >> (8 * dtype.itemsize - 1) else value


def _fits(content: bytes, dtype: np.dtype[Any], ids: int) -> bool:
    if len(content) % dtype.itemsize:
        return False
    numbers = np.frombuffer(content, dtype)
    return not len(numbers) or int(numbers.max()) < ids
