# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How a process of a run says, by its exit code, what became of it, and what whoever started it makes of that.

The job scripts of `slurm/` are plain shell and write the same numbers; a test holds them to these.
"""

import signal

DONE = 0
FAILED = 1

USAGE = 2
"""Settings, arguments or files that do not fit: one line says which, and trying again does not mend it."""

SAVED = 75
"""EX_TEMPFAIL: asked to stop, has saved; the same command goes on from there."""

HUNG = 76
"""The watchdog ended a run in which nothing moved any more."""

INTERRUPTED = 130
"""Ctrl-C: saved as well, but nobody should start the run again by itself."""


def of_signal(number: int) -> int:
    """The exit code that a shell gives a process that a signal ended."""
    return 128 + number


def of_process(returncode: int) -> int:
    """The exit code of an ended process, from `Popen.returncode`, which is -n after signal n."""
    return returncode if returncode >= 0 else of_signal(-returncode)


KILLED = of_signal(signal.SIGKILL)

STOPPED = (SAVED, *(of_signal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)))
"""Of a rank that was asked to stop: saved, or ended by the request itself because it did not listen yet."""

NOT_MENDED_BY_RETRYING = (USAGE, INTERRUPTED)
"""After these a job is not put into the queue again."""

_HINTS = {
    signal.SIGKILL: "if nobody sent it, the machine or the job's limit ran out of memory",
    signal.SIGBUS: "a full /dev/shm or disk, or a file that was cut while it was read",
}


def in_words(returncode: int) -> str:
    """How a process ended that failed, from `Popen.returncode`, as "was killed by SIGKILL (...)"."""
    code = of_process(returncode)
    if code == HUNG:
        return f"found that nothing moved any more (exit code {code}): RUN/hangs says which rank the others waited for"
    if code <= 128 or code - 128 not in set(signal.Signals):
        return f"failed (exit code {code})"
    number = signal.Signals(code - 128)
    said = f"was killed by {number.name}" if number is signal.SIGKILL else f"was ended by {number.name}"
    return f"{said} ({_HINTS.get(number) or signal.strsignal(number)})"
