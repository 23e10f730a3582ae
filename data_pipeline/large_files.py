# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Readers for `sources.py` that keep to bounded memory: long texts, zstd, Parquet and image files."""

import codecs
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipeline.errors import UserError

PART_BYTES = 8 << 20  # a longer text is read, tokenized and written in parts
_IDX_UNSIGNED_BYTE = 8
_PARQUET_ROWS = 256


def text_parts(stream: BinaryIO, where: str) -> Iterator[tuple[str, bool]]:
    """The text of a UTF-8 file in parts of about `PART_BYTES`, each with whether it is the last.

    Raises:
        UserError: It is not UTF-8.
    """
    decoder, position, block = codecs.getincrementaldecoder("utf-8")(), 0, stream.read(PART_BYTES)
    while True:
        following = stream.read(PART_BYTES) if len(block) == PART_BYTES else b""
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not following)
        except UnicodeDecodeError as error:
            at = position - pending + error.start
            raise UserError(f"source {where}: not UTF-8 at byte {at}; convert the file to UTF-8") from None
        yield text, not following
        if not following:
            return
        position, block = position + len(block), following


def open_zstd(path: Path) -> BinaryIO:
    """A `.zst` file as a stream of what it holds.

    Raises:
        UserError: The package `zstandard` is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise UserError(f"source {path}: reading .zst needs the package zstandard; pip install zstandard") from None
    packed = path.open("rb")
    unpacked = zstandard.ZstdDecompressor().stream_reader(packed, closefd=True, read_across_frames=True)
    return cast(BinaryIO, io.BufferedReader(unpacked, 1 << 20))


def zstd_errors() -> tuple[type[Exception], ...]:
    """What a damaged `.zst` file raises; nothing where the package is not installed."""
    try:
        import zstandard
    except ImportError:
        return ()
    return (zstandard.ZstdError,)


def parquet_rows(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each row of a Parquet file, a group of rows in memory at a time.

    Raises:
        UserError: pyarrow is not installed, the file is not Parquet, or has no text in the column `text`.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"source {path}: reading Parquet needs the package pyarrow; pip install pyarrow") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if "text" not in names:
            raise UserError(f'source {path}: has no column "text" (its columns are {", ".join(names)})')
        columns = ["text", *(["id"] if "id" in names else [])]
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
            rows: dict[str, list[Any]] = batch.to_pydict()
            for row, text in enumerate(rows["text"]):
                if not isinstance(text, str):
                    raise UserError(f'source {path} row {number}: needs a string in the column "text"')
                yield str(rows["id"][row]) if "id" in rows else f"{name}:{number}", text
                number += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"source {path}: not a sound Parquet file ({str(error).splitlines()[0]})") from None


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
