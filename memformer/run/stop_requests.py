# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Being asked to stop: signals, a file and a time limit become a flag, which all processes agree on.

SIGTERM, SIGUSR1, SIGUSR2 (a scheduler's warnings), SIGINT (Ctrl-C), a file named `stop` in the run directory and
`training.wall_clock_limit_seconds` ask the run to save and leave: after the step, the evaluation or the checkpoint that
it is in, or, where steps are long, after the segment; the step is then done again by the next life. A second signal
ends the process at once; a checkpoint that is being written stays incomplete and is ignored by the next life. A
scheduler may deliver one warning by two ways (to the task and through srun): what comes within moments of the first
counts as the same.

SIGUSR1 and SIGUSR2 would end a process that does not listen yet. `hold_back` keeps such a warning, from a preemption
while torch is still being imported, until the run listens.
"""

import functools
import os
import signal
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from memformer.run import exit_codes

ECHO_SECONDS = 5.0
"""A second signal within this time is taken for the first one again, unless it is Ctrl-C."""

LAST_WORDS_SECONDS = 2.0
"""How long a process that leaves at once may take to write down that it does."""

_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


_held_back: list[tuple[int, float]] = []  # signals, with the time of each


def hold_back() -> None:
    """Keeps a scheduler's warnings for later; to be called before the slow part of a start."""
    # Not by blocking them: libraries have started threads by now, and one of those would receive them.
    for number in _WARNINGS:
        signal.signal(number, lambda received, _: _held_back.append((received, time.monotonic())))


class StepAbandoned(Exception):
    """All processes have agreed to leave a rollout in the middle; nothing of it counts."""


class LeavingAtOnce:
    """Context manager in which SIGTERM ends the process at once, whatever it waits in, but not without a word.

    For a run that does not listen yet, or no more: it has nothing to save then.

    Args:
        last_words: What to do before; it must not take long.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self._last_words = last_words

    def __enter__(self) -> "LeavingAtOnce":
        readable, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # the listener acts on it
        self._woken_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._listener = threading.Thread(target=_exit_at_the_first, args=(readable, self._last_words), daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._woken_before)
        signal.signal(signal.SIGTERM, self._before)
        os.write(self._wake, b"\0")
        self._listener.join()
        os.close(self._wake)


class StopRequests:
    """Context manager that listens while the run trains.

    Args:
        stop_file: File whose existence asks the run to stop; the run removes it when it does.
        limit_seconds: Time after which the run stops by itself; 0: no limit.
        leave: Told why, before a second signal ends the process; it must not take long.
        signalled: Told of each signal, by `time.monotonic()`.
    """

    def __init__(
        self,
        stop_file: Path,
        limit_seconds: float = 0,
        leave: Callable[[str], None] = lambda reason: None,
        signalled: Callable[[float], None] = lambda at: None,
    ) -> None:
        self.stop_file, self._leave, self._signalled = stop_file, leave, signalled
        self._deadline = time.monotonic() + limit_seconds if limit_seconds else float("inf")
        self._received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        readable, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        self._woken_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._listener = threading.Thread(
            target=_exit_at_the_second, args=(readable, self._leave, self._signalled), daemon=True
        )
        self._listener.start()
        if _held_back:
            earlier, at = _held_back[0]
            self._signalled(at)
            self._handle(earlier, None)
            os.write(self._wake, bytes([earlier]))  # it counts as the first
            _held_back.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._woken_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        os.write(self._wake, b"\0")
        self._listener.join()
        os.close(self._wake)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self._received = self._received or number

    @property
    def urgency(self) -> int:
        """0: go on; 1: stop and be started again; 2: stop for good. The largest of all processes decides."""
        if self._received == signal.SIGINT:
            return 2
        return 1 if self._received is not None or self._late or os.path.exists(self.stop_file) else 0

    @property
    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def exit_code(self, urgency: int) -> int:
        """The exit code for the urgency that was agreed on."""
        return {1: exit_codes.SAVED, 2: exit_codes.INTERRUPTED}[urgency]

    def reason(self) -> str:
        """What asked this process to stop, for the log."""
        if self._received is not None:
            return signal.Signals(self._received).name
        if self._late:
            return "training.wall_clock_limit_seconds"
        return f"the file {self.stop_file}" if os.path.exists(self.stop_file) else "another process"


def _exit_at_the_second(readable: int, leave: Callable[[str], None], signalled: Callable[[float], None]) -> None:
    """Ends the process at the second signal, also when the main thread waits in a collective and runs no handler."""
    first = float("inf")
    while number := os.read(readable, 1)[0]:
        if number not in _SIGNALS:
            continue
        now = time.monotonic()
        signalled(now)  # from here: the main thread may be kept for long
        if first < now and (number == signal.SIGINT or now > first + ECHO_SECONDS):
            reason = f"a second signal, {signal.Signals(number).name}: left at once, without saving"
            leave_at_once(functools.partial(leave, reason), exit_codes.of_signal(number))
        first = min(first, now)
    os.close(readable)


def _exit_at_the_first(readable: int, last_words: Callable[[], None]) -> None:
    while number := os.read(readable, 1)[0]:
        if number == signal.SIGTERM:
            leave_at_once(last_words, exit_codes.of_signal(number))
    os.close(readable)


def leave_at_once(last_words: Callable[[], None], exit_code: int) -> NoReturn:
    """Ends the process, whatever its threads are in; a disk that does not answer to its last words cannot hold it."""
    words = threading.Thread(target=last_words, daemon=True)
    words.start()
    words.join(LAST_WORDS_SECONDS)
    os._exit(exit_code)
