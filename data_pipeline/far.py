# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What can be set about data sets that lie elsewhere: at an address instead of in a directory."""

import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.addresses import Address, shown
from data_pipeline.cloud_settings import CLOUDS, CloudAddress, is_cloud
from data_pipeline.errors import UserError

RemoteMode = Literal["spool", "range"]
ADDRESSES = ("http://", "https://", *CLOUDS, "pipe:")


def is_address(name: str | Path) -> bool:
    """Whether a data set's name is an address rather than a directory.

    Raises:
        UserError: It is an address of another kind, or one that cannot be used or kept (`Address`, `CloudAddress`).
    """
    if not isinstance(name, str):
        return False
    if name.startswith(("http://", "https://")):
        Address.parse(name)
    elif is_cloud(name):
        CloudAddress.parse(name)
    elif "://" in name and not name.startswith(ADDRESSES):
        raise UserError(f"data set {shown(name)}: addresses begin with {', '.join(ADDRESSES[:-1])} or {ADDRESSES[-1]}")
    return name.startswith(ADDRESSES)


def default_cache() -> Path:
    """A directory of this user for temporary files, on this machine."""
    return Path(tempfile.gettempdir(), f"memformer-cache-{os.getuid()}")


def make_cache(directory: Path) -> None:
    """Makes a directory of copies. The default one lies where all users may write, and is this user's alone.

    Raises:
        UserError: The default one is another user's, or a link: who made it could exchange what is kept there.
        OSError: It cannot be made.
    """
    own = directory == default_cache()
    directory.mkdir(mode=0o700 if own else 0o777, parents=True, exist_ok=True)
    if own:
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise UserError(
                f"{directory}: is another user's, or a link, so that what is kept there could be exchanged: name a "
                "directory of your own (data.cache_dir, --cache-dir), or set TMPDIR to one"
            )
        if status.st_mode & 0o077:
            directory.chmod(0o700)


@dataclass(frozen=True)
class FarSettings:
    """How far data sets are read.

    Attributes:
        cache_dir: Local directory for manifests and spooled shards, shared by all processes of a machine.
        cache_gigabytes: Shards are kept there up to this many GB (10^9 bytes), the least recently used deleted first;
            shards in use are never deleted.
        mode: `spool` copies whole shards into the cache; `range` reads parts of shards and keeps nothing on disk.
        allow_pipe: Whether `pipe:COMMAND` addresses may be used; they run a shell.
        timeout_seconds: How long an answer may take, apart from the time for its bytes.
        attempts: How often a request is tried, with growing pauses, before it is an error.
        look_ahead: Rollouts whose data is asked for ahead of the one being read.
        connections: Requests under way at once.
    """

    cache_dir: Path = field(default_factory=default_cache)
    cache_gigabytes: float = 50.0
    mode: RemoteMode = "spool"
    allow_pipe: bool = False
    timeout_seconds: float = 30.0
    attempts: int = 6
    look_ahead: int = 32
    connections: int = 16
