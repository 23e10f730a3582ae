# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes documents into shards, and tells where each document's tokens lie.

A storage format is one class with the methods of `ShardWriter`, entered in `WRITERS`. Readers never parse a shard:
a format need only put the raw little-endian tokens of a document side by side at a byte offset that is recorded.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from data_pipeline.tokenizer import TokenIds

TAR_BLOCK = 512  # member data in a tar file begins and ends at multiples of this many bytes


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one shard."""

    name: str
    size_bytes: int
    sha256: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Placement:
    """Where a document was put: shard number, byte offset of its first token, CRC-32 of its tokens' bytes."""

    shard: int
    offset: int
    checksum: int


class ShardWriter(Protocol):
    """Writes documents in order, cutting shards by size."""

    def add(self, number: int, name: str, text_bytes: int, tokens: TokenIds) -> Placement:
        """Appends document `number`, whose text had `text_bytes` bytes of UTF-8."""

    def close(self) -> list[ShardInfo]:
        """Finishes the last shard, with all bytes on disk, and tells what was written."""


class WebDatasetWriter:
    """Uncompressed tar shards that `webdataset` reads: `KEY.json` (name, tokens, bytes, crc32) and `KEY.tokens`.

    The bytes of a shard depend on its documents alone: time stamps are zero, which also keeps `webdataset` from
    adding extended headers.

    Args:
        directory: Where the shards go.
        dtype: Little-endian unsigned integer of a stored token.
        shard_bytes: A shard is closed before the document that would make it larger; a document larger than this
            gets a shard of its own.
    """

    def __init__(self, directory: Path, dtype: np.dtype[Any], shard_bytes: int) -> None:
        self._directory = directory
        self._dtype = dtype
        self._shard_bytes = shard_bytes
        self._finished: list[ShardInfo] = []
        self._file: _HashedFile | None = None

    def add(self, number: int, name: str, text_bytes: int, tokens: TokenIds) -> Placement:
        """Appends a document; begins a new shard where it would not fit."""
        payload = tokens.astype(self._dtype, copy=False).tobytes()
        checksum = zlib.crc32(payload)
        record = {"name": name, "tokens": len(tokens), "bytes": text_bytes, "crc32": checksum}
        header = json.dumps(record, ensure_ascii=False).encode("utf-8")
        size = 2 * TAR_BLOCK + _padded(len(header)) + _padded(len(payload))
        if self._file is not None and self._tar.tarstream.offset + size > self._shard_bytes:
            self._finish()
        if self._file is None:
            self._start()
        self._tar.write({"__key__": f"{number:09d}", "json": header, "tokens": payload})
        # Counted back from the end of the member, so that it holds whatever headers went before it.
        offset = self._tar.tarstream.offset - _padded(len(payload))
        self._documents += 1
        self._tokens += len(tokens)
        return Placement(len(self._finished), offset, checksum)

    def close(self) -> list[ShardInfo]:
        """Finishes the last shard and tells what was written."""
        if self._file is not None:
            self._finish()
        return self._finished

    def _start(self) -> None:
        from webdataset.writer import TarWriter

        self._name = f"shard-{len(self._finished):06d}.tar"
        self._file = _HashedFile((self._directory / self._name).open("wb"))
        self._tar = TarWriter(self._file, encoder=False, mtime=0)
        self._documents = self._tokens = 0

    def _finish(self) -> None:
        assert self._file is not None
        self._tar.close()
        size, sha256 = self._file.close()
        self._finished.append(ShardInfo(self._name, size, sha256, self._documents, self._tokens))
        self._file = None


# Each is called with the directory, the dtype of a stored token, and the largest size of a shard in bytes.
WRITERS: dict[str, Callable[[Path, np.dtype[Any], int], ShardWriter]] = {"webdataset": WebDatasetWriter}


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK


class _HashedFile:
    """A file that is hashed while it is written, so that no shard need be read again for its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, block: bytes) -> int:
        self._hash.update(block)
        self._size += len(block)
        return self._file.write(block)

    def close(self) -> tuple[int, str]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._size, self._hash.hexdigest()
