# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Exports in a cloud: put there complete or not at all, and fetched once a machine.

s3://BUCKET/MODEL/   what the directory of an export has; what describes the model (config.json, of a backbone
                     memory.json) is put last, and an address without it holds no export
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.far import default_cache, make_cache
from data_pipeline.files import sync
from data_pipeline.object_store import CloudError, ObjectStore
from memformer.checkpoints.copying import Copied, copy_down, copy_up
from memformer.checkpoints.directory import describe_file
from memformer.models.exported import DESCRIPTIONS, description_file


def refuse_taken(store: ObjectStore) -> None:
    """Refuses an address for an export that holds something.

    Raises:
        UserError: It does, other than what is left of an export that was not completed.
        CloudError: It does not answer.
    """
    there = store.sizes()
    if any(name in there for name in DESCRIPTIONS) or any("/" in name for name in there):
        raise UserError(f"--out {store.address}: holds something already: choose another address")


def put_export(store: ObjectStore, directory: Path) -> Copied:
    """Copies the directory of an export to an address, and verifies the copy.

    Raises:
        CloudError: It could not be copied; there is no export at the address then.
        UserError: Something else is at the address.
    """
    last = description_file(directory).name
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    others = sorted({*store.sizes()} - {*names})
    if others:
        raise UserError(f"--out {store.address}: holds something else ({others[0]}): choose another address")
    return copy_up(store, directory, "", {name: describe_file(directory, name) for name in names if name != last}, last)


def fetch_export(address: str, cache: Path | None = None) -> Path:
    """The directory of an export that lies at an address: fetched now, or before, as long as it is the same.

    Args:
        address: Where it is.
        cache: Where such directories are kept; None: in a directory of this user for temporary files.

    Raises:
        UserError: There is no export, it cannot be had, or there is no room for it.
    """
    store = ObjectStore(address)
    sizes = store.sizes()
    description = next((name for name in DESCRIPTIONS if name in sizes), None)
    if description is None:
        raise UserError(f"{store.address}: holds no export: give an address that memformer export --out has written")
    content = store.read(description)
    key = hashlib.sha256(f"{store.address}\n".encode() + content).hexdigest()[:24]
    kept = cache or default_cache()
    target = kept / "exports" / key
    try:
        make_cache(kept)
        target.parent.mkdir(exist_ok=True)
        if not (target / description).is_file():
            _fetch(store, sizes, target)
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot be written ({error.strerror or error}): make room, or set TMPDIR", exit_code=1
        ) from None
    return target


def _fetch(store: ObjectStore, sizes: Mapping[str, int], target: Path) -> None:
    """Copies what lies in a store into a directory, which appears when all of it is there."""
    entries = {name: {"bytes": size, "sha256": store.sha256(name)} for name, size in sizes.items()}
    foreign = next((name for name, entry in entries.items() if entry["sha256"] is None), None)
    if foreign is not None:
        raise CloudError(store.place(foreign), "has no SHA-256 with it", "copy the export by memformer export --out")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        copy_down(store, "", temporary, entries)
        sync(temporary)
        _rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster
            raise
