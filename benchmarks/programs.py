# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Python programs that a benchmark starts, one after another or side by side.

On a simulated GPU (benchmarks/simulated_gpu) a program is forked from this process, which has torch, DeepSpeed and the
device already: the same words, a process of its own all the same, and seconds of a core less for each.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from benchmarks.common import ROOT
from benchmarks.simulated_gpu import library

Item = TypeVar("Item")
Result = TypeVar("Result")


class Program(Protocol):
    """What is asked of a `subprocess.Popen` here."""

    @property
    def pid(self) -> int:
        """Its process."""

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that ended it."""

    def poll(self) -> int | None:
        """The exit code, if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; `subprocess.TimeoutExpired` after so many seconds."""


def start(
    words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, leads: bool = False
) -> Program:
    """Starts `python WORDS` in the checkout.

    Args:
        words: A script with its words, or `-m` and a module with its words.
        log: What it says is added there.
        environment: Variables beside those of this process.
        leads: Whether a process group begins with it, which ends with it (`end`).
    """
    changed = dict(environment or {})
    if library.loaded():
        return Forked(words, log, changed, leads)
    command = [sys.executable, *words]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | changed, stdout=file, stderr=file, start_new_session=leads
        )


def end(program: Program) -> None:
    """Kills it if it still runs; and what it has started, where a group began with it."""
    if program.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # another thread has seen it end
            kill = os.killpg if os.getpgid(program.pid) == program.pid else os.kill
            kill(program.pid, signal.SIGKILL)
        program.wait()


def finish(program: Program, log: Path) -> None:
    """Waits for it.

    Raises:
        SystemExit: It failed; what it said last is the message.
    """
    try:
        if program.wait():
            raise SystemExit(f"exit code {program.returncode}: " + log.read_text(errors="replace")[-2000:])
    finally:
        end(program)


def kill_when(program: Program, there: Callable[[], bool], log: Path) -> None:
    """Kills it, unasked, as soon as something is there, unless it ends before.

    Raises:
        SystemExit: It failed before.
    """
    try:
        while not there():
            if program.poll() is not None:
                return finish(program, log)
            time.sleep(0.02)
    finally:
        end(program)


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> list[Result]:
    """The results in their order; a simulated GPU is there for the thread that has it, which alone can fork."""
    if at_once == 1 or library.loaded():
        return list(map(function, items))
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(function, items))


class Forked:
    """A program in a process that is forked from this one; as of `Program`."""

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str], leads: bool) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _run(words, log, environment, leads)
        if leads:
            with contextlib.suppress(OSError):  # it has done so itself, and may have ended
                os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """As of `Program`."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As of `Program`."""
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
            time.sleep(0.01)
        return code


def _run(words: Sequence[str], log: Path, environment: Mapping[str, str], leads: bool) -> NoReturn:
    """The forked process. It leaves without what this one is to do at its own end, such as removing its folders."""
    code: object = 1
    try:
        if leads:
            os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(ROOT)
        os.environ.update(environment)
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
