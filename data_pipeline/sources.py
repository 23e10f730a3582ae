# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Finds and reads the documents that a data set is built from.

A source is a file or a directory. A directory is searched recursively for `.txt`, `.md` and `.jsonl` files and
their `.gz` forms, in the order of their relative paths; names that begin with a dot are left out. A `.jsonl` file
holds one document a line, `{"text": ..., "id": ...}` (`id` may be absent); any other file is one document, taken
byte for byte: line ends and a byte order mark stay as they are.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from data_pipeline.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class SourceFile:
    """One file to read: where it is, and its name relative to the source that led to it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Document:
    """One document: its text, and a name for people (relative path, or `id` of a JSON line), not always unique."""

    name: str
    text: str


def find_files(sources: Sequence[str | Path]) -> list[SourceFile]:
    """The files that these sources stand for, in the order in which they will be read.

    Raises:
        UserError: A source does not exist, holds no text, or leads to a file that another source led to.
    """
    if not sources:
        raise UserError("no source given; name text files, JSONL files or directories")
    files: list[SourceFile] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = [SourceFile(path, _printable(path.relative_to(source).as_posix())) for path in _walk(source)]
            if not found:
                raise UserError(f"source {source}: no {', '.join(TEXT_SUFFIXES)} file (or .gz) in this directory")
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


def read_documents(files: Sequence[SourceFile]) -> Iterator[Document]:
    """Reads every document, one file at a time; a document without text is yielded too.

    Raises:
        UserError: A file cannot be read, is not UTF-8, or has a bad JSON line; names the file and the place.
    """
    for file in files:
        try:
            with _open(file.path) as stream:
                if _suffix(file.path) == ".jsonl":
                    yield from _json_lines(file, stream)
                else:
                    yield Document(file.name, _decode(stream.read(), str(file.path)))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"source {file.path}: damaged gzip file ({error})") from None
        except OSError as error:
            raise UserError(f"source {file.path}: cannot be read ({error.strerror or error})") from None


def _walk(directory: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(directory):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and _suffix(path) in TEXT_SUFFIXES and path.is_file():
                yield path


def _suffix(path: Path) -> str:
    """The suffix that tells the kind of text, looked for under a `.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"source {where}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None


def _json_lines(file: SourceFile, stream: BinaryIO) -> Iterator[Document]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        where = f"{file.path} line {number}"
        try:
            record = json.loads(_decode(line, where))
        except json.JSONDecodeError as error:
            raise UserError(f"source {where}: not JSON ({error.msg} at column {error.colno})") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f'source {where}: needs a string under "text", as in {{"text": "...", "id": "..."}}')
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f'source {where}: "text" has half a surrogate pair at character {error.start}') from None
        yield Document(_printable(str(record.get("id", f"{file.name}:{number}"))), text)


def _printable(name: str) -> str:
    """A name that can be stored as UTF-8, whatever bytes a file's name or escapes an id is made of."""
    return name.encode("utf-8", errors="replace").decode("utf-8")
