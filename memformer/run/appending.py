# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Appender`: what a run writes down of itself, which never ends the run.

A disk that is full, a quota that is used up or a file server that is away for a minute is no reason to throw hours of
training away for the sake of a line about it. What cannot be written now waits in memory and is written later, in its
order; what does not fit there is left out, and it is said how much that was. One warning says that it begins, one that
it is over. Checkpoints are another matter: `SaveSchedule` says what becomes of a run that cannot save.
"""

import logging
import os
from collections import deque
from pathlib import Path

LOG = logging.getLogger("memformer")

MOST_WAITING_BYTES = 16 * 1024 * 1024
"""How much may wait for a disk: some ten thousand lines of metrics."""


class Appender:
    """Appends records to one file; opens it with the first of them, and makes its folder if that is missing.

    Args:
        path: The file.
        lines: Whether records are lines: after one that a killed process has left unfinished, a new one is begun.
        keep_open: Whether the file stays open between two records, as where they come with every step.
        most_waiting: Bytes that may wait while the file cannot be written; then the oldest records are dropped.
    """

    def __init__(
        self, path: Path, lines: bool = True, keep_open: bool = True, most_waiting: int = MOST_WAITING_BYTES
    ) -> None:
        self.path = path
        self._lines, self._keep_open, self._most = lines, keep_open, most_waiting
        self._waiting: deque[bytes] = deque()
        self._cut = False  # the first that waits has begun in the file already
        self._descriptor: int | None = None
        self._error: OSError | None = None
        self._missing = 0

    def append(self, record: bytes) -> None:
        """Writes a record, after those that still wait; does not raise for what the disk does."""
        self._waiting.append(record)
        self._try()
        if self._error is not None:
            self._bound()
        if not self._keep_open:
            self._release()

    def close(self) -> None:
        """Tries once more to write what waits, and says what is missing for good."""
        if self._waiting:
            self._try()
        self._release()
        if self._error is not None:
            lost = self._missing + len(self._waiting)
            LOG.warning("%s: the last %d record(s) are missing (%s)", self.path, lost, _words(self._error))

    def _try(self) -> None:
        try:
            self._write_waiting()
        except OSError as error:
            self._release()  # a stale handle is opened anew
            if self._error is None:
                LOG.warning(
                    "%s: cannot be written (%s): the run goes on, and writes it when that is possible again",
                    self.path,
                    _words(error),
                )
            self._error = error
            return
        if self._error is not None:
            gap = f"{self._missing} record(s) are missing" if self._missing else "nothing is missing"
            LOG.warning("%s: is written again, %s", self.path, gap)
            self._error, self._missing = None, 0

    def _write_waiting(self) -> None:
        descriptor = self._open() if self._descriptor is None else self._descriptor
        while self._waiting:
            record = self._waiting[0]
            written = os.write(descriptor, record)
            if written < len(record):  # a disk that has filled up meanwhile says so at the next try
                self._waiting[0], self._cut = record[written:], True
                continue
            self._waiting.popleft()
            self._cut = False

    def _open(self) -> int:
        self.path.parent.mkdir(exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._descriptor).st_size
        if self._lines and size and not self._cut and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")
        return self._descriptor

    def _bound(self) -> None:
        """Drops the oldest whole records while too much waits."""
        first = int(self._cut)
        waiting = sum(map(len, self._waiting))
        while waiting > self._most and len(self._waiting) > first + 1:
            waiting -= len(self._waiting[first])
            del self._waiting[first]
            self._missing += 1

    def _release(self) -> None:
        if self._descriptor is not None:
            try:
                os.close(self._descriptor)
            except OSError as error:  # a file server tells here what it could not write
                LOG.warning("%s: some of its records may be missing (%s)", self.path, _words(error))
            self._descriptor = None


def _words(error: OSError) -> str:
    return error.strerror or str(error)
