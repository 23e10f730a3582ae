# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Readers for `records.py` that keep to bounded memory: long texts, Parquet and image files."""

import codecs
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.errors import UserError

PART_BYTES = 8 << 20  # a longer text is read, tokenized and written in parts
_IDX_UNSIGNED_BYTE = 8
_PARQUET_ROWS = 256
_HEAD_BYTES = 1 << 16
_ZEROS = 8  # a text may hold some; from so many on, where they are a quarter of it, they are half of other characters
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF16_MEND = "UTF-16, which iconv -f UTF-16 -t UTF-8 converts"


class NotText(ValueError):
    """A file that was taken for text is none; the message tells why, and where."""


def text_parts(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """The text of a UTF-8 file in parts of about `PART_BYTES`, each with whether it is the last.

    Raises:
        NotText: It is not UTF-8, or UTF-16 whose every other byte is 0.
    """
    decoder, position, block = codecs.getincrementaldecoder("utf-8")(), 0, stream.read(PART_BYTES)
    head = block[:_HEAD_BYTES]
    if head.startswith(UTF16_MARKS):
        raise NotText(f"not UTF-8 at byte 0: {UTF16_MEND}")
    zeros = head.count(0)
    if zeros >= _ZEROS and 4 * zeros >= len(head):
        raise NotText(f"{zeros} of the first {len(head)} bytes are 0: no text, or {UTF16_MEND}")
    while True:
        following = stream.read(PART_BYTES) if len(block) == PART_BYTES else b""
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not following)
        except UnicodeDecodeError as error:
            at = position - pending + error.start
            raise NotText(f"not UTF-8 at byte {at}; convert the file to UTF-8") from None
        yield text, not following
        if not following:
            return
        position, block = position + len(block), following


def parquet_rows(
    path: Path, shown: str, text_key: str, id_key: str | None, weights_key: str | None = None
) -> Iterator[tuple[int, str | None, Any]]:
    """(number, id if there is one, bytes of the text or None for null) of each row; a group of rows is in memory.

    Text comes as bytes, because Parquet itself does not hold its strings to be UTF-8, and files that older programs
    wrote have columns of bytes.

    Args:
        path: Where the file is.
        shown: Names it in errors.
        text_key: Column of the texts.
        id_key: Column of the ids; None: `id`, if there is one.
        weights_key: Name of the loss weights, which are read from JSON alone.

    Raises:
        UserError: pyarrow is not installed, the file is not Parquet, has no such columns, or has one of loss weights.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"source {shown}: reading Parquet needs the package pyarrow; pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for key, option in ((text_key, "--text-key"), (id_key or text_key, "--id-key")):
                if key not in names:
                    raise UserError(
                        f'source {shown}: has no column "{key}" (its columns are {", ".join(names)}); '
                        f"{option} names another"
                    )
                if names.count(key) > 1:
                    raise UserError(f'source {shown}: has {names.count(key)} columns "{key}"; rename one of them')
            if weights_key in names:
                raise UserError(
                    f'source {shown}: its column "{weights_key}" cannot be read, only JSON lines have loss weights; '
                    "write the rows as JSON lines, or leave the column out"
                )
            id_key = id_key or ("id" if "id" in names and text_key != "id" else None)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list({text_key, id_key or text_key})):
                texts = _as_bytes(pyarrow, batch.column(text_key))
                if texts is None:
                    held = batch.column(text_key).type
                    raise UserError(
                        f'source {shown}: its column "{text_key}" holds {held}, not text; --text-key names another'
                    )
                ids = _ids(pyarrow, batch.column(id_key)) if id_key else [None] * len(texts)
                for identifier, text in zip(ids, texts, strict=True):
                    yield number, identifier, text
                    number += 1
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"source {shown}: not a sound Parquet file ({reason}); fetch the file again") from None


def _as_bytes(pyarrow: Any, column: Any) -> list[bytes | None] | None:
    """The values of a column of strings, or of bytes; None for a column of something else."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid):
        return None
    return values


def _ids(pyarrow: Any, column: Any) -> list[str | None]:
    values = _as_bytes(pyarrow, column)
    if values is None:
        return [None if value is None else str(value) for value in column.to_pylist()]
    return [None if value is None else value.decode("utf-8", errors="replace") for value in values]


def image_documents(stream: BinaryIO, where: str) -> Iterator[bytes]:
    """The images of an idx file, a byte a pixel, row by row.

    The format: two zero bytes, the type of a value, the number of dimensions, each dimension as a big-endian uint32,
    then the values (as published with the MNIST database).

    Raises:
        UserError: It is not an idx file of images of bytes, or ends too early.
    """
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _IDX_UNSIGNED_BYTE:
        raise UserError(f"source {where}: not an idx file of bytes; give images in the format of the MNIST files")
    if head[3] < 2:
        raise UserError(f"source {where}: an idx file with one number an entry holds labels; give the images")
    sizes = stream.read(4 * head[3])
    dimensions = [int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4)]
    pixels = math.prod(dimensions[1:])
    for number in range(dimensions[0] if len(sizes) == 4 * head[3] else 1):
        image = stream.read(pixels)
        if len(image) < pixels or len(sizes) < 4 * head[3]:
            raise UserError(f"source {where}: ends in image {number}; fetch the file again")
        yield image
