# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Blend`: several data sets read as one, each with a weight that is its share of the tokens.

Documents are numbered through, data set after data set in the order given. Which data set the next free lane reads
from is decided by the plan (`data_pipeline.plan`); the weights are no part of the blend's fingerprint, so they may
change at a resume.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.document_order import Source
from data_pipeline.errors import DamagedDocument, UserError
from data_pipeline.index import DocumentIndex
from data_pipeline.store import Store
from data_pipeline.tokenizer import Tokenizer


class Blend:
    """Data sets with one tokenizer, and their weights: shares, which have nothing to do with loss weights.

    Args:
        parts: The data sets, in an order that stays the same for the whole run.
        weights: The share of each in the tokens, relative to the others; 0: never read.

    Attributes:
        lengths: int64 `[documents of all]`, tokens.
        first_documents: int64 `[parts + 1]`, the number of each part's first document.

    Raises:
        UserError: The data sets have different tokenizers.
    """

    def __init__(self, parts: Sequence[DocumentIndex], weights: Sequence[float]) -> None:
        self.parts = tuple(parts)
        self.weights = tuple(map(float, weights))
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.tokenizer_sha256 != first.tokenizer_sha256:
                raise UserError(
                    f"data sets {first.location} and {part.location} have different tokenizers; build both with the "
                    "same --tokenizer"
                )
        self.lengths: NDArray[np.int64] = np.concatenate([part.lengths for part in self.parts])
        self.first_documents: NDArray[np.int64] = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What `LanePlan` needs to know of the parts."""
        return tuple(Source(len(part), weight) for part, weight in zip(self.parts, self.weights, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for the parts and their order."""
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()[:32]

    @property
    def path(self) -> Path:
        """The directory of the first part, which holds the common tokenizer."""
        return self.parts[0].path

    @property
    def location(self) -> str:
        """Where the parts come from, for people."""
        return ", ".join(part.location for part in self.parts)

    @property
    def tokenizer_sha256(self) -> str:
        """Hexadecimal SHA-256 of the common tokenizer's file."""
        return self.parts[0].tokenizer_sha256

    @property
    def tokenizer(self) -> Tokenizer:
        """The common tokenizer."""
        return self.parts[0].tokenizer

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """The type that holds a token of any part: adopted data sets keep the type that they were written in."""
        return max((part.token_dtype for part in self.parts), key=lambda dtype: dtype.itemsize)

    @property
    def num_tokens(self) -> int:
        """Tokens of all parts."""
        return int(self.lengths.sum())

    @property
    def has_loss_weights(self) -> bool:
        """Whether tokens of any part count differently in the loss."""
        return any(part.has_loss_weights for part in self.parts)

    @property
    def counted_tokens(self) -> float:
        """Sum of the loss weights of all parts' tokens; a part without them counts whole."""
        return sum(part.counted_tokens for part in self.parts)

    def name(self, document: int) -> str:
        """The document's name for people."""
        part = self.part_of(document)
        return self.parts[part].name(document - int(self.first_documents[part]))

    def part_of(self, document: int) -> int:
        """The number of the data set that holds a document."""
        return int(np.searchsorted(self.first_documents, document, side="right")) - 1


class BlendStore:
    """Reads each document from the store of its data set; see `data_pipeline.store.Store`.

    Args:
        blend: The data sets.
        stores: One for each.
        dtype: What all of them give; None: tokens, each in the type of its data set.
    """

    def __init__(self, blend: Blend, stores: Sequence[Store], dtype: np.dtype[Any] | None = None) -> None:
        self._blend, self._stores = blend, tuple(stores)
        self._dtypes = [part.token_dtype if dtype is None else dtype for part in blend.parts]
        self.look_ahead = max(store.look_ahead for store in self._stores)

    def prepare(self, step: int, runs: NDArray[np.int64]) -> None:
        """See `Store.prepare`."""
        for part, own in self._parts_of(runs):
            self._stores[part].prepare(step, own)

    def read(self, document: int, start: int, length: int) -> NDArray[Any]:
        """See `Store.read`."""
        part = self._blend.part_of(document)
        first = int(self._blend.first_documents[part])
        try:
            return self._stores[part].read(document - first, start, length)
        except DamagedDocument as error:
            raise DamagedDocument(str(error), first + error.document) from None

    def read_runs(self, runs: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        """See `Store.read_runs`."""
        for part, own in self._parts_of(runs):
            if not len(own):
                continue
            try:
                self._read_runs(part, own, tokens)
            except DamagedDocument as error:
                document = int(self._blend.first_documents[part]) + error.document
                raise DamagedDocument(str(error), document) from None

    def _read_runs(self, part: int, own: NDArray[np.int64], tokens: NDArray[Any]) -> None:
        dtype = self._dtypes[part]
        if dtype == tokens.dtype:
            self._stores[part].read_runs(own, tokens)
            return
        counts = own[:, 2]
        begins = np.cumsum(counts) - counts
        narrow = np.empty(int(counts.sum()), dtype)
        self._stores[part].read_runs(np.column_stack([own[:, :3], begins]), narrow)
        tokens[np.repeat(own[:, 3] - begins, counts) + np.arange(len(narrow))] = narrow

    def close(self) -> None:
        """See `Store.close`."""
        for store in self._stores:
            store.close()

    def _parts_of(self, runs: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """The runs of every part, also where there are none, with its own document numbers."""
        parts = np.searchsorted(self._blend.first_documents, runs[:, 0], side="right") - 1
        return [
            (part, runs[parts == part] - np.array([self._blend.first_documents[part], 0, 0, 0]))
            for part in range(len(self._stores))
        ]
