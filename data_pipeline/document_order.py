# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""In which order the documents of each source are queued, epoch by epoch: a pure function of lengths and seed.

Shuffling keeps neighbours near each other, so that a window of shards serves many lanes: documents are grouped into
blocks by their place in the data set, blocks are shuffled, then documents within windows of a few blocks. Blocks are
counted in tokens and not taken from the shards, so the order is the same however the data set is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["shuffled", "longest_first", "sequential"]
BLOCK_TOKENS = 1 << 26  # 128 MB of uint16: about a shard


@dataclass(frozen=True)
class Source:
    """Consecutive documents that are blended with others: how many, and their share of the tokens."""

    documents: int
    weight: float = 1.0


def blocks_of(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """The block of each document, `[documents]`: where it begins in the data set, in units of `BLOCK_TOKENS`."""
    blocks: NDArray[np.int32] = ((np.cumsum(lengths) - lengths) // BLOCK_TOKENS).astype(np.int32)
    return blocks


class DocumentOrder:
    """What is queued: whole documents, or pieces of them that are read as if they were documents.

    Args:
        lengths: int64 `[documents]`, tokens of each; those without a token are left out.
        blocks: int32 `[documents]`, what is shuffled first.
        sources: Sources whose documents follow each other in `lengths`.
        seed: Any integer.
        order: See `LanePlan`.
        block_window: Blocks whose documents are shuffled together.
        max_document_tokens: Longer documents are cut into pieces of this many tokens; None: never.

    Attributes:
        documents: int64 `[pieces]`, the document that a piece belongs to.
        starts: int64 `[pieces]`, the piece's first token in its document.
        lengths: int64 `[pieces]`, its tokens.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        blocks: NDArray[np.int32],
        sources: Sequence[Source],
        seed: int,
        order: Order,
        block_window: int,
        max_document_tokens: int | None,
    ) -> None:
        self._blocks, self._seed, self._order, self._window = blocks, seed, order, block_window
        number = np.arange(len(lengths), dtype=np.int64)
        if max_document_tokens is None:
            self.documents, self.starts, self.lengths = number, np.zeros(len(lengths), np.int64), lengths
        else:
            counts = -(-lengths // max_document_tokens)
            self.documents = np.repeat(number, counts)
            within = np.arange(len(self.documents)) - np.repeat(np.cumsum(counts) - counts, counts)
            self.starts = within * max_document_tokens
            self.lengths = np.minimum(lengths[self.documents] - self.starts, max_document_tokens)
        self._source_ends = np.cumsum([source.documents for source in sources])
        self._cached: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def source_of(self, document: int) -> int:
        """The source that a document belongs to."""
        return int(np.searchsorted(self._source_ends, document, side="right"))

    def pieces(self, source: int, epoch: int) -> NDArray[np.int64]:
        """The pieces of a source in the order in which this epoch queues them."""
        cached = self._cached.get(source)
        if cached is None or cached[0] != epoch:
            first = int(self._source_ends[source - 1]) if source else 0
            begin, end = np.searchsorted(self.documents, [first, self._source_ends[source]])
            pieces = begin + np.flatnonzero(self.lengths[begin:end] > 0)
            if self._order == "longest_first":
                pieces = pieces[np.argsort(-self.lengths[pieces], kind="stable")]
            elif self._order == "shuffled" and len(pieces):
                pieces = pieces[self._shuffle_keys(source, epoch, pieces - begin, self._blocks[self.documents[pieces]])]
            cached = self._cached[source] = (epoch, pieces)
        return cached[1]

    def _shuffle_keys(
        self, source: int, epoch: int, pieces: NDArray[np.int64], blocks: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        seed = np.array([self._seed % (1 << 64)], np.uint64)
        if source:
            seed = mixed(seed ^ mixed(np.array([source], np.uint64)))
        salt = mixed(mixed(seed) + np.uint64(epoch))
        num_blocks = int(blocks.max()) + 1
        block_hashes = mixed(np.arange(num_blocks, dtype=np.uint64) ^ salt)
        place = np.empty(num_blocks, np.int64)
        place[np.argsort(block_hashes, kind="stable")] = np.arange(num_blocks)
        # Another salt than the blocks': otherwise block i and piece i would get the same hash.
        piece_hashes = mixed(pieces.astype(np.uint64) ^ mixed(salt))
        keys: NDArray[np.int64] = np.lexsort((piece_hashes, place[blocks] // self._window))
        return keys


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: the same numbers in every version of numpy, unlike its random streams."""
    result: NDArray[np.uint64]
    with np.errstate(over="ignore"):
        result = values + np.uint64(0x9E3779B97F4A7C15)
        result = (result ^ (result >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        result = (result ^ (result >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result ^= result >> np.uint64(31)
    return result
