# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""stdout and stderr of a training process, which never end the run: a log on a full disk, a reader that went away.

Whatever writes there, the log, a library's print, a warning, Python's last flush, would otherwise raise in the middle
of a step or change the exit code. What cannot be written is left out, and said as soon as that is possible again.
"""

import io
import os
import sys
from typing import Any


class PatientOutput(io.RawIOBase):
    """A file descriptor to which a write always succeeds.

    Args:
        descriptor: Where to write; it is left open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._missing = descriptor, 0

    def writable(self) -> bool:
        """As every stream to write to."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether somebody sits before it."""
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Writes all of it, or counts the lines that are missing."""
        left = memoryview(data).cast("B")
        count = len(left)
        try:
            if self._missing:
                os.write(self._descriptor, f"\n({self._missing} lines are missing: no room for them)\n".encode())
                self._missing = 0
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            self._missing += max(1, bytes(left).count(b"\n"))
        return count


def make_outputs_patient() -> None:
    """Has all of this process write to stdout and stderr in this way."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
            descriptor = stream.fileno()
        except (OSError, AttributeError):  # it is full already, or is no file
            continue
        raw: Any = io.BufferedWriter(PatientOutput(descriptor))
        setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True))
