# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Makes a data set of MDS shards that somebody else wrote, where they lie: `adopt_mds`.

A shard is: uint32 number of samples, uint32 place of each and of the end, a JSON configuration, the samples. A sample
is: uint32 size of every column that has no fixed size, then the columns' bytes in the order of their names.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.manifest import MANIFEST_FILE, NUMBER_COLUMNS, Manifest, ShardInfo, fingerprint, save_columns
from data_pipeline.mds import MDS_INDEX, MDSShard, read_mds_index
from data_pipeline.payload import Payload
from data_pipeline.tokenizer_choice import make_tokenizer

_FIXED_DTYPES = {"<u2": "ndarray:uint16", "<u4": "ndarray:uint32"}


@dataclass(frozen=True)
class _Document:
    offset: int
    content: bytes
    name: str


def adopt_mds(
    directory: str | Path, *, tokenizer: str, column: str = "tokens", name_column: str | None = None
) -> Manifest:
    """Writes the manifest, columns and tokenizer of a data set beside MDS shards, which stay as they are.

    Every shard is read once, for the checksums; afterwards the data set is like one that was built here.

    Args:
        directory: Where the shards and their `index.json` lie.
        tokenizer: What the tokens were made with, as for `build_dataset`; not one to train.
        column: The column with a document's tokens: `bytes` of little-endian uint16 (uint32 above 65,536 ids), or
            `ndarray:uint16`, `ndarray:uint32`.
        name_column: A `str` column with names for people; None: documents are named by their number.

    Raises:
        UserError: There are no raw MDS shards, a column does not fit, or there are ids outside the vocabulary.
    """
    root = Path(directory)
    if (root / MANIFEST_FILE).exists():
        raise UserError(f"{root} is a data set already; delete its {MANIFEST_FILE} to adopt it anew")
    chosen = make_tokenizer(tokenizer)
    dtype = np.dtype("<u2" if chosen.vocab_size <= 1 << 16 else "<u4")
    byte_lengths = chosen.token_byte_lengths.astype(np.int64)
    shards: list[ShardInfo] = []
    rows: list[list[int]] = []
    chunks: list[NDArray[np.uint32]] = []
    names: list[str] = []
    dropped = 0
    for shard in read_mds_index(root):
        documents = tokens = 0
        for document in _documents(shard, column, name_column, dtype, len(names) + dropped):
            ids = np.frombuffer(document.content, dtype)
            if not len(ids):
                dropped += 1
                continue
            if int(ids.max()) >= chosen.start_token_id:
                raise UserError(
                    f"{shard.path}: document {document.name} has id {int(ids.max())}, but {tokenizer} has only "
                    f"{chosen.start_token_id} ids for text; give the tokenizer that made the tokens"
                )
            with Payload(dtype) as payload:
                payload.append(ids, int(byte_lengths[ids].sum()))
                numbers = [payload.tokens, payload.text_bytes, payload.checksum]
                rows.append([len(shards), document.offset, *numbers])
                chunks.append(payload.chunk_checksums())
            names.append(document.name)
            documents, tokens = documents + 1, tokens + len(ids)
        content = shard.path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        shards.append(ShardInfo(shard.path.name, len(content), sha256, documents, tokens))
    if not rows:
        raise UserError(f"{root / MDS_INDEX}: the shards hold no token")
    table = np.array(rows, np.int64)
    columns = {key: table[:, i].astype(kind) for i, (key, kind) in enumerate(NUMBER_COLUMNS.items())}
    columns_sha256 = save_columns(root, columns, np.concatenate(chunks), names)
    chosen.save(root)
    manifest = Manifest(
        storage="mds",
        split=None,
        tokenizer_sha256=chosen.sha256,
        vocab_size=chosen.vocab_size,
        token_dtype=dtype.str,
        documents=len(rows),
        tokens=int(columns["tokens"].sum()),
        text_bytes=int(columns["bytes"].sum()),
        dropped_documents=dropped,
        shards=tuple(shards),
        settings={"adopted": True, "column": column, "tokenizer": tokenizer.partition(":")[0]},
        fingerprint=fingerprint(chosen.sha256, dtype.str, columns),
        columns_sha256=columns_sha256,
    )
    manifest.save(root)
    return manifest


def _documents(
    shard: MDSShard, column: str, name_column: str | None, dtype: np.dtype[Any], first_number: int
) -> Iterator[_Document]:
    encoding = shard.encoding(column)
    if encoding not in ("bytes", _FIXED_DTYPES[dtype.str]):
        raise UserError(
            f"{shard.path}: column {column} is {encoding}; tokens of this tokenizer are read from columns of bytes or "
            f"{_FIXED_DTYPES[dtype.str]}"
        )
    if name_column is not None and shard.encoding(name_column) != "str":
        raise UserError(f"{shard.path}: column {name_column} is {shard.encoding(name_column)}; names are str")
    for number, sample in enumerate(shard.samples(), start=first_number):
        offset, content = sample[column]
        if encoding != "bytes":
            # An array is led by one byte (dimensions, and the size of a dimension's number), then its dimensions.
            if content[0] >> 2 != 1:
                raise UserError(f"{shard.path}: column {column} of sample {number} is not one row of numbers")
            head = 1 + (1 << (content[0] & 3))
            offset, content = offset + head, content[head:]
        if len(content) % dtype.itemsize:
            raise UserError(
                f"{shard.path}: sample {number} has {len(content)} bytes of tokens, no whole number of {dtype.name}; "
                "give the tokenizer that made the tokens"
            )
        name = str(number) if name_column is None else sample[name_column][1].decode("utf-8", "replace")
        yield _Document(offset, content, name)
