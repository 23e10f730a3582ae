# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reads log files while they grow: a live copy on the terminal, and the last lines of a rank that failed."""

import os
import sys
from contextlib import suppress
from pathlib import Path

TAIL_BYTES = 64 * 1024  # enough for the last lines of any log, however long the run was


class LogEcho:
    """Copies what is added to a file to stdout.

    Args:
        path: A file that exists.
        start: Where to begin in it, in bytes.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._next = start
        self._open = True

    def copy(self) -> None:
        """Copies what is new; what cannot be read now is read at the next call."""
        if not self._open:
            return
        try:
            with self._path.open("rb") as file:
                file.seek(self._next)
                new = file.read()
        except OSError:
            return
        self._next += len(new)
        try:
            sys.stdout.buffer.write(new)  # bytes as they are: the text's encoding is the rank's business
            sys.stdout.buffer.flush()
        except OSError:
            # The reader went away (`| head`, a closed terminal). The run goes on, and the log has everything;
            # without a new target, Python would try to write the rest when it exits, and complain.
            self._open = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def last_lines(path: Path, start: int = 0, count: int = 20) -> list[str]:
    """The last lines of a text file, oldest first; only its end is read, so that its size does not matter.

    Args:
        path: The file.
        start: Where to begin in it at the earliest, in bytes.
        count: How many lines at most.
    """
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]
    return []
