# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reads tokens of a document from its shard, without state: any range, in any order, from any process."""

import mmap
import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.index import DocumentIndex


class Store(Protocol):
    """Where a stream gets its tokens from; local shards now, other places by the same call."""

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """Tokens `start .. start + length` of a document, `[length]`, unsigned integers."""


class MmapStore:
    """Local shards, mapped into memory.

    A shard's size is compared with the manifest before it is mapped (touching pages beyond the end of a truncated
    file would kill the process), and a document's checksum is verified when it is first read.
    """

    def __init__(self, index: DocumentIndex) -> None:
        self._index = index
        self._maps: dict[int, mmap.mmap] = {}
        self._verified = np.zeros(len(index), dtype=np.bool_)

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """Tokens `start .. start + length` of a document, `[length]`, uint16 or uint32, read-only.

        The array is a view of the mapped file and keeps it open.

        Raises:
            UserError: The shard is missing or has another size than the manifest says, or the document's tokens
                do not have their checksum; names the shard and the document.
            ValueError: The range is not within the document.
        """
        index = self._index
        tokens = int(index.lengths[document])
        if start < 0 or length < 0 or start + length > tokens:
            raise ValueError(f"tokens {start}..{start + length} are not within document {document} of {tokens} tokens")
        shard = self._map(int(index.shards[document]))
        offset, dtype = int(index.offsets[document]), index.token_dtype
        if not self._verified[document]:
            whole = memoryview(shard)[offset : offset + dtype.itemsize * tokens]
            if zlib.crc32(whole) != int(index.checksums[document]):
                raise UserError(
                    f"{index.shard_path(int(index.shards[document]))} is damaged: document {document} "
                    f"({index.name(document)}) does not have its checksum; restore the shard or build again",
                    exit_code=1,
                )
            self._verified[document] = True
        return np.frombuffer(shard, dtype, length, offset + dtype.itemsize * start)

    def _map(self, shard: int) -> mmap.mmap:
        mapped = self._maps.get(shard)
        if mapped is None:
            path, expected = self._index.shard_path(shard), self._index.manifest.shards[shard].size_bytes
            try:
                with path.open("rb") as file:
                    size = file.seek(0, 2)
                    if size != expected:
                        raise UserError(
                            f"{path} has {size} bytes, its manifest says {expected}: the shard is truncated or was "
                            "changed; restore it or build again",
                            exit_code=1,
                        )
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError:
                raise UserError(f"{path} is missing; restore the shard or build again", exit_code=1) from None
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror or error})", exit_code=1) from None
            self._maps[shard] = mapped
        return mapped
