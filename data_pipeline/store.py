# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reads tokens of documents from their shards, without state: any range, in any order, from any process.

Shards are read with `pread` and not mapped into memory: a file that is cut short while it is mapped kills the process
that touches it (SIGBUS), a short read is an error like any other. It costs a tenth to a quarter of the copying speed
(benchmarks/data.py), which is far above what training asks for.
"""

import os
import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline import open_files
from data_pipeline.errors import DamagedDocument, UserError
from data_pipeline.index import DocumentIndex
from data_pipeline.loss_weights import ONE, WEIGHT_DTYPE
from data_pipeline.manifest import CHUNK_BYTES


class Store(Protocol):
    """Where a stream gets its tokens from, or their loss weights (`DocumentIndex.loss_weights`).

    Runs are rows of int64 `[runs, 4]`: document, first token, tokens (1 or more), place of the first in the output.
    """

    @property
    def look_ahead(self) -> int:
        """Rollouts ahead of the one being read that the store wants to be told of by `prepare`; 0 where all is near."""

    def prepare(self, step: int, runs: NDArray[np.int64]) -> None:
        """Says what the rollouts from `step` on will read at once, in the order of the steps, before it is read."""

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """Tokens `start .. start + length` of a document, `[length]`, unsigned integers.

        Raises:
            DamagedDocument: Something of the tokens asked for is not what was written.
            UserError: The shard cannot be reached.
            ValueError: The range is not within the document.
        """

    def read_runs(self, runs: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        """Copies runs into `tokens`, `[any]` of the data set's token dtype; raises as `read` does."""

    def close(self) -> None:
        """Lets go of files and threads."""


class FullWeights:
    """The loss weights of a data set that has none, beside others that have: 1 for every token. See `Store`."""

    look_ahead = 0

    def prepare(self, step: int, runs: NDArray[np.int64]) -> None:
        """Nothing."""

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """See `Store.read`."""
        return np.full(length, ONE, WEIGHT_DTYPE)

    def read_runs(self, runs: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        """See `Store.read_runs`."""
        for _, _, count, place in runs.tolist():
            tokens[place : place + count] = ONE

    def close(self) -> None:
        """Nothing."""


class ShardStore:
    """Shards that lie in the data set's own directory.

    A shard's size is compared with the manifest when it is opened, and each chunk of a document is summed when it is
    first read.

    Args:
        index: The data set.
    """

    look_ahead = 0

    def __init__(self, index: DocumentIndex) -> None:
        self._index = index
        self._size = index.token_dtype.itemsize
        self._chunk_tokens = CHUNK_BYTES // self._size
        self._files: dict[int, int] = {}
        self._verified = np.zeros(len(index.chunk_checksums), dtype=np.bool_)
        open_files.register(self)

    def prepare(self, step: int, runs: NDArray[np.int64]) -> None:
        """Nothing: files of this machine need no preparation."""

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """See `Store.read`."""
        check_range(self._index, document, start, length)
        tokens = np.empty(length, self._index.token_dtype)
        if length:
            self.read_runs(np.array([[document, start, length, 0]], np.int64), tokens)
        return tokens

    def read_runs(self, runs: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        """See `Store.read_runs`."""
        documents, starts, counts, places = runs.T
        self._verify(documents, starts, counts)
        output, size = memoryview(tokens.data).cast("B"), self._size
        offsets = self._index.offsets[documents] + size * starts
        for document, shard, offset, begin, end in zip(
            documents.tolist(),
            self._index.shards[documents].tolist(),
            offsets.tolist(),
            (size * places).tolist(),
            (size * (places + counts)).tolist(),
            strict=True,
        ):
            file = self._files.get(shard)
            if file is None:
                file = self._open(shard, document)
            try:
                complete = os.preadv(file, (output[begin:end],), offset) == end - begin
            except OSError:
                complete = False  # the second try tells what is wrong
            if not complete:
                self._read_on(document, file, offset, output[begin:end])
        self._close_all_but(open_files.share())

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        for shard in list(self._files):
            self._forget(shard)

    def __del__(self) -> None:
        self.close()

    def _verify(self, documents: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        first = self._index.first_chunks[documents] + starts // self._chunk_tokens
        last = self._index.first_chunks[documents] + (starts + counts - 1) // self._chunk_tokens
        verified = self._verified
        if verified[first].all() and verified[last].all() and int((last - first).max()) <= 1:
            return
        for document, begin, end in zip(documents.tolist(), first.tolist(), (last + 1).tolist(), strict=True):
            for chunk in range(begin, end):
                if not verified[chunk]:
                    self._verify_chunk(document, chunk)

    def _verify_chunk(self, document: int, chunk: int) -> None:
        index, shard = self._index, int(self._index.shards[document])
        within = (chunk - int(index.first_chunks[document])) * CHUNK_BYTES
        content = bytearray(min(CHUNK_BYTES, int(index.lengths[document]) * self._size - within))
        file = self._files[shard] if shard in self._files else self._open(shard, document)
        self._read_on(document, file, int(index.offsets[document]) + within, memoryview(content))
        if zlib.crc32(content) != int(index.chunk_checksums[chunk]):
            raise damaged(index, document, "does not have its checksum")
        self._verified[chunk] = True

    def _read_on(self, document: int, file: int, offset: int, output: memoryview) -> None:
        """Fills `output`, in several reads if the system gives less than asked for."""
        while len(output):
            try:
                count = os.preadv(file, (output,), offset)
            except OSError as error:
                raise damaged(self._index, document, f"cannot be read ({error.strerror})") from None
            if count == 0:
                raise damaged(self._index, document, "is cut off: the shard was truncated while it was in use")
            offset, output = offset + count, output[count:]

    def _open(self, shard: int, document: int) -> int:
        path, expected = str(self._index.shard_path(shard)), self._index.manifest.shards[shard].size_bytes
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise damaged(self._index, document, "is missing with its shard") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})", exit_code=1) from None
        size = os.fstat(file).st_size
        if size != expected:
            os.close(file)
            raise damaged(
                self._index,
                document,
                f"cannot be trusted: the shard has {size} bytes, its manifest says {expected}; it is truncated or was "
                "changed",
            )
        self._close_all_but(open_files.share() - 1)
        self._files[shard] = file
        return file

    def _close_all_but(self, count: int) -> None:
        while len(self._files) > max(count, 0):
            self._forget(next(iter(self._files)))

    def _forget(self, shard: int) -> None:
        os.close(self._files.pop(shard))


def check_range(index: DocumentIndex, document: int, start: int, length: int) -> None:
    """Raises ValueError where the range is not within the document."""
    tokens = int(index.lengths[document])
    if start < 0 or length < 0 or start + length > tokens:
        raise ValueError(f"tokens {start}..{start + length} are not within document {document} of {tokens} tokens")


def damaged(index: DocumentIndex, document: int, problem: str) -> DamagedDocument:
    """The error for a document whose tokens cannot be had as they were written; names shard and document."""
    shard = index.shard_location(int(index.shards[document]))
    return DamagedDocument(
        f"{shard} is damaged: document {document} ({index.name(document)}) {problem}; restore the shard or build again",
        document,
    )
