# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Copies of a directory in a cloud, complete or absent: its files first, what lists or describes them last.

A copy that broke off is gone on with: what is there and equal is not sent again. A file is equal if it has the size and
the SHA-256 that it was put with; with `read_back`, if its bytes have that sum, as they are read from there.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import is_inside
from data_pipeline.object_store import CloudError, ObjectStore

Entries = Mapping[str, Mapping[str, Any]]
"""`bytes` and `sha256` of each file, by its path relative to the directory."""


@dataclasses.dataclass
class Copied:
    """What a copy took.

    Attributes:
        sent: Bytes that were sent.
        found: Bytes that were there already.
        seconds: From its beginning to its end.
    """

    sent: int = 0
    found: int = 0
    seconds: float = 0.0


def nothing() -> None:
    """Stops nothing."""


def copy_up(
    store: ObjectStore,
    directory: Path,
    folder: str,
    entries: Entries,
    last: str,
    read_back: bool = True,
    stop: Callable[[], None] = nothing,
    equal: Mapping[str, str] | None = None,
    before_last: Callable[[], object] = nothing,
) -> Copied:
    """Copies a directory to a cloud; its file `last` is put once all others are there and equal.

    Args:
        store: Where to.
        directory: What.
        folder: The folder's name there; empty: the store's own address.
        entries: The files, but for `last`.
        last: Path of the file without which there is no copy.
        read_back: Whether to read every file from there, rather than rely on its size and the sum it was put with.
        stop: Called between blocks; what it raises ends the copy, which stays incomplete.
        equal: Objects that are there already, in other folders, by their SHA-256: they are copied inside the bucket.
        before_last: Called before `last` is put; what it raises ends the copy as well.

    Raises:
        CloudError: It was not copied; there is no complete copy then.
        OSError: A file cannot be read.
    """
    began, copied = time.monotonic(), Copied()
    marker, content = _below(folder, last), (directory / last).read_bytes()
    there = store.sizes(folder)
    if marker in there:
        if store.read(marker) == content and not _missing(there, folder, entries):
            copied.found = sum(int(entry["bytes"]) for entry in entries.values())
            return copied
        store.delete([marker])  # of another one by this name, or one that has lost files: these are put now
    for name, entry in entries.items():
        key, size, sha256 = _below(folder, name), int(entry["bytes"]), str(entry["sha256"])
        stop()
        if there.get(key) == size and store.sha256(key) == sha256 and (not read_back or _sum(store, key) == sha256):
            copied.found += size
            continue
        if _copied_there(store, (equal or {}).get(sha256), key):
            copied.found += size
        else:
            store.put_file(key, directory / name, sha256, stop)
            copied.sent += size
        if read_back and _sum(store, key) != sha256:
            raise CloudError(
                store.place(key), "is not what was sent (SHA-256 differs)", "it is sent again next time", True
            )
    missing = _missing(store.sizes(folder), folder, entries)
    if missing:
        raise CloudError(store.place(missing[0]), "is not there with its size", "it is sent again next time")
    stop()
    before_last()
    store.put(marker, content)
    copied.seconds = time.monotonic() - began
    return copied


def copy_down(store: ObjectStore, folder: str, directory: Path, entries: Entries) -> None:
    """Copies files from a cloud into a directory, each synced and verified.

    Raises:
        CloudError: They are not to be had, or have other contents.
        UserError: A name leads out of the directory.
        OSError: They cannot be written.
    """
    for name, entry in entries.items():
        if not is_inside(name):
            raise UserError(f"{store.place(_below(folder, name))}: leads out of the directory that it is copied to")
        path, key, digest = directory / name, _below(folder, name), hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in store.blocks(key):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if path.stat().st_size != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
            raise CloudError(
                store.place(key), "its content is not what was put there (SHA-256 differs)", "take another copy"
            )


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _missing(there: Mapping[str, int], folder: str, entries: Entries) -> list[str]:
    """The objects that are not there, or have another size."""
    sizes = {_below(folder, name): int(entry["bytes"]) for name, entry in entries.items()}
    return [key for key, size in sizes.items() if there.get(key) != size]


def _copied_there(store: ObjectStore, source: str | None, key: str) -> bool:
    """Whether an object was copied inside the bucket; not every bucket does that, with every size."""
    try:
        if source is not None:
            store.copy(source, key)
        return source is not None
    except CloudError:
        return False


def _sum(store: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    for block in store.blocks(key):
        digest.update(block)
    return digest.hexdigest()
