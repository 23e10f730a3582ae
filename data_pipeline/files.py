# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What everything that must survive a power cut shares."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
