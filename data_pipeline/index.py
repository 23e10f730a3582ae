# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`DocumentIndex`: which documents a data set holds and where their tokens lie, without touching the shards."""

import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.document_order import Source
from data_pipeline.errors import UserError
from data_pipeline.far import FarSettings
from data_pipeline.loss_weights import ONE, WEIGHT_DTYPE
from data_pipeline.manifest import CHUNK_BYTES, COLUMNS_FILE, MANIFEST_FILE, Manifest, fingerprint, load_columns
from data_pipeline.tokenizer import TOKENIZER_FILE, Tokenizer
from data_pipeline.tokenizer_choice import load_tokenizer


class DocumentIndex:
    """The documents of one data set, as columns; a document's id is its row number. Made by `DocumentIndex.load`.

    Attributes:
        path: The data set's directory.
        location: Where the shards come from, for people: the directory, or the address of a far data set, without
            what is secret in it.
        address: The whole address of a far data set; empty where the shards lie in `path`.
        far: How the shards of a far data set are read; None where they lie in `path`.
        manifest: The contents of its `manifest.json`.
        shards: int32 `[documents]`, number of the shard that holds the document.
        offsets: int64 `[documents]`, byte offset of its first token in that shard.
        lengths: int64 `[documents]`, tokens; at least 1.
        byte_lengths: int64 `[documents]`, bytes of the document's text as UTF-8 (for bits per byte).
        checksums: uint32 `[documents]`, CRC-32 of its tokens' bytes as stored.
        chunk_checksums: uint32 `[chunks]`, CRC-32 of each chunk of `CHUNK_BYTES` of the documents' bytes, document by
            document.
        first_chunks: int64 `[documents + 1]`, where the chunks of a document begin in `chunk_checksums`.
    """

    def __init__(self, path: Path, manifest: Manifest, columns: dict[str, NDArray[Any]]) -> None:
        self.path = path
        self.location = str(path)
        self.address = ""
        self.far: FarSettings | None = None
        self.manifest = manifest
        self.shards: NDArray[np.int32] = columns["shard"]
        self.offsets: NDArray[np.int64] = columns["offset"]
        self.lengths: NDArray[np.int64] = columns["tokens"]
        self.byte_lengths: NDArray[np.int64] = columns["bytes"]
        self.checksums: NDArray[np.uint32] = columns["checksum"]
        self.chunk_checksums: NDArray[np.uint32] = columns["chunk_checksums"]
        self.first_chunks = self._chunk_starts()
        self._weight_columns = {name: column for name, column in columns.items() if name.startswith("weight_")}
        self._name_blob: NDArray[np.uint8] = columns["name_blob"]
        self._name_ends: NDArray[np.int64] = columns["name_ends"]

    @classmethod
    def load(cls, path: str | Path) -> "DocumentIndex":
        """Reads the index of the data set in this directory.

        Raises:
            UserError: There is no data set, it is one of several splits (their paths are named), its manifest and
                columns are damaged, or they do not belong together.
        """
        directory = Path(path)
        manifest = Manifest.load(directory)
        columns = load_columns(directory, manifest.columns_sha256, manifest.loss_weights)
        found = fingerprint(manifest.tokenizer_sha256, manifest.token_dtype, columns)
        if found != manifest.fingerprint:
            raise UserError(
                f"{directory / COLUMNS_FILE} does not belong to the manifest beside it (fingerprint {found}, manifest "
                f"{manifest.fingerprint}); restore both files or build the data set again"
            )
        index = cls(directory, manifest, columns)
        if any(
            len(each.chunk_checksums) != each.first_chunks[-1] or len(each.offsets) != len(index)
            for each in (index, index.loss_weights)
            if each is not None
        ):
            raise UserError(f"{directory / COLUMNS_FILE} is damaged (columns of unequal length); build it again")
        listed = (manifest.documents, manifest.tokens, manifest.text_bytes)
        shards = [shard.documents for shard in manifest.shards]
        if (
            listed != (len(index), index.num_tokens, int(index.byte_lengths.sum()))
            or np.bincount(index.shards, minlength=len(shards)).tolist() != shards
        ):
            raise UserError(
                f"{directory / MANIFEST_FILE} is damaged (it counts other documents, tokens or shards than "
                f"{COLUMNS_FILE}); restore both files or build the data set again"
            )
        return index

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for the documents' tokens and the tokenizer, not for how they are stored."""
        return self.manifest.fingerprint

    @property
    def tokenizer_sha256(self) -> str:
        """Hexadecimal SHA-256 of the tokenizer's file."""
        return self.manifest.tokenizer_sha256

    @property
    def sources(self) -> tuple[Source, ...]:
        """What `LanePlan` needs to know: one source."""
        return (Source(len(self)),)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """How a token is stored: little-endian uint16 or uint32."""
        return np.dtype(self.manifest.token_dtype)

    @property
    def loss_weights(self) -> "DocumentIndex | None":
        """The same documents with their loss weights in place of their tokens: what a store reads the weights by.

        A "token" is then a weight in 1/32,768ths, uint16. None: the data set has no weights, all tokens count 1.
        """
        if not self.manifest.loss_weights:
            return None
        weights = copy.copy(self)
        weights.manifest = replace(self.manifest, token_dtype=WEIGHT_DTYPE.str, loss_weights=False)
        weights.offsets = self._weight_columns["weight_offset"]
        weights.checksums = self._weight_columns["weight_checksum"]
        weights.chunk_checksums = self._weight_columns["weight_chunk_checksums"]
        weights.first_chunks = weights._chunk_starts()
        return weights

    @property
    def has_loss_weights(self) -> bool:
        """Whether tokens count differently in the loss."""
        return self.manifest.loss_weights

    @property
    def counted_tokens(self) -> float:
        """Sum of the tokens' loss weights; their number where the data set has none."""
        if not self.has_loss_weights:
            return self.num_tokens
        return int(self._weight_columns["weight_sum"].sum()) / ONE

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the start token included."""
        return self.manifest.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The data set's tokenizer, read from its directory on first use.

        Raises:
            UserError: The file is missing, or is not the one that the data set was built with.
        """
        tokenizer = load_tokenizer(self.path, "restore the file or build the data set again")
        if tokenizer.sha256 != self.manifest.tokenizer_sha256:
            raise UserError(
                f"{self.path / TOKENIZER_FILE} is not the tokenizer this data set was built with (sha256 "
                f"{tokenizer.sha256[:16]}, manifest {self.manifest.tokenizer_sha256[:16]}); restore the file"
            )
        return tokenizer

    def name(self, document: int) -> str:
        """The document's name for people: its file's relative path, or its `id` in a JSONL file."""
        start = int(self._name_ends[document - 1]) if document else 0
        return self._name_blob[start : int(self._name_ends[document])].tobytes().decode("utf-8")

    def shard_path(self, shard: int) -> Path:
        """Where a shard's file lies."""
        return self.path / self.manifest.shards[shard].name

    def shard_location(self, shard: int) -> str:
        """The shard's name for people: where it comes from."""
        return f"{self.location}/{self.manifest.shards[shard].name}"

    def _chunk_starts(self) -> NDArray[np.int64]:
        chunks = -(-self.lengths * self.token_dtype.itemsize // CHUNK_BYTES)
        return np.concatenate([[0], np.cumsum(chunks)])

    def padding_share(self, segment_length: int) -> float:
        """Share of segment positions that stay empty when every document is cut into segments, 0 to 1."""
        positions = int((-(-self.lengths // segment_length)).sum()) * segment_length
        return 1.0 - self.num_tokens / positions
