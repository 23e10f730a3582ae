# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A column of one document, its tokens or their loss weights, on its way into a shard: counted and summed as it comes.

What is large lies on disk.
"""

import shutil
import tempfile
import zlib
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.manifest import CHUNK_BYTES

_IN_MEMORY_BYTES = 32 << 20


class Payload:
    """Collects one number a token, as they are stored.

    Args:
        dtype: Little-endian unsigned integer of a stored number.

    Attributes:
        tokens: Tokens so far.
        size: Bytes of their numbers.
        text_bytes: Bytes of the text they stand for.
        total: Sum of their numbers.
        checksum: CRC-32 of the bytes.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # `close` closes it
        self._chunks: list[int] = []
        self._chunk_checksum = 0
        self.tokens = self.size = self.text_bytes = self.total = self.checksum = 0

    def append(self, numbers: NDArray[np.unsignedinteger[Any]], text_bytes: int) -> None:
        """Adds the numbers of the next tokens, which stand for `text_bytes` bytes of text."""
        block = memoryview(numbers.astype(self._dtype, copy=False).tobytes())
        self._file.write(block)
        self.checksum = zlib.crc32(block, self.checksum)
        at = 0
        while at < len(block):
            part = block[at : at + CHUNK_BYTES - self.size % CHUNK_BYTES]
            self._chunk_checksum = zlib.crc32(part, self._chunk_checksum)
            self.size += len(part)
            at += len(part)
            if self.size % CHUNK_BYTES == 0:
                self._chunks.append(self._chunk_checksum)
                self._chunk_checksum = 0
        self.tokens += len(numbers)
        self.total += int(numbers.sum(dtype=np.int64))
        self.text_bytes += text_bytes

    def chunk_checksums(self) -> NDArray[np.uint32]:
        """CRC-32 of each chunk of `CHUNK_BYTES`, `[chunks]`; the last one may be shorter."""
        rest = [self._chunk_checksum] if self.size % CHUNK_BYTES else []
        return np.array([*self._chunks, *rest], dtype=np.uint32)

    def open(self) -> IO[bytes]:
        """The bytes from the start; valid until `close`."""
        self._file.seek(0)
        return self._file

    def copy_to(self, target: Any) -> None:
        """Writes all bytes to anything with `write`."""
        shutil.copyfileobj(self.open(), target, 1 << 20)

    def close(self) -> None:
        """Frees the memory or the file."""
        self._file.close()

    def __enter__(self) -> "Payload":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
