# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which documents are held out and which train a tokenizer: by content hash, so that a place in a file is no matter."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.records import Corpus, Part

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, documents, text_bytes)`: after each document in the stages "reading" and "writing", now
and then in the stages "receiving" (from a pipe) and "training" (a tokenizer)."""


@dataclass(frozen=True)
class Scan:
    """Content hash (uint64) and bytes of each document that has text."""

    hashes: NDArray[np.uint64]
    sizes: NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """The scan as the content of a file."""
        content = io.BytesIO()
        np.savez(content, hashes=self.hashes, sizes=self.sizes)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Scan":
        """The scan that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as columns:
            return cls(columns["hashes"], columns["sizes"])


def numbered_parts(corpus: Corpus) -> Iterator[tuple[int, Part]]:
    """All parts with the number of their document among those that have text; an empty document has -1."""
    ordinal, inside = -1, False
    for part in corpus.parts():
        if not inside and not part.content:
            yield -1, part
            continue
        ordinal += not inside
        inside = not part.last
        yield ordinal, part


def summed_parts(corpus: Corpus) -> Iterator[tuple[int, Part, str]]:
    """`numbered_parts`, a document's last one with a digest of names, texts and loss weights of all documents up to it.

    So a later build knows whether the sources still begin with the documents that an earlier one has written.
    """
    digest = hashlib.blake2b(digest_size=16)
    for ordinal, part in numbered_parts(corpus):
        if ordinal >= 0:
            digest.update(part.content if isinstance(part.content, bytes) else part.content.encode("utf-8"))
            if part.weights is not None:
                digest.update(b"\xfe" + repr(part.weights).encode())
            if part.last:
                digest.update(b"\xff" + part.name.encode("utf-8") + b"\xff")  # a byte that is in no UTF-8
        yield ordinal, part, digest.hexdigest() if part.last else ""


def scan(corpus: Corpus, progress: Progress | None) -> Scan:
    """Reads all sources once."""
    hashes, sizes, total = [], [], 0
    digest, size = hashlib.blake2b(digest_size=8), 0
    for ordinal, part in numbered_parts(corpus):
        if ordinal < 0:
            continue
        content = part.content if isinstance(part.content, bytes) else part.content.encode("utf-8")
        digest.update(content)
        size += len(content)
        if part.last:
            hashes.append(int.from_bytes(digest.digest(), "little"))
            sizes.append(size)
            total += size
            digest, size = hashlib.blake2b(digest_size=8), 0
            if progress:
                progress("reading", len(sizes), total)
    return Scan(np.array(hashes, dtype=np.uint64), np.array(sizes, dtype=np.int64))


def validation_documents(scan: Scan, fraction: float) -> set[int]:
    """Documents held out: in the order of their hashes, as many as fit into the fraction of all text.

    Raises:
        UserError: There are not two different documents to divide.
    """
    texts, copies = np.unique(scan.hashes, return_inverse=True)
    if len(texts) < 2:
        raise UserError(
            f"validation_fraction {fraction} needs two different documents or more to divide, and the sources hold "
            f"{len(texts)}; give more documents, or validation_fraction 0"
        )
    sizes = np.bincount(copies, weights=scan.sizes)
    wanted = fraction * sizes.sum()
    held_out = np.zeros(len(texts), dtype=np.bool_)
    taken, count = 0.0, 0
    for text, size in enumerate(sizes.tolist()):
        if taken + size <= wanted and count < len(texts) - 1:
            held_out[text] = True
            taken, count = taken + size, count + 1
        elif taken >= wanted / 2:
            break  # filling the rest with whatever still fits would hold out the short texts
    if count == 0:
        held_out[int(sizes.argmin())] = True
    return set(np.flatnonzero(held_out[copies]).tolist())


def training_sample(scan: Scan, validation: set[int], megabytes: float) -> NDArray[np.bool_]:
    """Which documents a BPE is trained on: those not held out, or of too many the share that fills the limit."""
    kept = np.ones(len(scan.sizes), dtype=np.bool_)
    kept[list(validation)] = False
    total = int(scan.sizes[kept].sum())
    if total > megabytes * 1e6:
        candidates = np.flatnonzero(kept)
        # From the upper end of the hashes: the lower end is where validation is taken from.
        order = candidates[np.argsort(scan.hashes[candidates], kind="stable")[::-1]]
        count = int(np.searchsorted(np.cumsum(scan.sizes[order]), megabytes * 1e6, side="right"))
        kept[order[max(count, 1) :]] = False
    return kept
