# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Takes in what comes through pipes: a build reads its sources more than once, and a pipe can be read but once.

The content goes to a file without a name in the build's own directory, where there is room for what is built of it,
and is gone when the build ends, however it ends.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.sources import STANDARD_INPUT, SourceFile, Survey, kind_by_content

_BLOCK_BYTES = 1 << 20


@contextmanager
def received(survey: Survey, directory: Path, progress: Callable[[str, int, int], None] | None) -> Iterator[Survey]:
    """The same sources with a file for each pipe, to be read as often as wanted until the block ends.

    Args:
        survey: The sources.
        directory: On whose file system the content is kept.
        progress: Called as `progress("receiving", 0, bytes)` as it comes.

    Raises:
        UserError: A pipe cannot be read.
        OSError: The disk refuses.
    """
    with ExitStack() as opened:
        files = []
        for file in survey.files:
            if file.kind == "pipe":
                kept = opened.enter_context(tempfile.TemporaryFile(dir=directory))
                digest = _copy(file, kept.fileno(), progress)
                path = Path(f"/proc/self/fd/{kept.fileno()}")
                kind = kind_by_content(path, file.shown)
                files.append(replace(file, path=path, kind=kind, digest=digest))
            else:
                files.append(file)
        yield replace(survey, files=tuple(files))


def _copy(file: SourceFile, descriptor: int, progress: Callable[[str, int, int], None] | None) -> str:
    """Writes all that comes through a pipe; returns its SHA-256."""
    digest, size = hashlib.sha256(), 0
    try:
        # A shell may have given standard input as a socket, which has a path that cannot be opened.
        source = os.dup(0) if file.shown == STANDARD_INPUT else os.open(file.path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"source {file.shown}: cannot be read ({error.strerror})") from None
    try:
        while True:
            try:
                block = os.read(source, _BLOCK_BYTES)
            except OSError as error:
                raise UserError(f"source {file.shown}: cannot be read ({error.strerror})") from None
            if not block:
                return digest.hexdigest()
            digest.update(block)
            size += len(block)
            while block:
                block = block[os.write(descriptor, block) :]
            if progress:
                progress("receiving", 0, size)
    finally:
        os.close(source)
