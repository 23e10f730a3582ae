# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Opens source files as what they hold when unpacked: gzip, bzip2, xz and zstd, known by their first bytes.

The first bytes decide and not the name, since a pipe has none, and no text and no Parquet file begins like a packed
one. A name that says `.gz` on a file that is none is an error, not a text: something has gone wrong with that file.
"""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipeline.errors import UserError

PACKED_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",  # and a digit, and the first block's mark
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ZSTD_SKIPPED = b"\x2a\x4d\x18"  # and before it a byte from 0x50 to 0x5f
_BZIP2_BLOCK = b"1AY&SY"
_ZSTD_BLOCK_BYTES = 1 << 14  # packed bytes at a time: what they unpack to is held in memory
_ZSTD_LONGEST_WINDOW = 1 << 31  # `zstd --long=31`, the most that the library can do


def packing_of(path: Path) -> str | None:
    """How a file is packed, by its content or its name; None where it is not."""
    with path.open("rb") as file:
        head = file.read(10).ljust(1)
    if head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5:  # pzstd begins with a frame of its own
        return "zstd"
    for magic, packing in _MAGIC.items():
        if head.startswith(magic) and (packing != "bzip2" or head[4:] == _BZIP2_BLOCK):
            return packing
    return PACKED_SUFFIXES.get(path.suffix.lower())


def open_unpacked(path: Path) -> BinaryIO:
    """A file as a stream of what it holds when unpacked.

    Raises:
        EOFError: By its name it is packed, and it has no byte: even what holds nothing has a head when it is packed.
        UserError: It is packed by zstd and the package `zstandard` is not installed.
    """
    packing = packing_of(path)
    if packing and not path.stat().st_size:
        raise EOFError("it is empty")
    if packing == "gzip":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if packing == "bzip2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if packing == "xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    return _open_zstd(path) if packing == "zstd" else path.open("rb")


def damage_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged or shortened packed file raises, beside OSError."""
    found: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)
    try:
        import zstandard
    except ImportError:
        return found
    return (*found, zstandard.ZstdError)


def _open_zstd(path: Path) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"source {path}: reading .zst needs the package zstandard; pip install zstandard") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_LONGEST_WINDOW)
    return cast(BinaryIO, io.BufferedReader(_ZstdStream(path.open("rb"), decompressor), 1 << 20))


class _ZstdStream(io.RawIOBase):
    """The content of all frames, one after another. The library's own reader takes a file that is cut short for one
    that ends there, and so drops the rest without a word; this one tells whether the last frame was complete."""

    def __init__(self, packed: BinaryIO, decompressor: Any) -> None:
        self._packed, self._decompressor = packed, decompressor
        self._frame: Any = None
        self._waiting = self._ready = b""
        self._taken = 0

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with what comes next; 0 at the end.

        Raises:
            EOFError: The file ends inside a frame.
        """
        while self._taken == len(self._ready):
            self._waiting = self._waiting or self._packed.read(_ZSTD_BLOCK_BYTES)
            if not self._waiting:
                if self._frame is not None:
                    raise EOFError("it ends too early")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._ready, self._taken = self._frame.decompress(self._waiting), 0
            self._waiting = b""
            if self._frame.eof:
                self._waiting, self._frame = self._frame.unused_data, None
        block = memoryview(self._ready)[self._taken : self._taken + len(buffer)]
        buffer[: len(block)] = block
        self._taken += len(block)
        return len(block)

    def close(self) -> None:
        """Closes the packed file too."""
        self._packed.close()
        super().close()
