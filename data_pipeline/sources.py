# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Finds and reads the documents that a data set is built from.

A source is a file or a directory. A directory is searched recursively for the kinds of files below, in the order of
their relative paths; names that begin with a dot are left out.

- `.jsonl`: a document a line, `{"text": ..., "id": ...}` (`id` may be absent);
- `.parquet`: a document a row, the columns `text` and, if it is there, `id`;
- `.idx`, `.idx3-ubyte` and the like (the format of the MNIST images): a document an image, a token a byte;
- `.txt`, `.md` and any other file named as a source: one document, taken byte for byte: line ends and a byte order
  mark stay as they are.

All but Parquet may be packed by gzip (`.gz`) or zstd (`.zst`).
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from data_pipeline.errors import UserError
from data_pipeline.large_files import image_documents, open_zstd, parquet_rows, text_parts, zstd_errors

TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
_IMAGES = re.compile(r"[.-]idx([2-9](-ubyte)?)?$")
_PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class SourceFile:
    """One file to read: where it is, and its name relative to the source that led to it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Part:
    """A document, or a part of a long one: parts of a document follow each other, and the last says so.

    `name` is for people (relative path, or `id`) and not always unique; `content` is text, or raw bytes of an image.
    """

    name: str
    content: str | bytes
    last: bool = True


def find_files(sources: Sequence[str | Path]) -> list[SourceFile]:
    """The files that these sources stand for, in the order in which they will be read.

    Raises:
        UserError: A source does not exist, holds no text, or leads to a file that another source led to.
    """
    if not sources:
        raise UserError("no source given; name text, JSONL, Parquet or image files, or directories")
    files: list[SourceFile] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = [SourceFile(path, _printable(path.relative_to(source).as_posix())) for path in _walk(source)]
            if not found:
                raise UserError(
                    f"source {source}: no {', '.join(TEXT_SUFFIXES)} or idx file (or .gz, .zst) in this directory"
                )
            files += sorted(found, key=lambda file: file.name)
        elif source.is_file():
            files.append(SourceFile(source, _printable(source.name)))
        else:
            raise UserError(f"source {source}: no such file or directory")
    seen: set[Path] = set()
    for file in files:
        resolved = file.path.resolve()
        if resolved in seen:
            raise UserError(f"source {file.path} is given twice; name each file once")
        seen.add(resolved)
    return files


def read_parts(files: Sequence[SourceFile]) -> Iterator[Part]:
    """Reads every document, one file at a time and long texts part by part; an empty document is yielded too.

    Raises:
        UserError: A file cannot be read, is not UTF-8, or has a bad line or row; names the file and the place.
    """
    for file in files:
        try:
            if _inner_name(file.path).endswith(".parquet"):
                yield from (Part(_printable(name), text) for name, text in parquet_rows(file.path, file.name))
                continue
            with _open(file.path) as stream:
                yield from _read(file, stream)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"source {file.path}: damaged gzip file ({error})") from None
        except zstd_errors() as error:
            raise UserError(f"source {file.path}: damaged zstd file ({error})") from None
        except OSError as error:
            raise UserError(f"source {file.path}: cannot be read ({error.strerror or error})") from None


def _read(file: SourceFile, stream: BinaryIO) -> Iterator[Part]:
    name = _inner_name(file.path)
    if name.endswith(".jsonl"):
        yield from _json_lines(file, stream)
    elif _IMAGES.search(name) or name.endswith("-idx1-ubyte"):
        images = image_documents(stream, str(file.path))
        yield from (Part(f"{file.name}:{number}", pixels) for number, pixels in enumerate(images))
    else:
        for text, last in text_parts(stream, str(file.path)):
            yield Part(file.name, text, last)


def _walk(directory: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(directory):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            path = Path(root, name)
            inner = _inner_name(path)
            wanted = inner.endswith(TEXT_SUFFIXES) or _IMAGES.search(inner) is not None
            if wanted and not name.startswith(".") and path.is_file():
                yield path


def _inner_name(path: Path) -> str:
    """The name that tells the kind of file, without a `.gz` or `.zst`."""
    name = path.name.lower()
    return name[: -len(path.suffix)] if path.suffix.lower() in _PACKED else name


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open_zstd(path) if suffix == ".zst" else path.open("rb")


def _json_lines(file: SourceFile, stream: BinaryIO) -> Iterator[Part]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        where = f"{file.path} line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"source {where}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
        except json.JSONDecodeError as error:
            raise UserError(f"source {where}: not JSON ({error.msg} at column {error.colno})") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f'source {where}: needs a string under "text", as in {{"text": "...", "id": "..."}}')
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f'source {where}: "text" has half a surrogate pair at character {error.start}') from None
        yield Part(_printable(str(record.get("id", f"{file.name}:{number}"))), text)


def _printable(name: str) -> str:
    """A name that can be stored as UTF-8, whatever bytes a file's name or escapes an id is made of."""
    return name.encode("utf-8", errors="replace").decode("utf-8")
