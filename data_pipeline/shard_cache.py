# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Copies of far shards on local disk: whole or absent, checksummed, shared by all processes of a machine, bounded.

Beside each copy lie two lock files. `NAME.lock` is held shared while the copy is read, so that nobody deletes it, and
exclusive only by who deletes it. `NAME.fetch.lock` is held while the shard is fetched, which happens once a machine.
Whoever waits for a fetch may have other shards open and never waits for readers, so processes cannot wait for each
other in a circle. Locks are the system's (flock): a killed process holds none. A copy's time of modification is its
last use.

Where the file system has no locks (Lustre without `-o flock`, some NFS), two processes may fetch a shard at once, each
into a file of its own, and a copy may be deleted while it is read: the file stays readable to who has it open, and who
comes too late fetches it again.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.far import FarSettings
from data_pipeline.manifest import ShardInfo
from data_pipeline.transport import Transport, TryAgain, Unfit, with_retries

SHARDS = "shards"  # the folder in a data set's own that is counted and cleared
_LEFT_SECONDS = 3600  # a fetch that has written nothing for so long is over
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
LOG = logging.getLogger(__name__)


class OpenShard:
    """A copy that is open for reading; nobody deletes it before `close`."""

    def __init__(self, file: int, lock: int) -> None:
        self.file, self._lock = file, lock

    def close(self) -> None:
        """Closes the copy and lets go of it."""
        os.close(self.file)
        os.close(self._lock)


class ShardCache:
    """The copies of one data set's shards, in a directory that other data sets' copies lie beside.

    Args:
        directory: The directory of all copies (`data.cache_dir`).
        dataset: Folder of this data set in it.
        transport: Where shards come from.
        settings: Size and patience.
    """

    def __init__(self, directory: Path, dataset: str, transport: Transport, settings: FarSettings) -> None:
        self._root, self._own = directory, directory / dataset / SHARDS
        self._transport, self._settings = transport, settings
        self._limit = round(settings.cache_gigabytes * 1e9)
        self._warned = False
        self._own.mkdir(parents=True, exist_ok=True)

    def open(self, shard: ShardInfo, location: str) -> OpenShard:
        """A shard's copy, fetched if there is none.

        Args:
            shard: The shard.
            location: Its name for people.

        Raises:
            UserError: It could not be fetched.
            Unfit: It is not at its address, or is there with other bytes than when it was built.
        """
        path = self._own / shard.name
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(path)
        try:
            _flock(lock, fcntl.LOCK_SH)
            while True:
                if not self._is_whole(path, shard):
                    with locked(path.with_name(path.name + ".fetch.lock")):
                        if not self._is_whole(path, shard):
                            self._fetch(path, shard, location)
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, which locks prevent
                    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    os.utime(file)
                    return OpenShard(file, lock)
        except BaseException:
            os.close(lock)
            raise

    @staticmethod
    def _is_whole(path: Path, shard: ShardInfo) -> bool:
        """Copies appear under their name when they are whole; another size means that somebody else was at it."""
        try:
            return path.stat().st_size == shard.size_bytes
        except FileNotFoundError:
            return False

    def _fetch(self, path: Path, shard: ShardInfo, location: str) -> None:
        temporary = own_name(path)
        self._make_room(shard.size_bytes)
        changed: list[str] = []

        def attempt() -> None:
            digest = hashlib.sha256()
            try:
                with temporary.open("wb") as file:
                    for block in self._transport.blocks(shard.name, shard.size_bytes):
                        digest.update(block)
                        file.write(block)
            except OSError as error:
                raise UserError(
                    f"data.cache_dir {self._root} cannot be written ({error.strerror or error}); make room or lower "
                    "data.cache_gigabytes",
                    exit_code=1,
                ) from None
            if digest.hexdigest() != shard.sha256:
                changed.append(digest.hexdigest())
                if changed.count(changed[-1]) == 2:  # twice the same other bytes: not the way here, but the source
                    raise Unfit("cannot be trusted: the shard does not have its SHA-256 checksum")
                raise TryAgain("it does not have its SHA-256 checksum")

        try:
            with_retries(location, self._settings, attempt)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Deletes the copies that were not used for the longest time and are not in use."""
        with locked(self._root / ".lock"):
            copies = []
            for path in self._root.glob(f"*/{SHARDS}/**/*"):
                # Another process may delete a copy of its own between the listing and here.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if not path.name.endswith(".lock") and stat.S_ISREG(status.st_mode):
                        copies.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in copies) + wanted
            for used, size, path in sorted(copies):
                if total <= self._limit:
                    return
                if path.name.endswith(".fetching"):
                    if time.time() - used / 1e9 > _LEFT_SECONDS:  # of a killed process
                        path.unlink(missing_ok=True)
                        total -= size
                elif _delete_unused(path):
                    total -= size
            if total > self._limit and not self._warned:
                self._warned = True
                LOG.warning(
                    "shards in use take %.1f GB, more than data.cache_gigabytes = %g allows: they stay while they are "
                    "in use; raise it where the disk has room",
                    total / 1e9,
                    self._settings.cache_gigabytes,
                )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file's lock for the block; waits for whoever else holds it, in this process or another."""
    lock = os.open(path, _LOCK_FLAGS, 0o666)
    try:
        _flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def own_name(path: Path) -> Path:
    """A name that nobody else has, here or elsewhere, for a file while it is fetched: there may be no locks."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.fetching")


def _flock(lock: int, operation: int) -> None:
    """Locks, where the file system can.

    Raises:
        BlockingIOError: Somebody else holds it, and the operation is not to wait.
    """
    try:
        fcntl.flock(lock, operation)
    except BlockingIOError:
        raise
    except OSError:
        pass  # without locks, see above


def _lock_file(path: Path) -> int:
    """The open lock file of a copy, for `flock`."""
    return os.open(path.with_name(path.name + ".lock"), _LOCK_FLAGS, 0o666)


def _delete_unused(path: Path) -> bool:
    lock = _lock_file(path)
    try:
        _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
