# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Data sets at an address: their index, copied once, and the two stores that read their shards.

`SpoolStore` copies whole shards into a cache on local disk that all processes of a machine share, and reads them
there. `RangeStore` asks for the chunks of documents that are about to be read, and keeps nothing on disk. Both are
told by the stream what the coming rollouts read (`prepare`), so that answers are there before they are needed.
"""

import contextlib
import hashlib
import os
import threading
import zlib
from collections import OrderedDict
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline import open_files
from data_pipeline.addresses import location
from data_pipeline.background import Background
from data_pipeline.errors import UserError
from data_pipeline.far import FarSettings, make_cache
from data_pipeline.index import DocumentIndex
from data_pipeline.manifest import CHUNK_BYTES, COLUMNS_FILE, MANIFEST_FILE, Manifest, ShardInfo
from data_pipeline.shard_cache import OpenShard, ShardCache, locked, own_name
from data_pipeline.store import ShardStore, Store, check_range, damaged
from data_pipeline.tokenizer import TOKENIZER_FILE
from data_pipeline.transport import Transport, TryAgain, Unfit, open_transport, with_retries

_SPOOLING_THREADS = 4
_AT_ONCE = threading.BoundedSemaphore(2 * _SPOOLING_THREADS)  # shards that a process copies, from however many sets
_CHUNKS_A_REQUEST = 16
_KEPT_CHUNKS = 4096  # 256 MiB: what was asked for and is not read yet


def open_far_index(address: str, settings: FarSettings) -> DocumentIndex:
    """The index of a data set at an address; its manifest, columns and tokenizer are copied into the cache directory.

    Raises:
        UserError: There is no data set, it cannot be reached, or its files do not belong together.
    """
    transport, place = open_transport(address, settings), location(address)
    try:
        manifest = _get(transport, place, MANIFEST_FILE, settings)
    except Unfit:
        raise UserError(
            f"no data set at {place}: it has no {MANIFEST_FILE}; name the directory that `memformer data build` made "
            "(of a build with splits, its train or validation)"
        ) from None
    parsed = Manifest.parse(manifest, f"{place}/{MANIFEST_FILE}")
    # Another manifest is another data set: copies of shards are never taken for those of a data set built anew. Another
    # signature is not.
    directory = settings.cache_dir / hashlib.sha256(place.encode() + b"\n" + manifest).hexdigest()[:24]
    try:
        make_cache(settings.cache_dir)
        directory.mkdir(exist_ok=True)
        with locked(directory / ".lock"):
            for name, sha256 in ((COLUMNS_FILE, parsed.columns_sha256), (TOKENIZER_FILE, parsed.tokenizer_sha256)):
                if not _is_kept(directory / name, sha256):
                    _keep(directory / name, _get_checked(transport, place, name, sha256, settings))
            _keep(directory / MANIFEST_FILE, manifest)
    except OSError as error:
        raise UserError(f"data.cache_dir {settings.cache_dir} cannot be written ({error.strerror or error})") from None
    index = DocumentIndex.load(directory)
    index.location, index.address, index.far = place, address, settings
    return index


def has_data(address: str, settings: FarSettings) -> bool:
    """Whether there is a data set at an address.

    Raises:
        UserError: The address cannot be reached.
    """
    try:
        _get(open_transport(address, settings), location(address), MANIFEST_FILE, settings)
    except Unfit:
        return False
    return True


def open_far_store(index: DocumentIndex) -> Store:
    """The store for a data set that `open_far_index` opened."""
    assert index.far is not None
    transport = open_transport(index.address, index.far)
    return RangeStore(index, transport) if index.far.mode == "range" else SpoolStore(index, transport)


class SpoolStore(ShardStore):
    """Reads copies of shards in the cache directory.

    Args:
        index: The data set.
        transport: Where its shards come from.
    """

    def __init__(self, index: DocumentIndex, transport: Transport) -> None:
        super().__init__(index)
        assert index.far is not None
        self.look_ahead = index.far.look_ahead
        self._cache = ShardCache(index.far.cache_dir, index.path.name, transport, index.far)
        self._fetching = Background(_SPOOLING_THREADS, "spool")
        self._shards: dict[int, Future[OpenShard]] = {}
        self._copied_ahead: set[int] = set()
        self._last_steps: dict[int, int] = {}

    def prepare(self, step: int, runs: NDArray[np.int64]) -> None:
        """Begins to copy the shards of a coming rollout, and lets go of those that no coming rollout reads."""
        wanted = np.unique(self._index.shards[runs[:, 0]]).tolist()
        for shard in wanted:
            self._last_steps[shard] = max(step, self._last_steps.get(shard, 0))
        for shard, last in list(self._last_steps.items()):
            if last < step - self.look_ahead:
                del self._last_steps[shard]
                self._copied_ahead.discard(shard)
                self._forget(shard)
        for shard in wanted:
            if shard in self._shards or len(self._shards) < self._room():
                self._copy_of(shard)
            elif shard not in self._copied_ahead:
                # More shards than may be open at once: this one is copied now, and opened when it is read.
                self._copied_ahead.add(shard)
                cache, info, place = self._cache, self._index.manifest.shards[shard], self._index.shard_location(shard)
                self._fetching.submit(partial(_copy_only, cache, info, place))

    def close(self) -> None:
        """See `Store.close`."""
        if hasattr(self, "_shards"):  # not when __init__ failed
            self._fetching.close()
            for shard in list(self._shards):
                self._forget(shard)

    @staticmethod
    def _room() -> int:
        """Shards that may be open at once: each takes two files, the copy and its lock."""
        return max(1, open_files.share() // 2)

    def _copy_of(self, shard: int) -> "Future[OpenShard]":
        future = self._shards.get(shard)
        if future is None:
            while len(self._shards) >= self._room():
                self._forget(next(iter(self._shards)))
            cache, info = self._cache, self._index.manifest.shards[shard]
            place = self._index.shard_location(shard)
            future = self._shards[shard] = self._fetching.submit(partial(_open_copy, cache, info, place))
        return future

    def _open(self, shard: int, document: int) -> int:
        try:
            self._files[shard] = self._copy_of(shard).result().file
        except BaseException as error:
            self._shards.pop(shard, None)  # the next read tries again
            if isinstance(error, Unfit):
                raise damaged(self._index, document, str(error)) from None
            raise
        return self._files[shard]

    def _forget(self, shard: int) -> None:
        self._files.pop(shard, None)
        future = self._shards.pop(shard, None)
        if future is not None and not future.cancel():
            future.add_done_callback(_close_copy)


def _open_copy(cache: ShardCache, shard: ShardInfo, place: str) -> OpenShard:
    with _AT_ONCE:
        return cache.open(shard, place)


def _copy_only(cache: ShardCache, shard: ShardInfo, place: str) -> None:
    with contextlib.suppress(UserError, Unfit):  # who reads the shard tries again, and then it is an error
        _open_copy(cache, shard, place).close()


def _close_copy(future: "Future[OpenShard]") -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


class RangeStore:
    """Reads chunks of documents over the network, verified one by one; nothing is kept but what is about to be read.

    Args:
        index: The data set.
        transport: Where its shards come from.
    """

    def __init__(self, index: DocumentIndex, transport: Transport) -> None:
        assert index.far is not None
        self.look_ahead = index.far.look_ahead
        self._index, self._transport, self._settings = index, transport, index.far
        self._size = index.token_dtype.itemsize
        self._fetching = Background(index.far.connections, "range")
        # Chunk number → the request that brings it, and its place among the request's chunks.
        self._chunks: OrderedDict[int, tuple[Future[list[bytes]], int]] = OrderedDict()

    def prepare(self, step: int, runs: NDArray[np.int64]) -> None:
        """Asks for the chunks of a coming rollout."""
        for document, start, count, _ in runs.tolist():
            self._ask(document, *self._chunks_of(document, start, count))
        while len(self._chunks) > _KEPT_CHUNKS:
            self._chunks.popitem(last=False)

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """See `Store.read`."""
        check_range(self._index, document, start, length)
        tokens = np.empty(length, self._index.token_dtype)
        if length:
            self._read(document, start, length, memoryview(tokens.data).cast("B"))
        return tokens

    def read_runs(self, runs: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        """See `Store.read_runs`."""
        output = memoryview(tokens.data).cast("B")
        for document, start, count, place in runs.tolist():
            self._read(document, start, count, output[self._size * place : self._size * (place + count)])

    def close(self) -> None:
        """See `Store.close`."""
        self._fetching.close()
        self._chunks.clear()

    def __del__(self) -> None:
        if hasattr(self, "_chunks"):  # not when __init__ failed
            self.close()

    def _chunks_of(self, document: int, start: int, count: int) -> tuple[int, int]:
        """First chunk, and the one after the last, counted within the document."""
        return start * self._size // CHUNK_BYTES, -(-(start + count) * self._size // CHUNK_BYTES)

    def _ask(self, document: int, first: int, end: int) -> None:
        base = int(self._index.first_chunks[document])
        chunk = first
        while chunk < end:
            if base + chunk in self._chunks:
                chunk += 1
                continue
            last = chunk + 1
            while last < min(end, chunk + _CHUNKS_A_REQUEST) and base + last not in self._chunks:
                last += 1
            request = self._fetching.submit(self._request(document, chunk, last))
            for number in range(chunk, last):
                self._chunks[base + number] = (request, number - chunk)
            chunk = last

    def _read(self, document: int, start: int, count: int, output: memoryview) -> None:
        first, end = self._chunks_of(document, start, count)
        self._ask(document, first, end)
        base = int(self._index.first_chunks[document])
        at = self._size * start - first * CHUNK_BYTES
        for chunk in range(base + first, base + end):
            request, number = self._chunks[chunk]
            try:
                content = memoryview(request.result()[number])[at:]
            except BaseException as error:
                del self._chunks[chunk]  # the next read asks again
                if isinstance(error, Unfit):
                    raise damaged(self._index, document, str(error)) from None
                raise
            taken = min(len(content), len(output))
            output[:taken] = content[:taken]
            if taken == len(content):
                del self._chunks[chunk]  # a document is read once, from front to back
            output, at = output[taken:], 0

    def _request(self, document: int, first: int, end: int) -> Any:
        """A call that gets chunks `first .. end` of a document, each verified."""
        index, transport, settings = self._index, self._transport, self._settings
        shard = int(index.shards[document])
        info = index.manifest.shards[shard]
        offset = int(index.offsets[document]) + first * CHUNK_BYTES
        length = min((end - first) * CHUNK_BYTES, int(index.lengths[document]) * self._size - first * CHUNK_BYTES)
        base = int(index.first_chunks[document])
        expected = index.chunk_checksums[base + first : base + end].tolist()
        where = f"{index.shard_location(shard)}, document {document} ({index.name(document)}),"

        def attempt(before: list[int]) -> list[bytes]:
            content = transport.part(info.name, offset, length, info.size_bytes)
            chunks = [content[at : at + CHUNK_BYTES] for at in range(0, length, CHUNK_BYTES)]
            if [zlib.crc32(chunk) for chunk in chunks] != expected:
                before.append(zlib.crc32(content))
                if before.count(before[-1]) == 2:  # twice the same other bytes: not the way here, but the source
                    raise Unfit("does not have its checksum")
                raise TryAgain("it does not have its checksum")
            return chunks

        def call() -> list[bytes]:
            before: list[int] = []
            return with_retries(where, settings, lambda: attempt(before))

        return call


def shard_copy(index: DocumentIndex, shard: int, target: Path) -> None:
    """Copies a shard of a far data set into a file, whatever its bytes are.

    Raises:
        OSError: It is missing, or the file cannot be written.
        UserError: It cannot be reached.
    """
    assert index.far is not None
    transport, name = open_transport(index.address, index.far), index.manifest.shards[shard].name
    try:
        with_retries(index.shard_location(shard), index.far, lambda: _copy(transport, name, target))
    except Unfit:
        raise FileNotFoundError(2, os.strerror(2)) from None


def shard_sizes(index: DocumentIndex) -> list[int | str | None]:
    """The size of each shard of a far data set: bytes, what is wrong with it, or None where it is not told.

    Raises:
        UserError: The address cannot be reached.
    """
    assert index.far is not None
    transport, far = open_transport(index.address, index.far), index.far

    def size(shard: int) -> int | str | None:
        try:
            name = index.manifest.shards[shard].name
            return with_retries(index.shard_location(shard), far, lambda: transport.size(name))
        except Unfit:
            return f"cannot be read ({os.strerror(2)})"

    asking = Background(far.connections, "sizes")
    try:
        waiting = [asking.submit(partial(size, shard)) for shard in range(len(index.manifest.shards))]
        return [each.result() for each in waiting]
    finally:
        asking.close()


def _copy(transport: Transport, name: str, target: Path) -> None:
    with target.open("wb") as file:
        for block in transport.blocks(name, None):
            file.write(block)


def _get(transport: Transport, place: str, name: str, settings: FarSettings) -> bytes:
    return with_retries(f"{place}/{name}", settings, lambda: b"".join(transport.blocks(name, None)))


def _get_checked(transport: Transport, place: str, name: str, sha256: str, settings: FarSettings) -> bytes:
    def attempt() -> bytes:
        content = b"".join(transport.blocks(name, None))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise TryAgain(f"it does not belong to the {MANIFEST_FILE} beside it")
        return content

    try:
        return with_retries(f"{place}/{name}", settings, attempt)
    except Unfit:
        raise UserError(f"{place}/{name} is missing; restore the file or build the data set again") from None


def _is_kept(path: Path, sha256: str) -> bool:
    """Whether a copy is there and sound: a power cut, for one, may have left it empty."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _keep(path: Path, content: bytes) -> None:
    temporary = own_name(path)
    temporary.write_bytes(content)
    temporary.rename(path)
