# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`build_dataset`: documents → tokens → shards, complete or absent, with the same bytes every time.

Data flow: the calling thread reads documents in order, long ones in parts; a pool of threads turns text into tokens
(the tokenizers' engines release the interpreter's lock); the calling thread takes the results back in order and
writes. So the number of workers changes the time and nothing else. With splits, or a tokenizer to train, the sources
are read once more beforehand, to know every document's content hash.

A killed build is taken up where its last whole shard ended; the result has the bytes of one that was never stopped.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.build_journal import Journal, building
from data_pipeline.dataset_writer import DatasetWriter
from data_pipeline.errors import UserError
from data_pipeline.manifest import MANIFEST_FILE, SPLITS, Manifest
from data_pipeline.payload import Payload
from data_pipeline.shards import WRITERS
from data_pipeline.sources import SourceFile, find_files
from data_pipeline.splitting import Progress, Scan, numbered_parts, scan, training_sample, validation_documents
from data_pipeline.tokenizer import ByteTokenizer, TokenIds, Tokenizer, train_bpe
from data_pipeline.tokenizer_choice import load_tokenizer, make_tokenizer, training_vocab_size

_IN_FLIGHT_CHARACTERS = 64 << 20  # text waiting for the tokenizer or for the writer


@dataclass(frozen=True)
class BuildReport:
    """What a build wrote.

    Attributes:
        manifests: The data sets by path.
        vocab_size: Number of token ids.
        dropped_documents: Documents left out because they have no token.
        resumed_documents: Documents that a killed build had written already.
    """

    manifests: dict[Path, Manifest]
    vocab_size: int
    dropped_documents: int
    resumed_documents: int


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
        sources: Files and directories (`data_pipeline.sources` tells how they are read).
        out: Directory to make. It must not exist, or be empty.
        format: Storage format of the shards, a key of `data_pipeline.shards.WRITERS`.
        tokenizer: `bytes`, `bpe:FILE`, `hf:FILE` (a byte-level `tokenizer.json` of Hugging Face's library), or
            `train-bpe:VOCAB`, trained on the documents that are not for validation.
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
    trains = training_vocab_size(tokenizer) is not None
    given = None if trains else make_tokenizer(tokenizer)
    settings = {
        "format": format,
        "tokenizer": tokenizer.partition(":")[0] if tokenizer.startswith(("bpe:", "hf:")) else tokenizer,
        "shard_megabytes": float(shard_megabytes),
        "validation_fraction": float(validation_fraction),
        "bpe_training_megabytes": float(bpe_training_megabytes),
    }
    try:
        with building(target.resolve(), overwrite) as journal:
            journal.open(_identity(settings, given, files))
            scanned: Scan | None = None
            validation: set[int] = set()
            if validation_fraction or trains:
                scanned = _scan_once(journal, files, progress)
            if scanned is not None and validation_fraction:
                validation = validation_documents(scanned, validation_fraction)
            if scanned is not None and trains:
                sample = set(training_sample(scanned, validation, bpe_training_megabytes).nonzero()[0].tolist())
                chosen = _train_once(journal, files, tokenizer, sample)
            else:
                assert given is not None
                chosen = given
            splits: tuple[str | None, ...] = SPLITS if validation_fraction else (None,)
            parts = [DatasetWriter(journal.directory, split, chosen, settings, journal) for split in splits]
            resumed = sum(part.restored_documents for part in parts)
            seen, with_text = _write(parts, validation, files, chosen, workers, progress)
            written = sum(part.documents for part in parts)
            if written == 0:
                raise UserError(f"the sources hold no text ({seen} empty documents); nothing was built")
            if scanned is not None and with_text != len(scanned.sizes):
                raise UserError("the sources changed while they were read; build again when they are at rest")
            # Empty documents belong to no split; each data set counts them all.
            manifests = {target / (part.split or ""): part.finish(seen - written) for part in parts}
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", exit_code=1) from error
    return BuildReport(manifests, chosen.vocab_size, seen - written, resumed)


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


def _identity(settings: dict[str, Any], tokenizer: Tokenizer | None, files: Sequence[SourceFile]) -> dict[str, Any]:
    """What a build must share with a killed one to go on from it."""
    status = [(file, file.path.stat()) for file in files]
    return {
        "version": 1,
        "settings": settings,
        "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
        "sources": [[file.name, str(file.path.resolve()), s.st_size, s.st_mtime_ns] for file, s in status],
    }


def _scan_once(journal: Journal, files: Sequence[SourceFile], progress: Progress | None) -> Scan:
    kept = journal.product("scan.npz")
    if kept is not None:
        return Scan.from_bytes(kept.read_bytes())
    scanned = scan(files, progress)
    journal.keep("scan.npz", scanned.to_bytes())
    return scanned


def _train_once(journal: Journal, files: Sequence[SourceFile], spec: str, sample: set[int]) -> Tokenizer:
    kept = journal.product("tokenizer.json")
    if kept is not None:
        return load_tokenizer(kept)
    wanted = training_vocab_size(spec)
    assert wanted is not None
    trained = train_bpe(_texts(files, sample), wanted)
    journal.keep("tokenizer.json", trained.file_bytes)
    return trained


def _texts(files: Sequence[SourceFile], sample: set[int]) -> Iterator[str]:
    for ordinal, part in numbered_parts(files):
        if ordinal in sample:
            yield _text(part.name, part.content)


def _text(name: str, content: str | bytes) -> str:
    if isinstance(content, bytes):
        raise UserError(f"source {name} is an image, whose tokens are bytes; build images with --tokenizer bytes")
    return content


class _Piece(NamedTuple):
    """Text that is tokenized by itself: a whole document, or a part of one that ends where tokens end."""

    ordinal: int
    name: str
    content: str | bytes
    last: bool


def _pieces(files: Sequence[SourceFile], tokenizer: Tokenizer) -> Iterator[_Piece]:
    """Documents whole or in parts; the parts have the tokens of the whole."""
    rest = ""
    for ordinal, part in numbered_parts(files):
        if isinstance(part.content, bytes):
            if not isinstance(tokenizer, ByteTokenizer):
                _text(part.name, part.content)
            yield _Piece(ordinal, part.name, part.content, True)
            continue
        text = rest + part.content
        cut = len(text) if part.last else tokenizer.safe_cut(text)
        rest = text[cut:]
        if cut or part.last:
            yield _Piece(ordinal, part.name, text[:cut], part.last)


def _write(
    parts: Sequence[DatasetWriter],
    validation: set[int],
    files: Sequence[SourceFile],
    tokenizer: Tokenizer,
    workers: int,
    progress: Progress | None,
) -> tuple[int, int]:
    """Gives each document to its data set (the second one holds those for validation).

    Returns the number of documents seen, and of those that have text.
    """
    counts = _Counts()

    def wanted(piece: _Piece) -> bool:
        counts.saw(piece)
        return piece.ordinal > parts[piece.ordinal in validation].through

    payload, text_bytes, documents = Payload(parts[0].dtype), 0, 0
    for piece, size, tokens in _tokenized(filter(wanted, _pieces(files, tokenizer)), tokenizer, workers):
        payload.append(tokens, size)
        text_bytes += size
        if not piece.last:
            continue
        with payload:
            if payload.tokens:
                parts[piece.ordinal in validation].add(piece.ordinal, piece.name, payload)
                documents += 1
                if progress:
                    progress("writing", documents, text_bytes)
        payload = Payload(parts[0].dtype)
    return counts.seen, counts.with_text


@dataclass
class _Counts:
    seen: int = 0
    with_text: int = 0

    def saw(self, piece: _Piece) -> None:
        self.seen += piece.last
        self.with_text += piece.last and piece.ordinal >= 0


def _tokenized(pieces: Iterator[_Piece], tokenizer: Tokenizer, workers: int) -> Iterator[tuple[_Piece, int, TokenIds]]:
    """(piece, bytes of its text, tokens) in the order of the pieces, with bounded work under way."""

    def encode(content: str | bytes) -> tuple[int, TokenIds]:
        if isinstance(content, bytes):
            return len(content), ByteTokenizer.encode_bytes(content)
        return len(content.encode("utf-8")), tokenizer.encode(content)

    waiting: deque[tuple[_Piece, Future[tuple[int, TokenIds]]]] = deque()
    characters = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
        for piece in pieces:
            waiting.append((piece, pool.submit(encode, piece.content)))
            characters += len(piece.content)
            while len(waiting) > 64 * workers or (characters > _IN_FLIGHT_CHARACTERS and len(waiting) > 1):
                first, future = waiting.popleft()
                characters -= len(first.content)
                yield first, *future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, *future.result()
