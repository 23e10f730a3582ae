# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`build_dataset`: documents → tokens → shards, complete or absent, with the same bytes every time.

Data flow: the calling thread reads documents in order, long ones in parts; a pool of threads turns text into tokens
(the tokenizers' engines release the interpreter's lock); the calling thread takes the results back in order and
writes. So the number of workers changes the time and nothing else. With splits, or a tokenizer to train, the sources
are read once more beforehand, to know every document's content hash.

A build that was killed, or stopped at a record that cannot be read, is taken up where its last whole shard ended; the
result has the bytes of one that was never stopped. Where sources were mended meanwhile, the shards are kept whose
documents are still the same.
"""

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.build_journal import MARKER, Journal, building
from data_pipeline.dataset_writer import DatasetWriter
from data_pipeline.errors import UserError
from data_pipeline.loss_weights import WEIGHT_DTYPE, token_weights
from data_pipeline.losses import Losses
from data_pipeline.manifest import COLUMNS_FILE, MANIFEST_FILE, SPLITS, Manifest
from data_pipeline.mds import MDS_INDEX
from data_pipeline.payload import Payload
from data_pipeline.piped import received
from data_pipeline.records import Corpus, RecordKeys
from data_pipeline.shards import WRITERS
from data_pipeline.sources import SourceFile, Survey, find_files, printable
from data_pipeline.splitting import Progress, Scan, scan, summed_parts, training_sample, validation_documents
from data_pipeline.tokenizer import TOKENIZER_FILE, Tokenizer, train_bpe
from data_pipeline.tokenizer_choice import load_tokenizer, make_tokenizer, training_vocab_size
from data_pipeline.tokenizing import Piece, pieces, texts, tokenized

ON_BAD_RECORD = ("stop", "skip")
_LARGEST_SHARD = 1_000_000  # MB


@dataclass(frozen=True)
class BuildReport:
    """What a build wrote.

    Attributes:
        manifests: The data sets by path.
        vocab_size: Number of token ids.
        dropped_documents: Documents left out because they have no token.
        resumed_documents: Documents that an unfinished build had written already.
        sources: What was read as what, and what was left out.
        bad_records: Records left out because they cannot be read.
        bad_record_places: The first of them: file, line and what is wrong.
        unread_weights: Records that have loss weights under the usual key, which were not asked for.
    """

    manifests: dict[Path, Manifest]
    vocab_size: int
    dropped_documents: int
    resumed_documents: int
    sources: Survey
    bad_records: int
    bad_record_places: tuple[str, ...]
    unread_weights: int


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
    text_key: str = "text",
    id_key: str | None = None,
    loss_weights_key: str | None = None,
    on_bad_record: str = "stop",
    overwrite: bool = False,
    progress: Progress | None = None,
    told: Callable[[Survey], None] | None = None,
) -> BuildReport:
    """Builds a data set from text; `out` appears when everything is on disk, and not before.

    Without `validation_fraction`, `out` is the data set. With it, `out/train` and `out/validation` are one each. The
    documents held out are whole, taken with all their copies in the order of their texts' hashes, as many as fit into
    the fraction; one too large is passed over until half of it is filled. Either side gets one or more.

    Args:
        sources: Files, directories and pipes (`data_pipeline.sources` tells how they are read).
        out: Directory to make. It must not exist, or be empty.
        format: Storage format of the shards, a key of `data_pipeline.shards.WRITERS`.
        tokenizer: `bytes`, `bpe:FILE`, `hf:FILE` (a `tokenizer.json` of Hugging Face's library that gives back every
            document), or `train-bpe:VOCAB`, trained on the documents that are not for validation.
        workers: Threads that tokenize; does not change the result.
        shard_megabytes: Largest size of a shard in MB (10^6 bytes); a larger document has a shard of its own.
        validation_fraction: Share of the text held out, 0 to below 1; 0 makes no splits.
        bpe_training_megabytes: Text that a BPE is trained on at most, in MB; from more text a sample of the documents
            is taken by content hash.
        text_key: Key, or column, that has the text of a record.
        id_key: Key, or column, that has its name for people; None: `id`, where there is one.
        loss_weights_key: Key of a JSON record's loss weights, `[[start, end, weight], ...]`: ranges of the text's
            characters, from 0, without their ends, in order, and weights from 0 to 1. What is in no range has weight 0;
            a document without the key has weight 1 throughout. None: weights are not read, and the data set has none.
        on_bad_record: `stop` at a record that cannot be read, or `skip` such records: they are counted, and the count
            and the first places are in the report and in the manifest's settings.
        overwrite: Replace a data set at `out`; anything else there is still refused.
        progress: Called as the build goes on, see `Progress`.
        told: Called once with what the sources are taken for, before they are read.

    Raises:
        UserError: A setting, a source or `out` cannot be used, or the disk refuses.
    """
    _check_settings(format, workers, shard_megabytes, validation_fraction, bpe_training_megabytes)
    if on_bad_record not in ON_BAD_RECORD:
        raise UserError(f"on_bad_record is {on_bad_record!r}; choose {' or '.join(ON_BAD_RECORD)}")
    target = Path(out)
    survey = find_files(sources)
    _check_target(target, survey.files, overwrite)
    trains = training_vocab_size(tokenizer) is not None
    given = None if trains else make_tokenizer(tokenizer)
    settings = {
        "format": format,
        "tokenizer": tokenizer.partition(":")[0] if tokenizer.startswith(("bpe:", "hf:")) else tokenizer,
        "shard_megabytes": float(shard_megabytes),
        "validation_fraction": float(validation_fraction),
        "bpe_training_megabytes": float(bpe_training_megabytes),
    }
    keys = RecordKeys(
        printable(text_key), id_key and printable(id_key), loss_weights_key and printable(loss_weights_key)
    )
    if (keys.text, keys.id) != (RecordKeys.text, RecordKeys.id):
        settings |= {"text_key": keys.text, "id_key": keys.id}
    if keys.loss_weights is not None:
        settings["loss_weights_key"] = keys.loss_weights
    try:
        with building(target.resolve(), overwrite) as journal, received(survey, journal.directory, progress) as survey:
            if told:
                told(survey)
            corpus = Corpus(survey.files, keys, on_bad_record == "skip")
            journal.open(
                {"version": 2, "settings": settings, "tokenizer_sha256": given.sha256 if given else None},
                [_identity(file) for file in survey.files],
                lambda records: _unchanged(corpus, records),
            )
            scanned: Scan | None = None
            validation: set[int] = set()
            if validation_fraction or trains:
                scanned = _scan_once(journal, corpus, progress)
            if scanned is not None and validation_fraction:
                validation = validation_documents(scanned, validation_fraction)
            if scanned is not None and trains:
                sample = set(training_sample(scanned, validation, bpe_training_megabytes).nonzero()[0].tolist())
                chosen = _train_once(journal, corpus, tokenizer, sample, progress)
            else:
                assert given is not None
                chosen = given
            splits: tuple[str | None, ...] = SPLITS if validation_fraction else (None,)
            parts = [DatasetWriter(journal.directory, split, chosen, settings, journal) for split in splits]
            resumed = sum(part.restored_documents for part in parts)
            seen, with_text = _write(parts, validation, corpus, chosen, Losses(chosen, tokenizer), workers, progress)
            written, bad = sum(part.documents for part in parts), corpus.bad
            if written == 0:
                left_out = f" and {bad.count} bad ones, the first in {bad.places[0]}" if bad.count else ""
                raise UserError(f"the sources hold no text ({seen} empty documents{left_out}); nothing was built")
            if keys.loss_weights is not None and not corpus.weighted:
                raise UserError(
                    f'--loss-weights-key is "{keys.loss_weights}", which no record has; name the key of the weights, '
                    "or leave the option out"
                )
            if scanned is not None and with_text != len(scanned.sizes):
                raise UserError("the sources changed while they were read; build again when they are at rest")
            if bad.skip:
                settings |= {"on_bad_record": "skip", "bad_records": bad.count, "bad_record_places": bad.places}
            # Empty documents belong to no split; each data set counts them all, and bad records too.
            manifests = {target / (part.split or ""): part.finish(seen - written, settings) for part in parts}
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", exit_code=1) from error
    places, unread = tuple(bad.places), corpus.unread_weights
    return BuildReport(manifests, chosen.vocab_size, seen - written, resumed, survey, bad.count, places, unread)


def _check_settings(
    format: str, workers: int, shard_megabytes: float, validation_fraction: float, bpe_training_megabytes: float
) -> None:
    if format not in WRITERS:
        raise UserError(f"format {format!r} cannot be written; choose {' or '.join(WRITERS)}")
    if workers < 1:
        raise UserError(f"workers is {workers}; give 1 or more")
    if not 0 < shard_megabytes <= _LARGEST_SHARD:
        raise UserError(f"shard_megabytes is {shard_megabytes}; give a size above 0, up to {_LARGEST_SHARD:,}")
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation_fraction is {validation_fraction}; give a share from 0 to below 1")
    if not bpe_training_megabytes > 0:
        raise UserError(f"bpe_training_megabytes is {bpe_training_megabytes}; give a size above 0")


def _check_target(target: Path, files: Sequence[SourceFile], overwrite: bool) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        above = next(place for place in target.parents if place.exists())
        raise UserError(f"out {target}: {above} is a file; name a directory") from None
    except (OSError, ValueError) as error:
        raise UserError(f"out {target} cannot be used ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISDIR(mode):
        raise UserError(f"out {target}: {target} is a file; name a directory")
    if any(target.iterdir()):
        is_dataset = any((target / part / MANIFEST_FILE).is_file() for part in ("", *SPLITS))
        if not is_dataset:
            raise UserError(f"out {target} holds other files; name a directory that is new or empty")
        if not overwrite:
            raise UserError(f"out {target} holds a data set already; name another directory, or say --overwrite")
        inside = next((file.shown for file in files if file.path.resolve().is_relative_to(target.resolve())), None)
        if inside is not None:
            raise UserError(f"source {inside} lies in {target}, which --overwrite would delete; move it out")
        _check_replaceable(target)


def _check_replaceable(target: Path) -> None:
    """Holds what `--overwrite` would delete to what a build has written there.

    Raises:
        UserError: There are other files, or tokens that somebody else wrote.
    """
    written = {*SPLITS, MARKER}
    for part in ("", *SPLITS):
        if not (target / part / MANIFEST_FILE).is_file():
            continue
        try:
            manifest = Manifest.load(target / part)
        except UserError as error:
            mend = "nobody can tell what --overwrite would delete; move it away"
            raise UserError(f"out {target} holds a data set that cannot be read ({error}): {mend}") from None
        if "adopted" in manifest.settings:
            raise UserError(f"out {target} holds tokens that were adopted, not built; name another directory")
        names = (MANIFEST_FILE, COLUMNS_FILE, TOKENIZER_FILE, MDS_INDEX, *(shard.name for shard in manifest.shards))
        written |= {str(Path(part, name)) for name in names}
    there = (str(path.relative_to(target)) for path in target.rglob("*"))
    others = sorted(name for name in there if name not in written)
    if others:
        raise UserError(
            f"out {target} holds {others[0]} beside its data set, which --overwrite would delete"
            + (f", and {len(others) - 1:,} more" if len(others) > 1 else "")
            + "; move them out"
        )


def _identity(file: SourceFile) -> list[Any]:
    """What tells that a source is the same as in an unfinished build, without reading it."""
    if file.digest is not None:
        return [file.name, file.digest]
    status = file.path.stat()
    return [file.name, file.kind, printable(str(file.path.resolve())), status.st_size, status.st_mtime_ns]


def _unchanged(corpus: Corpus, records: Sequence[dict[str, Any]]) -> int:
    """How many of these finished shards, from the first, hold what the sources begin with today."""
    waiting = list(records)
    count = 0
    for ordinal, part, digest in summed_parts(corpus):
        if not waiting:
            break
        if part.last and ordinal == waiting[0]["through"]:
            if digest != waiting.pop(0)["digest"]:
                break
            count += 1
    return count


def _scan_once(journal: Journal, corpus: Corpus, progress: Progress | None) -> Scan:
    kept = journal.product("scan.npz")
    if kept is not None:
        return Scan.from_bytes(kept.read_bytes())
    scanned = scan(corpus, progress)
    journal.keep("scan.npz", scanned.to_bytes())
    return scanned


def _train_once(journal: Journal, corpus: Corpus, spec: str, sample: set[int], progress: Progress | None) -> Tokenizer:
    kept = journal.product("tokenizer.json")
    if kept is not None:
        return load_tokenizer(kept)
    wanted = training_vocab_size(spec)
    assert wanted is not None
    trained = train_bpe(texts(corpus, sample), wanted, progress)
    journal.keep("tokenizer.json", trained.file_bytes)
    return trained


def _write(
    parts: Sequence[DatasetWriter],
    validation: set[int],
    corpus: Corpus,
    tokenizer: Tokenizer,
    losses: Losses,
    workers: int,
    progress: Progress | None,
) -> tuple[int, int]:
    """Gives each document to its data set (the second one holds those for validation).

    Returns the number of documents seen, and of those that have text.
    """
    counts = _Counts()

    def wanted(piece: Piece) -> bool:
        counts.saw(piece)
        return piece.ordinal > parts[piece.ordinal in validation].through

    payload, weights, text_bytes, documents = Payload(parts[0].dtype), Payload(WEIGHT_DTYPE), 0, 0
    for piece, size, tokens, lost in tokenized(filter(wanted, pieces(corpus, tokenizer)), tokenizer, workers):
        losses.saw(piece.name, piece.content, tokens, lost, piece.last)
        if losses.count:
            continue
        payload.append(tokens, size)
        if parts[0].weighted:
            try:
                weights.append(token_weights(piece.content, tokens, piece.weights, tokenizer), size)
            except ValueError as error:
                raise UserError(f"document {piece.name}: {error}") from None
        text_bytes += size
        if not piece.last:
            continue
        with payload, weights:
            if payload.tokens:
                own = weights if parts[0].weighted else None
                parts[piece.ordinal in validation].add(piece.ordinal, piece.name, payload, piece.digest, own)
                documents += 1
                if progress:
                    progress("writing", documents, text_bytes)
        payload, weights = Payload(parts[0].dtype), Payload(WEIGHT_DTYPE)
    losses.refuse()
    return counts.seen, counts.with_text


@dataclass
class _Counts:
    seen: int = 0
    with_text: int = 0

    def saw(self, piece: Piece) -> None:
        self.seen += piece.last
        self.with_text += piece.last and piece.ordinal >= 0
