# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`build_dataset`: documents → tokens → shards, complete or absent, with the same bytes every time.

Data flow: the calling thread reads documents in order; a pool of threads turns text into tokens (tiktoken's engine
releases the interpreter's lock); the calling thread takes the results back in order and writes. So the number of
workers changes the time and nothing else. With splits, or a tokenizer to train, the sources are read once more
beforehand, to know every document's content hash.
"""

import fcntl
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.manifest import (
    COLUMNS_FILE,
    MANIFEST_FILE,
    NUMBER_COLUMNS,
    SPLITS,
    Manifest,
    fingerprint,
    save_columns,
)
from data_pipeline.shards import WRITERS
from data_pipeline.sources import Document, SourceFile, find_files, read_documents
from data_pipeline.tokenizer import TOKENIZER_FILE, TokenIds, Tokenizer, make_tokenizer, train_bpe, training_vocab_size

_MARKER = ".building"
_IN_FLIGHT_CHARACTERS = 64 << 20  # text waiting for the tokenizer or for the writer

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, documents, text_bytes)` after each document; `stage` is "reading" or "writing"."""


@dataclass(frozen=True)
class BuildReport:
    """What a build wrote: the data sets by path, and the documents left out because they have no token."""

    manifests: dict[Path, Manifest]
    vocab_size: int
    dropped_documents: int


def build_dataset(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "webdataset",
    tokenizer: str = "bytes",
    workers: int = 1,
    shard_megabytes: float = 128,
    validation_fraction: float = 0.0,
    bpe_training_megabytes: float = 256,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Builds a data set from text; `out` appears when everything is on disk, and not before.

    Without `validation_fraction`, `out` is the data set. With it, `out/train` and `out/validation` are one each. The
    documents held out are whole, taken with all their copies in the order of their texts' hashes, as many as fit into
    the fraction; one too large is passed over until half of it is filled. Either side gets one or more.

    Args:
        sources: Text files, JSONL files and directories (`data_pipeline.sources` tells how they are read).
        out: Directory to make. It must not exist, or be empty.
        format: Storage format of the shards, a key of `data_pipeline.shards.WRITERS`.
        tokenizer: `bytes`, `bpe:FILE`, or `train-bpe:VOCAB`, trained on the documents that are not for validation.
        workers: Threads that tokenize; does not change the result.
        shard_megabytes: Largest size of a shard in MB (10^6 bytes); a larger document has a shard of its own.
        validation_fraction: Share of the text held out, 0 to below 1; 0 makes no splits.
        bpe_training_megabytes: Text that a BPE is trained on at most, in MB; from more text a sample of the documents
            is taken by content hash.
        overwrite: Replace a data set at `out`; anything else there is still refused.
        progress: Called after each document.

    Raises:
        UserError: A setting, a source or `out` cannot be used, or the disk refuses.
    """
    _check_settings(format, workers, shard_megabytes, validation_fraction, bpe_training_megabytes)
    target = Path(out)
    files = find_files(sources)
    _check_target(target, files, overwrite)
    wanted_vocabulary = training_vocab_size(tokenizer)
    chosen = None if wanted_vocabulary is not None else make_tokenizer(tokenizer)

    splits: tuple[str | None, ...] = (None,)
    validation: set[int] = set()
    scan: _Scan | None = None
    if validation_fraction or chosen is None:
        scan = _scan(files, progress)
        if validation_fraction:
            splits, validation = SPLITS, _validation_documents(scan, validation_fraction)
        if wanted_vocabulary is not None:
            sample = _training_sample(scan, validation, bpe_training_megabytes)
            texts = (document.text for document, kept in zip(_with_text(files), sample, strict=False) if kept)
            chosen = train_bpe(texts, wanted_vocabulary)
    assert chosen is not None
    settings = {
        "format": format,
        "tokenizer": tokenizer.partition(":")[0] if tokenizer.startswith("bpe:") else tokenizer,
        "shard_megabytes": float(shard_megabytes),
        "validation_fraction": float(validation_fraction),
        "bpe_training_megabytes": float(bpe_training_megabytes),
    }
    try:
        with _new_directory(target.resolve(), overwrite) as directory:
            parts = [_DatasetWriter(directory, split, chosen, settings) for split in splits]
            written, dropped = _write(parts, validation, _tokenized(files, chosen, workers), progress)
            if written == 0:
                raise UserError(f"the sources hold no text ({dropped} empty documents); nothing was built")
            if scan is not None and written != len(scan.sizes):
                raise UserError("the sources changed while they were read; build again when they are at rest")
            # Empty documents belong to no split; each data set counts them all.
            manifests = {target / (part.split or ""): part.finish(dropped) for part in parts}
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", exit_code=1) from error
    return BuildReport(manifests, chosen.vocab_size, dropped)


def _check_settings(
    format: str, workers: int, shard_megabytes: float, validation_fraction: float, bpe_training_megabytes: float
) -> None:
    if format not in WRITERS:
        raise UserError(f"format {format!r} cannot be written; choose {' or '.join(WRITERS)}")
    if workers < 1:
        raise UserError(f"workers is {workers}; give 1 or more")
    if not shard_megabytes > 0:
        raise UserError(f"shard_megabytes is {shard_megabytes}; give a size above 0")
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction is {validation_fraction}; give a share from 0 to below 1")
    if not bpe_training_megabytes > 0:
        raise UserError(f"bpe_training_megabytes is {bpe_training_megabytes}; give a size above 0")


def _check_target(target: Path, files: Sequence[SourceFile], overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"out {target} is a file; name a directory")
    if target.is_dir() and any(target.iterdir()):
        is_dataset = any((target / part / MANIFEST_FILE).is_file() for part in ("", *SPLITS))
        if not is_dataset:
            raise UserError(f"out {target} holds other files; name a directory that is new or empty")
        if not overwrite:
            raise UserError(f"out {target} holds a data set already; name another directory, or say --overwrite")
        inside = next((file.path for file in files if file.path.resolve().is_relative_to(target.resolve())), None)
        if inside is not None:
            raise UserError(f"source {inside} lies in {target}, which --overwrite would delete; move it out")


@dataclass(frozen=True)
class _Scan:
    """Content hash (uint64) and UTF-8 bytes of each document that has text."""

    hashes: NDArray[np.uint64]
    sizes: NDArray[np.int64]


def _with_text(files: Sequence[SourceFile]) -> Iterator[Document]:
    return (document for document in read_documents(files) if document.text)


def _scan(files: Sequence[SourceFile], progress: Progress | None) -> _Scan:
    hashes, sizes, total = [], [], 0
    for document in _with_text(files):
        encoded = document.text.encode("utf-8")
        hashes.append(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little"))
        sizes.append(len(encoded))
        total += len(encoded)
        if progress:
            progress("reading", len(sizes), total)
    return _Scan(np.array(hashes, dtype=np.uint64), np.array(sizes, dtype=np.int64))


def _validation_documents(scan: _Scan, fraction: float) -> set[int]:
    """Documents held out: in the order of their hashes, as many as fit into the fraction of all text."""
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


def _training_sample(scan: _Scan, validation: set[int], megabytes: float) -> NDArray[np.bool_]:
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


def _write(
    parts: Sequence["_DatasetWriter"],
    validation: set[int],
    documents: Iterator[tuple[Document, int, TokenIds]],
    progress: Progress | None,
) -> tuple[int, int]:
    """Gives each document to its data set (the second one holds those for validation); counts kept and dropped."""
    written = dropped = text_bytes = 0
    for document, size, tokens in documents:
        if len(tokens) == 0:
            dropped += 1
            continue
        parts[written in validation].add(document.name, size, tokens)
        written += 1
        text_bytes += size
        if progress:
            progress("writing", written, text_bytes)
    return written, dropped


def _tokenized(
    files: Sequence[SourceFile], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Document, int, TokenIds]]:
    """(document, bytes of its text, tokens) in the order of the documents, with bounded work under way."""

    def encode(document: Document) -> tuple[int, TokenIds]:
        return len(document.text.encode("utf-8")), tokenizer.encode(document.text)

    waiting: deque[tuple[Document, Future[tuple[int, TokenIds]]]] = deque()
    characters = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
        for document in read_documents(files):
            waiting.append((document, pool.submit(encode, document)))
            characters += len(document.text)
            while len(waiting) > 64 * workers or (characters > _IN_FLIGHT_CHARACTERS and len(waiting) > 1):
                first, future = waiting.popleft()
                characters -= len(first.text)
                yield first, *future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, *future.result()


class _DatasetWriter:
    """Writes one data set: the shards as documents come, then the tokenizer, the columns and the manifest."""

    def __init__(self, root: Path, split: str | None, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
        self._directory = root / split if split else root
        self._directory.mkdir(exist_ok=True)
        self.split = split
        self._tokenizer = tokenizer
        self._settings = settings
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        writer = WRITERS[settings["format"]]
        self._shards = writer(self._directory, self._dtype, int(settings["shard_megabytes"] * 1e6))
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._names: list[str] = []

    def add(self, name: str, text_bytes: int, tokens: TokenIds) -> None:
        place = self._shards.add(len(self._rows), name, text_bytes, tokens)
        self._rows.append((place.shard, place.offset, len(tokens), text_bytes, place.checksum))
        self._names.append(name)

    def finish(self, dropped_documents: int) -> Manifest:
        shards = self._shards.close()
        table = np.array(self._rows, dtype=np.int64).reshape(-1, len(NUMBER_COLUMNS))
        columns = {key: table[:, i].astype(dtype) for i, (key, dtype) in enumerate(NUMBER_COLUMNS.items())}
        save_columns(self._directory, columns, self._names)
        self._tokenizer.save(self._directory)
        manifest = Manifest(
            storage=self._settings["format"],
            split=self.split,
            tokenizer_sha256=self._tokenizer.sha256,
            vocab_size=self._tokenizer.vocab_size,
            token_dtype=self._dtype.str,
            documents=len(self._rows),
            tokens=int(columns["tokens"].sum()),
            text_bytes=int(columns["bytes"].sum()),
            dropped_documents=dropped_documents,
            shards=tuple(shards),
            settings=self._settings,
            fingerprint=fingerprint(self._tokenizer.sha256, self._dtype.str, columns),
        )
        manifest.save(self._directory)
        for name in (COLUMNS_FILE, TOKENIZER_FILE, MANIFEST_FILE, ""):
            _sync(self._directory / name)
        return manifest


@contextmanager
def _new_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `target` that takes its place, synced to disk, when the block ends without an error.

    What a killed build left there is removed; a build that still runs is recognised by its lock.
    """
    partial = target.with_name(target.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and not (partial / _MARKER).exists():
        raise UserError(f"{partial} is in the way and is not an unfinished build; move it away")
    partial.mkdir(exist_ok=True)
    with (partial / _MARKER).open("w") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another build is writing {target}; wait for it, or name another directory") from None
        except OSError:
            pass  # a file system without locks: two builds of one target at once are then the user's to avoid
        try:
            for left_over in partial.iterdir():
                if left_over.name != _MARKER:
                    shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
            yield partial
            (partial / _MARKER).unlink()
            _sync(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if overwrite and target.exists():
            replaced = target.with_name(f"{target.name}.replaced-{os.getpid()}")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
