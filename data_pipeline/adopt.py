# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`adopt`: makes a data set of tokens that somebody else wrote, where they lie.

All that a store needs is where each document's ids begin and what they sum to, so files that hold them side by side
stay as they are: MDS shards, Megatron's `.bin`, datatrove's `.ds`, rows of ids (`data_pipeline.token_files`). Only
Parquet is copied. The manifest is written last: until then there is no data set.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline import addresses
from data_pipeline.adopt_parquet import copy_parquet
from data_pipeline.build_journal import building
from data_pipeline.errors import UserError
from data_pipeline.far import is_address
from data_pipeline.files import sync
from data_pipeline.hf_tokenizer import number_tokenizer
from data_pipeline.loss_weights import USUAL_KEY
from data_pipeline.manifest import (
    CHUNK_BYTES,
    COLUMNS_FILE,
    MANIFEST_FILE,
    NUMBER_COLUMNS,
    Manifest,
    ShardInfo,
    fingerprint,
    save_columns,
)
from data_pipeline.mds import MDS_INDEX, MDSShard, array_row, read_mds_index
from data_pipeline.token_files import Reading, TokenFile, read_datatrove, read_megatron, read_rows
from data_pipeline.token_types import shown, type_of
from data_pipeline.tokenizer import TOKENIZER_FILE, Tokenizer
from data_pipeline.tokenizer_choice import make_tokenizer

_BLOCK_BYTES = 512 * CHUNK_BYTES  # of a document in memory at once
_READERS: dict[str, Callable[[Path, str, Reading], TokenFile]] = {
    ".bin": read_megatron,
    ".ds": read_datatrove,
    ".npy": read_rows,
}
_INDEXES = {".bin": ".idx", ".ds": ".ds.index", ".npy": ".csv.gz"}
_PARQUET = ".parquet"


def adopt(
    source: str | Path,
    *,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    out: str | Path | None = None,
    column: str | None = None,
    name_column: str | None = None,
    dtype: str | None = None,
    eos: int | None = None,
) -> Manifest:
    """Makes a data set of tokens that somebody else wrote; every file is read once, for the checks and the checksums.

    Args:
        source: A directory of MDS shards with their `index.json`; or a directory of files of one of the other kinds, or
            one such file.
        tokenizer: What the tokens were made with, as for `build_dataset`; not one to train.
        vocab_size: Instead of it, where it is not at hand: the number of its ids.
        out: Directory to make: links to the files, or copies of Parquet files, and the manifest. None: the manifest is
            written into the directory `source`.
        column: The column of MDS or Parquet with a document's ids; None: `tokens` or `input_ids`.
        name_column: A column with names for people; None: documents are named by their number.
        dtype: Type of a stored id, where the files do not tell it; None: they do, or the vocabulary does.
        eos: The id that ends documents, where nothing else tells where they end.

    Raises:
        UserError: There is nothing to adopt, it is not what it seems, or there are ids outside the vocabulary.
    """
    if (tokenizer is None) == (vocab_size is None):
        raise UserError("give the tokenizer that made the tokens (--tokenizer), or how many ids it has (--vocab-size)")
    chosen = number_tokenizer(vocab_size) if vocab_size is not None else make_tokenizer(str(tokenizer))
    reading = Reading(chosen.start_token_id, dtype, eos)
    try:
        kind, root, paths = _find(source)
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror or error})") from None
    for option, given, kinds in (
        ("--column", column, ("mds", _PARQUET)),
        ("--name-column", name_column, ("mds", _PARQUET)),
        ("--dtype", dtype, ("mds", *_READERS)),
        ("--eos", eos, (".npy",)),
    ):
        if given is not None and kind not in kinds:
            raise UserError(f"{option} is {given}, which {kind} files have no use for; leave it out")
    settings = {"adopted": kind, "column": column, "tokenizer": str(tokenizer or "numbers").partition(":")[0]}

    def read(made: Path | None) -> list[TokenFile]:
        if kind == "mds":
            return _mds_files(read_mds_index(root), column or "tokens", name_column, reading)
        names = [path.relative_to(root).as_posix() for path in paths]
        if kind == _PARQUET:
            assert made is not None
            wanted = column or "input_ids"
            ids = "<u2" if chosen.vocab_size <= 1 << 16 else "<u4"
            return [
                copy_parquet(path, made / f"{name}.tokens", name, np.dtype(ids), reading.ids, wanted, name_column)
                for path, name in zip(paths, names, strict=True)
            ]
        return [_READERS[_kind_of(path)](path, name, reading) for path, name in zip(paths, names, strict=True)]

    if out is None:
        if kind == _PARQUET or not Path(source).is_dir():
            raise UserError(
                f"{source}: "
                + ("Parquet is copied" if kind == _PARQUET else "one file of a directory is adopted elsewhere")
                + "; name the directory to make with --out"
            )
        with _writing(root, chosen):
            return _describe(root, read(None), chosen, tokenizer is not None, kind, settings, source)
    target = Path(out).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {out} holds something already; name a directory that is new or empty")
    try:
        with building(target, overwrite=False) as journal:
            made = journal.directory
            _clear(made)
            files = read(made)
            for file in files:
                if not file.path.is_relative_to(made):
                    (made / file.name).parent.mkdir(parents=True, exist_ok=True)
                    (made / file.name).symlink_to(file.path.resolve())
            return _describe(made, files, chosen, tokenizer is not None, kind, settings, source)
    except OSError as error:
        raise UserError(f"--out {out}: {error.filename or target}: {error.strerror or error}", exit_code=1) from None


def _find(source: str | Path) -> tuple[str, Path, list[Path]]:
    """The kind of the files, the directory that their names are relative to, and the files (none for MDS)."""
    if is_address(source):
        raise UserError(
            f"{addresses.shown(source)}: files are adopted where they lie on this machine; copy them here first"
        )
    root = Path(source)
    if (root / MANIFEST_FILE).exists():
        raise UserError(f"{root} is a data set already; delete its {MANIFEST_FILE} to adopt it anew")
    if (root / MDS_INDEX).is_file():
        return "mds", root, []
    if root.is_dir():
        there = sorted(_files_in(root))
        paths = [path for path in there if path.suffix in _READERS or path.suffix == _PARQUET]
    else:
        there = []
        paths = [path for path in (root, Path(f"{root}.bin"), root.with_suffix(".bin")) if path.is_file()][:1]
        paths = [root.with_suffix(".bin")] if root.suffix == ".idx" and root.is_file() else paths
        root = root.parent
    kinds = sorted({_kind_of(path) for path in paths})
    if not paths or not set(kinds) <= {*_READERS, _PARQUET}:
        raise UserError(
            f"no tokens of a known kind at {source}: looked for MDS shards (with {MDS_INDEX}), .bin with .idx, .ds, "
            ".npy and .parquet"
        )
    if len(kinds) > 1:
        raise UserError(f"{source} holds files of several kinds ({', '.join(kinds)}); adopt one kind at a time")
    ending, found = _INDEXES.get(kinds[0]), {path.with_suffix("") for path in paths}
    for path in there:
        if ending and path.name.endswith(ending) and path.with_name(path.name.removesuffix(ending)) not in found:
            raise UserError(
                f"{path} describes a file {kinds[0]} that is not beside it; fetch it too, or move {path.name} away"
            )
    return kinds[0], root, paths


def _files_in(root: Path) -> Iterator[Path]:
    """All files of a directory that are not hidden, those of linked folders too, each folder once."""

    def fail(error: OSError) -> None:
        raise error

    seen = {root.resolve()}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        inside = {name: Path(folder, name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, path in inside.items() if path not in seen]
        seen.update(inside.values())
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _kind_of(path: Path) -> str:
    """The suffix that tells how a file is read: a `.bin` file without an index is a row of ids like `.npy`."""
    return ".npy" if path.suffix == ".bin" and not path.with_suffix(".idx").exists() else path.suffix


def _mds_files(shards: list[MDSShard], column: str, name_column: str | None, reading: Reading) -> list[TokenFile]:
    if shards and reading.dtype is None and all(shard.encoding(column) == "bytes" for shard in shards):
        contents = (sample[column][1] for shard in shards for sample in shard.samples())
        reading = replace(reading, dtype=type_of(contents, reading.ids, f"{shards[0].path}: column {column}"))
    return [_mds_file(shard, column, name_column, reading) for shard in shards]


def _mds_file(shard: MDSShard, column: str, name_column: str | None, reading: Reading) -> TokenFile:
    if any(name == USUAL_KEY for name, _, _ in shard.columns):
        raise UserError(
            f"{shard.path}: has a column {USUAL_KEY}, which is not adopted, so that every token would count in the "
            f"loss; fetch the {MANIFEST_FILE} that belongs to these shards, or write them without that column"
        )
    encoding = shard.encoding(column)
    if encoding != "bytes" and encoding.split(":")[0] != "ndarray":
        raise UserError(f"{shard.path}: column {column} is {encoding}; tokens are in columns of bytes or ndarray")
    if name_column is not None and shard.encoding(name_column) != "str":
        raise UserError(f"{shard.path}: column {name_column} is {shard.encoding(name_column)}; names are str")
    starts, sizes, names, told = [], [], [], None
    for number, sample in enumerate(shard.samples()):
        offset, content = sample[column]
        head = 0
        if encoding != "bytes" and content:
            row = array_row(encoding, content)
            if row is None or (told is not None and row[1] != told):
                raise UserError(f"{shard.path}: column {column} of sample {number} is not one row of whole numbers")
            head, told = row
        starts.append(offset + head)
        sizes.append(len(content) - head)
        if name_column is not None:
            names.append(sample[name_column][1].decode("utf-8", "replace"))
    # Of a shard without a token the type is no matter.
    dtype = reading.type(told, f"{shard.path}: column {column}") or np.dtype("<u2")
    wrong = next((number for number, size in enumerate(sizes) if size % dtype.itemsize), None)
    if wrong is not None:
        raise UserError(
            f"{shard.path}: sample {wrong} has {sizes[wrong]} bytes of tokens, no whole number of {dtype.name}; give "
            "their type with --dtype"
        )
    counts = np.array(sizes, np.int64) // dtype.itemsize
    return TokenFile(shard.path, shard.name, dtype, np.array(starts, np.int64), counts, names or None)


def _describe(
    root: Path,
    files: Sequence[TokenFile],
    chosen: Tokenizer,
    is_text: bool,
    kind: str,
    settings: dict[str, Any],
    source: str | Path,
) -> Manifest:
    """Reads every document, and writes what belongs beside the files."""
    tables: list[NDArray[np.int64]] = []
    chunks: list[NDArray[np.uint32]] = []
    names: list[str] = []
    shards: list[ShardInfo] = []
    dropped = outside = 0
    filled = [file for file in files if file.counts.any()]
    if not filled:
        raise UserError(f"the {kind.lstrip('.')} files of {source} hold no token; nothing was adopted")
    dtype = filled[0].dtype
    for file in files:
        if file.dtype != dtype and file.counts.any():
            raise UserError(
                f"{filled[0].path} has ids of {dtype.name} and {file.path} of {file.dtype.name}; adopt them as two "
                "data sets, which data.path reads together"
            )
        rows = []
        with file.path.open("rb") as opened:
            for number, (start, count) in enumerate(zip(file.starts.tolist(), file.counts.tolist(), strict=True)):
                if not count:
                    dropped += 1
                    continue
                name = file.names[number] if file.names else str(len(names) + dropped)
                checksum, sums, text_bytes = _summed(opened.fileno(), file, start, count, chosen, name)
                rows.append([len(shards), start, count, text_bytes if is_text else 0, checksum])
                chunks.append(sums)
                names.append(name)
            opened.seek(0)
            digest = hashlib.sha256()
            while block := opened.read(1 << 20):
                digest.update(block)
            size = opened.tell()
        tables.append(np.array(rows, np.int64).reshape(-1, len(NUMBER_COLUMNS)))
        shards.append(ShardInfo(file.name, size, digest.hexdigest(), len(rows), int(file.counts.sum())))
        outside += file.outside
    table = np.concatenate(tables)
    columns = {key: table[:, i].astype(stored) for i, (key, stored) in enumerate(NUMBER_COLUMNS.items())}
    manifest = Manifest(
        storage="mds" if kind == "mds" else "raw",
        split=None,
        tokenizer_sha256=chosen.sha256,
        vocab_size=chosen.vocab_size,
        token_dtype=dtype.str,
        documents=len(table),
        tokens=int(columns["tokens"].sum()),
        text_bytes=int(columns["bytes"].sum()),
        dropped_documents=dropped,
        shards=tuple(shards),
        settings=settings | ({"tokens_outside_documents": outside} if outside else {}),
        fingerprint=fingerprint(chosen.sha256, dtype.str, columns),
        columns_sha256=save_columns(root, columns, np.concatenate(chunks), names),
    )
    chosen.save(root)
    sync(root / COLUMNS_FILE)
    sync(root / TOKENIZER_FILE)
    manifest.save(root)
    return manifest


def _summed(
    opened: int, file: TokenFile, start: int, count: int, chosen: Tokenizer, name: str
) -> tuple[int, NDArray[np.uint32], int]:
    """CRC-32 of a document's ids, that of each of their chunks, and the bytes of text that they stand for."""
    checksum = text_bytes = 0
    sums: list[int] = []
    for content in _blocks(opened, file.path, start, count * file.dtype.itemsize):
        ids = np.frombuffer(content, file.dtype)
        highest = int(ids.max())
        if highest >= chosen.start_token_id:
            raise UserError(
                f"{file.path}: document {name} has id {shown(highest, file.dtype)}, but the vocabulary has only ids 0 "
                f"to {chosen.start_token_id - 1}; give the tokenizer that made the tokens, or the type of its ids with "
                "--dtype"
            )
        text_bytes += chosen.text_bytes(ids, begins=not sums)
        checksum = zlib.crc32(content, checksum)
        sums += [zlib.crc32(content[at : at + CHUNK_BYTES]) for at in range(0, len(content), CHUNK_BYTES)]
    return checksum, np.array(sums, np.uint32), text_bytes


def _blocks(opened: int, path: Path, start: int, size: int) -> Iterator[memoryview]:
    for at in range(0, size, _BLOCK_BYTES):
        content = os.pread(opened, min(_BLOCK_BYTES, size - at), start + at)
        if len(content) < min(_BLOCK_BYTES, size - at):
            raise UserError(f"{path} ends before its documents do; fetch it again")
        yield memoryview(content)


@contextmanager
def _writing(root: Path, chosen: Tokenizer) -> Iterator[None]:
    """For a data set that is described in the directory of its files: nothing of theirs is replaced, nothing half left.

    Raises:
        UserError: Another tokenizer lies there, or the directory cannot be written.
    """
    beside = root / TOKENIZER_FILE
    new = [name for name in (COLUMNS_FILE, TOKENIZER_FILE) if not (root / name).exists()]
    if beside.is_file() and hashlib.sha256(beside.read_bytes()).hexdigest() != chosen.sha256:
        raise UserError(f"{beside} is another file than the data set needs there; name a directory to make with --out")
    try:
        yield
    except BaseException as error:
        for name in new:
            (root / name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{error.filename or root}: {error.strerror or error}; where {root} cannot be written, name a "
                "directory to make with --out",
                exit_code=1,
            ) from None
        raise


def _clear(directory: Path) -> None:
    """Removes what a killed adoption left."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.parent != directory or not path.name.startswith("."):
            path.unlink()
