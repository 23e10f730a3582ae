# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes documents into shards, and tells where each document's tokens lie.

A storage format is one class with the methods of `ShardWriter`, entered in `WRITERS`. Readers never parse a shard:
a format need only put the raw little-endian tokens of a document side by side at a byte offset that is recorded.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from data_pipeline.manifest import ShardInfo
from data_pipeline.mds import MDS_INDEX, MDS_LARGEST
from data_pipeline.payload import Payload

TAR_BLOCK = 512  # member data in a tar file begins and ends at multiples of this many bytes
# The columns of our MDS shards, in the order in which the format sorts them: by name.
_MDS_COLUMNS = {"loss_weights": "bytes", "name": "str", "tokens": "bytes"}


Finished = Callable[[ShardInfo, list[int], list[int]], None]
"""Called with a shard that is complete and on disk, and the byte offset of each of its documents' first token and first
loss weight (none without loss weights)."""


class ShardWriter(Protocol):
    """Writes documents in order, cutting shards by size.

    Made from the directory, the shards that an earlier, killed build finished there, the largest size of a shard in
    bytes, a `Finished`, and whether documents have loss weights. A shard is closed before the document that would make
    it larger, and a document larger than this gets a shard of its own.
    """

    def add(self, number: int, name: str, payload: Payload, weights: Payload | None = None) -> None:
        """Appends document `number`, its tokens and, where documents have them, their loss weights."""

    def close(self) -> None:
        """Finishes the last shard, and what the format keeps beside the shards."""


class WebDatasetWriter:
    """Uncompressed tar shards that `webdataset` reads: `KEY.json` (name, tokens, bytes, crc32) and `KEY.tokens`.

    Loss weights are a member `KEY.loss_weights`, and their `loss_weights_crc32` is in the JSON. The bytes of a shard
    depend on its documents alone: time stamps and owners are zero, and every header has 512 bytes. See `ShardWriter`
    for the arguments.
    """

    def __init__(
        self, directory: Path, shards: list[ShardInfo], shard_bytes: int, finished: Finished, weighted: bool = False
    ) -> None:
        self._directory = directory
        self._shards = len(shards)
        self._shard_bytes = shard_bytes
        self._finished = finished
        self._file: _HashedFile | None = None

    def add(self, number: int, name: str, payload: Payload, weights: Payload | None = None) -> None:
        """Appends a document; begins a new shard where it would not fit."""
        record = {"name": name, "tokens": payload.tokens, "bytes": payload.text_bytes, "crc32": payload.checksum}
        if weights is not None:
            record["loss_weights_crc32"] = weights.checksum
        header = json.dumps(record, ensure_ascii=False).encode("utf-8")
        size = 2 * TAR_BLOCK + _padded(len(header)) + _padded(payload.size)
        if weights is not None:
            size += TAR_BLOCK + _padded(weights.size)
        if self._file is not None and self._tar.offset + size > self._shard_bytes:
            self._finish()
        if self._file is None:
            self._start()
        self._member(f"{number:09d}.json", len(header), io.BytesIO(header))
        self._offsets.append(self._member(f"{number:09d}.tokens", payload.size, payload.open()))
        if weights is not None:
            self._weight_offsets.append(self._member(f"{number:09d}.loss_weights", weights.size, weights.open()))
        self._tokens += payload.tokens

    def close(self) -> None:
        """Finishes the last shard."""
        if self._file is not None:
            self._finish()

    def _member(self, name: str, size: int, content: IO[bytes]) -> int:
        """Adds a member; the byte offset of its content."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o444
        self._tar.addfile(member, content)
        return self._tar.offset - _padded(size)

    def _start(self) -> None:
        self._name = f"shard-{self._shards:06d}.tar"
        self._file = _HashedFile((self._directory / self._name).open("wb"))
        # GNU rather than PAX: no extended headers, and members of more than 8 GiB.
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # type: ignore[arg-type]
        self._offsets: list[int] = []
        self._weight_offsets: list[int] = []
        self._tokens = 0

    def _finish(self) -> None:
        assert self._file is not None
        self._tar.close()
        size, sha256 = self._file.close()
        self._file = None
        self._shards += 1
        info = ShardInfo(self._name, size, sha256, len(self._offsets), self._tokens)
        self._finished(info, self._offsets, self._weight_offsets)


class MDSWriter:
    """MosaicML MDS shards, version 2, that `streaming` reads: columns `name` (str) and `tokens` (bytes).

    Loss weights are a column `loss_weights` (bytes). A shard is the number of samples, their places, a JSON
    configuration, then the samples; places come first, so the samples wait in a file of their own until the shard is
    full. See `ShardWriter` for the arguments.
    """

    def __init__(
        self, directory: Path, shards: list[ShardInfo], shard_bytes: int, finished: Finished, weighted: bool = False
    ) -> None:
        self._directory = directory
        self._shards = list(shards)
        self._shard_bytes = min(shard_bytes, MDS_LARGEST)
        self._finished = finished
        columns = {name: encoding for name, encoding in _MDS_COLUMNS.items() if weighted or name != "loss_weights"}
        self._configuration = {
            "column_encodings": list(columns.values()),
            "column_names": list(columns),
            "column_sizes": [None] * len(columns),
            "compression": None,
            "format": "mds",
            "hashes": ["sha256"],
            "size_limit": self._shard_bytes,
            "version": 2,
        }
        self._preamble = json.dumps(self._configuration, sort_keys=True).encode("utf-8")
        self._samples: IO[bytes] | None = None
        # All count from the first sample: the header before it grows with each document.
        self._ends: list[int] = []
        self._offsets: list[int] = []
        self._weight_offsets: list[int] = []

    def add(self, number: int, name: str, payload: Payload, weights: Payload | None = None) -> None:
        """Appends a document; begins a new shard where it would not fit."""
        encoded = name.encode("utf-8")
        sizes = [*([] if weights is None else [weights.size]), len(encoded), payload.size]
        size = 4 * len(sizes) + sum(sizes)
        if self._header_size(1) + size > MDS_LARGEST:
            raise OSError(None, f"document {name} has {payload.size:,} bytes of tokens, and MDS shards end below 4 GiB")
        if self._ends and self._header_size(len(self._ends) + 1) + self._ends[-1] + size > self._shard_bytes:
            self._finish()
        if self._samples is None:
            self._samples = self._temporary.open("w+b")
            self._tokens = 0
        begin = self._ends[-1] if self._ends else 0
        self._samples.write(np.array(sizes, "<u4").tobytes())
        if weights is not None:
            weights.copy_to(self._samples)
            self._weight_offsets.append(begin + 4 * len(sizes))
        self._samples.write(encoded)
        payload.copy_to(self._samples)
        self._ends.append(begin + size)
        self._offsets.append(begin + size - payload.size)
        self._tokens += payload.tokens

    def close(self) -> None:
        """Finishes the last shard and writes the index of all."""
        if self._samples is not None:
            self._finish()
        shards = [
            {
                **self._configuration,
                "raw_data": {"basename": shard.name, "bytes": shard.size_bytes, "hashes": {"sha256": shard.sha256}},
                "samples": shard.documents,
                "zip_data": None,
            }
            for shard in self._shards
        ]
        text = json.dumps({"shards": shards, "version": 2}, sort_keys=True)
        (self._directory / MDS_INDEX).write_text(text, encoding="utf-8")

    @property
    def _temporary(self) -> Path:
        return self._directory / ".samples"

    def _header_size(self, documents: int) -> int:
        return 4 * (documents + 2) + len(self._preamble)

    def _finish(self) -> None:
        assert self._samples is not None
        name = f"shard.{len(self._shards):05d}.mds"
        file = _HashedFile((self._directory / name).open("wb"))
        header = self._header_size(len(self._ends))
        places = np.array([0, *self._ends], np.int64) + header
        file.write(np.array([len(self._ends)], "<u4").tobytes() + places.astype("<u4").tobytes() + self._preamble)
        self._samples.seek(0)
        shutil.copyfileobj(self._samples, file, 1 << 20)
        self._samples.close()
        self._temporary.unlink()
        size, sha256 = file.close()
        self._shards.append(ShardInfo(name, size, sha256, len(self._ends), self._tokens))
        offsets, weight_offsets = ([header + at for at in column] for column in (self._offsets, self._weight_offsets))
        self._samples, self._ends, self._offsets, self._weight_offsets = None, [], [], []
        self._finished(self._shards[-1], offsets, weight_offsets)


WRITERS: dict[str, Callable[[Path, list[ShardInfo], int, Finished, bool], ShardWriter]] = {
    "webdataset": WebDatasetWriter,
    "mds": MDSWriter,
}


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

    def tell(self) -> int:
        return self._size

    def close(self) -> tuple[int, str]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._size, self._hash.hexdigest()
