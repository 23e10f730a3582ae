# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What everything shares that writes files: they survive a power cut, and lie in their directory."""

import os
from pathlib import Path, PurePosixPath


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_inside(name: str) -> bool:
    """Whether a relative path, as a manifest or an index from elsewhere names it, stays in its directory."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
