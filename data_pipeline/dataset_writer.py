# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes one data set, shard by shard, and goes on after the last whole shard when an earlier build was killed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.build_journal import Journal
from data_pipeline.files import sync
from data_pipeline.index import DocumentIndex
from data_pipeline.manifest import (
    COLUMNS_FILE,
    MANIFEST_FILE,
    Manifest,
    ShardInfo,
    fingerprint,
    number_columns,
    save_columns,
)
from data_pipeline.payload import Payload
from data_pipeline.shards import WRITERS
from data_pipeline.tokenizer import TOKENIZER_FILE, Tokenizer


class DatasetWriter:
    """The shards as documents come, then the tokenizer, the columns and the manifest.

    Args:
        root: The directory of the build.
        split: Name of the part of the build that this data set is, also its folder; None: the whole.
        tokenizer: What the tokens were made with.
        settings: Those of the build: `format`, `shard_megabytes` and `loss_weights_key` are used here.
        journal: What is already on disk, and where finished shards are noted.

    Attributes:
        through: Number of the last source document in a whole shard; documents up to it are not to be added. -1: none.
        weighted: Whether documents have loss weights.
        dtype: Of a stored token.
    """

    def __init__(
        self, root: Path, split: str | None, tokenizer: Tokenizer, settings: dict[str, Any], journal: Journal
    ) -> None:
        self.split = split
        self.through = -1
        self.weighted = "loss_weights_key" in settings
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._directory = root / split if split else root
        self._directory.mkdir(exist_ok=True)
        self._tokenizer, self._settings, self._journal = tokenizer, settings, journal
        self._pending: list[dict[str, Any]] = []
        self._shards: list[ShardInfo] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._chunks: list[NDArray[np.uint32]] = []
        self._weight_chunks: list[NDArray[np.uint32]] = []
        self._names: list[str] = []
        for record in journal.finished(split):
            self._take(record)
        self.restored_documents = len(self._names)
        writer = WRITERS[settings["format"]]
        self._writer = writer(
            self._directory,
            self._shards,
            int(settings["shard_megabytes"] * 1e6),
            self._shard_finished,
            self.weighted,
        )

    @property
    def documents(self) -> int:
        """Documents written, those of the killed build included."""
        return len(self._names) + len(self._pending)

    def add(self, ordinal: int, name: str, payload: Payload, digest: str, weights: Payload | None = None) -> None:
        """Appends a document, number `ordinal` among those of the sources; `digest` stands for all up to it."""
        self._writer.add(self.documents, name, payload, weights)
        row: dict[str, Any] = {
            "ordinal": ordinal,
            "digest": digest,
            "name": name,
            "numbers": [payload.tokens, payload.text_bytes, payload.checksum],
            "chunks": payload.chunk_checksums().tolist(),
        }
        if weights is not None:
            row["weight_numbers"] = [weights.checksum, weights.total]
            row["weight_chunks"] = weights.chunk_checksums().tolist()
        self._pending.append(row)

    def finish(self, dropped_documents: int, settings: dict[str, Any]) -> Manifest:
        """Writes what belongs beside the shards, everything synced to disk.

        Args:
            dropped_documents: Those that had no token.
            settings: Of the build and what became of them, kept in the manifest.
        """
        self._writer.close()
        kinds = number_columns(self.weighted)
        table = np.concatenate([np.empty((0, len(kinds)), np.int64), *self._numbers])
        columns = {key: table[:, i].astype(dtype) for i, (key, dtype) in enumerate(kinds.items())}
        chunks, weight_chunks = (
            np.concatenate([np.empty(0, np.uint32), *parts]) for parts in (self._chunks, self._weight_chunks)
        )
        columns_sha256 = save_columns(
            self._directory, columns, chunks, self._names, weight_chunks if self.weighted else None
        )
        self._tokenizer.save(self._directory)
        manifest = Manifest(
            storage=self._settings["format"],
            split=self.split,
            tokenizer_sha256=self._tokenizer.sha256,
            vocab_size=self._tokenizer.vocab_size,
            token_dtype=self.dtype.str,
            documents=len(self._names),
            tokens=int(columns["tokens"].sum()),
            text_bytes=int(columns["bytes"].sum()),
            dropped_documents=dropped_documents,
            shards=tuple(self._shards),
            settings=settings,
            fingerprint=fingerprint(self._tokenizer.sha256, self.dtype.str, columns),
            columns_sha256=columns_sha256,
            loss_weights=self.weighted,
        )
        manifest.save(self._directory)
        _ = DocumentIndex.load(self._directory).tokenizer  # what is not to be opened again is not said to be done
        for name in (COLUMNS_FILE, TOKENIZER_FILE, MANIFEST_FILE, ""):
            sync(self._directory / name)
        return manifest

    def _shard_finished(self, shard: ShardInfo, offsets: list[int], weight_offsets: list[int]) -> None:
        numbers = [[at, *row["numbers"]] for at, row in zip(offsets, self._pending, strict=True)]
        record = {
            "shard": asdict(shard),
            "through": self._pending[-1]["ordinal"],
            "digest": self._pending[-1]["digest"],
            "numbers": numbers,
            "chunks": [checksum for row in self._pending for checksum in row["chunks"]],
            "names": [row["name"] for row in self._pending],
        }
        if self.weighted:
            for own, at, row in zip(numbers, weight_offsets, self._pending, strict=True):
                own += [at, *row["weight_numbers"]]
            record["weight_chunks"] = [checksum for row in self._pending for checksum in row["weight_chunks"]]
        sync(self._directory)
        self._journal.note(self.split, record)
        self._pending = []
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        numbers = np.array(record["numbers"], np.int64)
        self._numbers.append(np.insert(numbers, 0, len(self._shards), axis=1))
        self._chunks.append(np.array(record["chunks"], np.uint32))
        self._weight_chunks.append(np.array(record.get("weight_chunks", []), np.uint32))
        self._names += record["names"]
        self._shards.append(ShardInfo(**record["shard"]))
        self.through = int(record["through"])
