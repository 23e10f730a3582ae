# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`manifest.json` and `documents.npz`: what a data set says of itself, written together with its shards.

The manifest names the shards with their sizes and checksums, the tokenizer, and the settings of the build. The
columns in `documents.npz` tell where each document's tokens lie. Both are written by the build and never made again
from shards, which may have been damaged since.

Tokens have two kinds of CRC-32: one a document, which stands for the document in the fingerprint, and one a chunk of
`CHUNK_BYTES` of a document, so that any part of a long document is verified without reading the whole. Loss weights
have the same. A data set with them has a format version of its own, so that a program that knows of none refuses it.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_origin

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.files import is_inside

MANIFEST_FILE = "manifest.json"
COLUMNS_FILE = "documents.npz"
FORMAT_VERSION = 2
WEIGHTED_VERSION = 3  # of a data set with loss weights
CHUNK_BYTES = 1 << 16  # tokens' bytes that share a checksum; a document's last chunk is shorter
SPLITS = ("train", "validation")
# Columns that have one number a document; their dtypes are part of the format.
NUMBER_COLUMNS = {"shard": "<i4", "offset": "<i8", "tokens": "<i8", "bytes": "<i8", "checksum": "<u4"}
# The same of loss weights; a sum is in 1/32,768ths.
WEIGHT_COLUMNS = {"weight_offset": "<i8", "weight_checksum": "<u4", "weight_sum": "<i8"}
_CHUNK_COLUMN, _WEIGHT_CHUNK_COLUMN = "chunk_checksums", "weight_chunk_checksums"
Columns = Mapping[str, NDArray[Any]]
_TOKEN_DTYPES = ("|u1", "<u1", "<u2", "<u4", "<u8")


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one shard."""

    name: str
    size_bytes: int
    sha256: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    `storage` is the format of the shards; `token_dtype` the numpy name of a stored token (`<u2` or `<u4`, of an adopted
    data set any unsigned type); `dropped_documents` counts those without a token; `settings` are those of the build
    that shape its result; `fingerprint` identifies tokenizer, tokens and loss weights, whatever the format of the
    shards; `columns_sha256` the columns, and so the place of each document; `loss_weights` tells whether there are any.
    """

    storage: str
    split: str | None
    tokenizer_sha256: str
    vocab_size: int
    token_dtype: str
    documents: int
    tokens: int
    text_bytes: int
    dropped_documents: int
    shards: tuple[ShardInfo, ...]
    settings: Mapping[str, Any]
    fingerprint: str
    columns_sha256: str
    loss_weights: bool = False

    def save(self, directory: Path) -> None:
        """Writes `manifest.json` into a data set's directory, whole or not at all."""
        version = WEIGHTED_VERSION if self.loss_weights else FORMAT_VERSION
        content = {"format": "memformer-dataset", "format_version": version, **asdict(self)}
        if not self.loss_weights:
            del content["loss_weights"]
        temporary = directory / f".{MANIFEST_FILE}.new"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / MANIFEST_FILE)

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Reads the manifest of a data set.

        Raises:
            UserError: The directory holds no data set, holds its splits, or holds one of another version.
        """
        file = directory / MANIFEST_FILE
        try:
            return cls.parse(file.read_bytes(), str(file))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(_why_no_manifest(directory)) from None
        except OSError as error:
            raise UserError(
                f"cannot read {file}: {error.strerror}; restore the file or build the data set again"
            ) from None

    @classmethod
    def parse(cls, text: bytes, file: str) -> "Manifest":
        """Reads the text of a manifest; `file` names it in errors.

        Raises:
            UserError: It is not a manifest, or one of another version.
        """
        try:
            content = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot read {file}: {error}; restore the file or build the data set again") from None
        if not isinstance(content, dict) or content.pop("format", None) != "memformer-dataset":
            raise UserError(f"{file} is not the manifest of a data set made by `memformer data build`")
        version = content.pop("format_version", None)
        if version not in (FORMAT_VERSION, WEIGHTED_VERSION):
            raise UserError(
                f"{file}: format version {version}, but this program reads versions {FORMAT_VERSION} and "
                f"{WEIGHTED_VERSION}; use the program that built it, or build the data set again"
            )
        try:
            shards = tuple(_checked(ShardInfo(**shard)) for shard in content.pop("shards"))
            _check_names([shard.name for shard in shards])
            manifest = _checked(cls(shards=shards, **content))
            if manifest.loss_weights != (version == WEIGHTED_VERSION):
                raise TypeError(f"loss_weights is {manifest.loss_weights} at format version {version}")
            return manifest
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}); restore the file or build the data set again") from None


Part = TypeVar("Part", Manifest, ShardInfo)


def number_columns(weighted: bool) -> dict[str, str]:
    """The columns that have one number a document, of a data set with or without loss weights, and their dtypes."""
    return NUMBER_COLUMNS | (WEIGHT_COLUMNS if weighted else {})


def save_columns(
    directory: Path,
    numbers: Columns,
    chunk_checksums: NDArray[np.uint32],
    names: Sequence[str],
    weight_chunk_checksums: NDArray[np.uint32] | None = None,
) -> str:
    """Writes `documents.npz`: the number columns `[documents]`, the chunks' checksums, and the names without pickle.

    Names are one blob of UTF-8 and the end of each in it. `weight_chunk_checksums` are those of the loss weights, where
    there are any. Returns the file's SHA-256.
    """
    columns: dict[str, NDArray[Any]] = {key: numbers[key].astype(dtype) for key, dtype in NUMBER_COLUMNS.items()}
    encoded = [name.encode("utf-8") for name in names]
    columns[_CHUNK_COLUMN] = chunk_checksums.astype("<u4")
    columns["name_blob"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    columns["name_ends"] = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    if weight_chunk_checksums is not None:
        columns |= {key: numbers[key].astype(dtype) for key, dtype in WEIGHT_COLUMNS.items()}
        columns[_WEIGHT_CHUNK_COLUMN] = weight_chunk_checksums.astype("<u4")
    content = io.BytesIO()
    np.savez(content, **columns)  # type: ignore[arg-type]  # a column is not `allow_pickle`
    (directory / COLUMNS_FILE).write_bytes(content.getbuffer())
    return hashlib.sha256(content.getbuffer()).hexdigest()


def load_columns(directory: Path, sha256: str, weighted: bool) -> dict[str, NDArray[Any]]:
    """Reads the columns of `documents.npz`, with those of the loss weights if it is `weighted`.

    Raises:
        UserError: The file is missing, does not have this SHA-256, or has other columns.
    """
    file = directory / COLUMNS_FILE
    try:
        content = file.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise UserError(
                f"{file} is damaged or does not belong to the manifest beside it (sha256 {found[:16]}, manifest "
                f"{sha256[:16]}); restore both files or build the data set again"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as columns:
            chunks = [_CHUNK_COLUMN, *([_WEIGHT_CHUNK_COLUMN] if weighted else [])]
            return {name: columns[name] for name in (*number_columns(weighted), *chunks, "name_blob", "name_ends")}
    except FileNotFoundError:
        raise UserError(f"{file} is missing; restore the file or build the data set again") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}); restore the file or build the data set again") from None


def fingerprint(tokenizer_sha256: str, token_dtype: str, columns: Columns) -> str:
    """32 hexadecimal digits that change with any token or loss weight, the documents' order, or the meaning of an id.

    Shards do not enter: a run may stop on one storage format and resume on another.
    """
    weighted = "weight_checksum" in columns
    version = WEIGHTED_VERSION if weighted else FORMAT_VERSION
    digest = hashlib.sha256(f"{version} {tokenizer_sha256} {token_dtype}".encode())
    for key in ("tokens", "checksum", *(["weight_checksum"] if weighted else [])):
        digest.update(np.ascontiguousarray(columns[key], dtype=number_columns(weighted)[key]).tobytes())
    return digest.hexdigest()[:32]


def partial_of(directory: Path) -> Path:
    """Where a data set lies while it is being built."""
    return directory.with_name(f"{directory.name}.partial")


def _checked(made: Part) -> Part:
    """What was read, if each field is of its type.

    Raises:
        TypeError: One is not.
    """
    for field in fields(made):
        value, named = getattr(made, field.name), cast(Any, field.type)
        wanted = named if isinstance(named, UnionType) else get_origin(named) or named
        if not isinstance(value, wanted) or (isinstance(value, int) and value < 0):
            raise TypeError(f"{field.name} is {value!r:.40}")
    if isinstance(made, Manifest) and (made.token_dtype not in _TOKEN_DTYPES or not made.documents):
        raise TypeError(f"token_dtype is {made.token_dtype!r:.40}, documents is {made.documents}")
    return made


def _check_names(names: Sequence[str]) -> None:
    """Raises TypeError for a shard that would be read, or copied to, where no shard lies."""
    for name in names:
        if not is_inside(name) or name.endswith((".lock", ".fetching")):  # which a cache has beside its copies
            raise TypeError(f"the shard {name!r:.80} is not a file in the data set's directory")
    if len(set(names)) < len(names):
        raise TypeError("it names a shard twice")


def _why_no_manifest(directory: Path) -> str:
    if directory.is_file():
        return f"{directory} is a file, not a data set; build one with `memformer data build {directory} --out DIR`"
    if not directory.is_dir() and partial_of(directory).is_dir():
        return (
            f"{directory} is not built yet; if the build was cut short, the same `memformer data build` goes on with it"
        )
    if not directory.is_dir():
        return f"no data set at {directory}; build one with `memformer data build SOURCE... --out {directory}`"
    splits = [split for split in SPLITS if (directory / split / MANIFEST_FILE).is_file()]
    if splits:
        names = " and ".join(str(directory / split) for split in splits)
        return f"{directory} holds the data sets {names}; name the one to read"
    return f"{directory} has no {MANIFEST_FILE}: it is not a data set; build one with `memformer data build`"
