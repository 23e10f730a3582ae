# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`manifest.json` and `documents.npz`: what a data set says of itself, written together with its shards.

The manifest names the shards with their sizes and checksums, the tokenizer, and the settings of the build. The
columns in `documents.npz` tell where each document's tokens lie. Both are written by the build and never made again
from shards, which may have been damaged since.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardInfo

MANIFEST_FILE = "manifest.json"
COLUMNS_FILE = "documents.npz"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")
# Columns that have one number a document; their dtypes are part of the format.
NUMBER_COLUMNS = {"shard": "<i4", "offset": "<i8", "tokens": "<i8", "bytes": "<i8", "checksum": "<u4"}
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    `storage` is the format of the shards; `token_dtype` the numpy name of a stored token (`<u2` or `<u4`);
    `dropped_documents` counts those without a token; `settings` are those of the build that shape its result;
    `fingerprint` identifies tokenizer, token dtype and number columns, and with the checksums the tokens.
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

    def save(self, directory: Path) -> None:
        """Writes `manifest.json` into a data set's directory."""
        content = {"format": "memformer-dataset", "format_version": FORMAT_VERSION, **asdict(self)}
        (directory / MANIFEST_FILE).write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Reads the manifest of a data set.

        Raises:
            UserError: The directory holds no data set, holds its splits, or holds one of another version.
        """
        file = directory / MANIFEST_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(_why_no_manifest(directory)) from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {error}; restore the file or build the data set again") from None
        if not isinstance(content, dict) or content.pop("format", None) != "memformer-dataset":
            raise UserError(f"{file} is not the manifest of a data set made by `memformer data build`")
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(
                f"{file}: format version {version}, but this program reads version {FORMAT_VERSION}; "
                "use the program that built it, or build the data set again"
            )
        try:
            shards = tuple(ShardInfo(**shard) for shard in content.pop("shards"))
            return cls(shards=shards, **content)
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}); restore the file or build the data set again") from None


def save_columns(directory: Path, numbers: Columns, names: Sequence[str]) -> None:
    """Writes `documents.npz`: the number columns `[documents]`, and the names without a need for pickle.

    Names are one blob of UTF-8 and the end of each in it.
    """
    columns: dict[str, NDArray[Any]] = {key: numbers[key].astype(dtype) for key, dtype in NUMBER_COLUMNS.items()}
    encoded = [name.encode("utf-8") for name in names]
    columns["name_blob"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    columns["name_ends"] = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    np.savez(directory / COLUMNS_FILE, **columns)  # type: ignore[arg-type]  # a column is not `allow_pickle`


def load_columns(directory: Path) -> dict[str, NDArray[Any]]:
    """Reads the columns of `documents.npz`; the zip container checks their CRC.

    Raises:
        UserError: The file is missing, damaged, or has other columns.
    """
    file = directory / COLUMNS_FILE
    try:
        with np.load(file, allow_pickle=False) as columns:
            return {name: columns[name] for name in (*NUMBER_COLUMNS, "name_blob", "name_ends")}
    except FileNotFoundError:
        raise UserError(f"{file} is missing; restore the file or build the data set again") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}); restore the file or build the data set again") from None


def fingerprint(tokenizer_sha256: str, token_dtype: str, columns: Columns) -> str:
    """32 hexadecimal digits that change with any token, its place, or the meaning of its id."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {tokenizer_sha256} {token_dtype}".encode())
    for key, dtype in NUMBER_COLUMNS.items():
        digest.update(np.ascontiguousarray(columns[key], dtype=dtype).tobytes())
    return digest.hexdigest()[:32]


def _why_no_manifest(directory: Path) -> str:
    if not directory.is_dir():
        return f"no data set at {directory}; build one with `memformer data build SOURCE... --out {directory}`"
    splits = [split for split in SPLITS if (directory / split / MANIFEST_FILE).is_file()]
    if splits:
        names = " and ".join(str(directory / split) for split in splits)
        return f"{directory} holds the data sets {names}; name the one to read"
    return f"{directory} has no {MANIFEST_FILE}: it is not a data set; build one with `memformer data build`"
