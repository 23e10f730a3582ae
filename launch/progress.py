# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Progress`: how far a command is that takes its time, on stderr.

For a person at a terminal it is one line that is written over, and wiped at the end; in a log a line now and then. A
command that is quick leaves no trace of it in a log. stdout stays the results' alone.
"""

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType

SHOWN_SECONDS = 0.2  # between two states of the line at a terminal
FIRST_LOG_SECONDS, LOG_SECONDS = 15.0, 60.0  # before the first line of a log, and between two


class Progress:
    """Says on stderr how far a command is; a context, at whose end the line is wiped.

    Args:
        terminal: Whether stderr is a terminal; None: found out.
        clock: Seconds; what tells the time.
    """

    def __init__(self, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._began = self._stage_began = clock()
        self._next = self._began + (0 if self._terminal else FIRST_LOG_SECONDS)
        self._stage, self._stage_first = "", 0

    def __enter__(self) -> "Progress":
        """Nothing is shown yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wipes the line."""
        self.end()

    def say(self, words: str) -> None:
        """What is being done, where it cannot be counted."""
        self._show(lambda seconds: f"{words}, {seconds:.0f} s")

    def count(self, stage: str, done: int, total: int, what: str) -> None:
        """How much of a stage is done, and for how long it will go on as fast as so far.

        Args:
            stage: What is being done.
            done: How much of it.
            total: Of how much.
            what: What is counted, in the plural.
        """
        now = self._clock()
        if stage != self._stage:
            self._stage, self._stage_began, self._stage_first = stage, now, done
        since = done - self._stage_first
        left = f", {(now - self._stage_began) * (total - done) / since:.0f} s to go" if since else ""

        def line(seconds: float) -> str:
            return f"{stage}: {done:,} of {total:,} {what} ({100 * done // max(1, total)} %), {seconds:.0f} s{left}"

        self._show(line)

    def _show(self, line: Callable[[float], str]) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (SHOWN_SECONDS if self._terminal else LOG_SECONDS)
        words = line(now - self._began)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that is broken in two could not be written over
            print(f"\r{words[:width]:<{width}}", end="", file=sys.stderr, flush=True)
        else:
            print(words, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Wipes the line."""
        if self._terminal:
            print(f"\r{'':<{shutil.get_terminal_size().columns - 1}}\r", end="", file=sys.stderr, flush=True)
