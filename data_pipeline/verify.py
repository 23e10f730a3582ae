# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Compares a data set with the sizes and checksums that were recorded when it was built: the sizes, or every byte."""

import hashlib
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.index import DocumentIndex


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set: the file, the damaged document in it if any, and what it is."""

    file: str
    document: int | None
    problem: str


def verify_dataset(index: DocumentIndex, progress: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Checks the tokenizer file, each shard's size and SHA-256, and in a bad shard each document's CRC-32.

    Args:
        index: The data set; loading it has already compared its columns with its manifest.
        progress: Called as `progress(shards done, shards)`.

    Returns:
        What is wrong, in the order of the shards; empty when nothing is.
    """
    faults = []
    try:
        _ = index.tokenizer
    except UserError as error:
        faults.append(Fault("tokenizer.json", None, str(error)))
    for shard in range(len(index.manifest.shards)):
        faults += _verify_shard(index, shard)
        if progress:
            progress(shard + 1, len(index.manifest.shards))
    return faults


def check_sizes(index: DocumentIndex) -> list[Fault]:
    """Compares the size of each shard with the manifest, without reading any.

    Returns:
        What is wrong, in the order of the shards; empty when nothing is. Where a size is not told (a pipe), nothing is.
    """
    shards = index.manifest.shards
    if index.far is None:
        sizes: Iterable[int | str | None] = (_size_of(index.shard_path(shard)) for shard in range(len(shards)))
    else:
        from data_pipeline.remote import shard_sizes

        sizes = shard_sizes(index)
    return [
        Fault(info.name, None, size if isinstance(size, str) else f"has {size} bytes, not {info.size_bytes}")
        for info, size in zip(shards, sizes, strict=True)
        if size not in (None, info.size_bytes)
    ]


def _size_of(path: Path) -> int | str:
    try:
        return path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _verify_shard(index: DocumentIndex, shard: int) -> list[Fault]:
    if index.far is None:
        return _verify_file(index, shard, index.shard_path(shard))
    from data_pipeline.remote import shard_copy

    try:
        with tempfile.TemporaryDirectory(dir=index.path) as directory:
            copy = Path(directory, "shard")
            try:
                shard_copy(index, shard, copy)
            except FileNotFoundError:  # at its address
                copy.unlink(missing_ok=True)
            return _verify_file(index, shard, copy)
    except OSError as error:  # which says nothing of the data set
        raise UserError(
            f"data.cache_dir {index.far.cache_dir} cannot be written ({error.strerror or error}); it must have room "
            "for a shard",
            exit_code=1,
        ) from None


def _verify_file(index: DocumentIndex, shard: int, path: Path) -> list[Fault]:
    info = index.manifest.shards[shard]
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return [Fault(info.name, None, f"cannot be read ({error.strerror or error})")]
    if size == info.size_bytes and digest.hexdigest() == info.sha256:
        return []
    problem = (
        f"has {size} bytes, not {info.size_bytes}" if size != info.size_bytes else "does not have its SHA-256 checksum"
    )
    parts = [("", index), *([] if index.loss_weights is None else [("loss weights of ", index.loss_weights)])]
    bad = (fault for what, part in parts for fault in _bad_documents(part, shard, path, what))
    return [Fault(info.name, None, problem), *bad]


def _bad_documents(index: DocumentIndex, shard: int, path: Path, what: str) -> list[Fault]:
    faults, name = [], index.manifest.shards[shard].name
    with path.open("rb") as file:
        for document in np.flatnonzero(index.shards == shard).tolist():
            start, left = int(index.offsets[document]), int(index.lengths[document]) * index.token_dtype.itemsize
            file.seek(start)
            checksum = 0
            # A damaged document may claim any length; what is read is bounded.
            while left and (block := file.read(min(left, 1 << 20))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
            if left:
                problem = "is cut off"
            elif checksum != int(index.checksums[document]):
                problem = "does not have its checksum"
            else:
                continue
            faults.append(Fault(name, document, f"{what}document {document} ({index.name(document)}) {problem}"))
    return faults
