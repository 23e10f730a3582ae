# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs one command as N ranks on this machine, and sees to it that they end together and leave nothing behind.

Each rank is a session of its own with the environment that torch.distributed reads (RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR, MASTER_PORT) and the time that it has to leave (MEMFORMER_GRACE_SECONDS). It
writes straight into its log file, never through a pipe of ours, so that nothing is lost whatever happens to the
launcher; rank 0's file is also copied to the terminal.

How a run ends:
- all ranks exit 0: 0.
- SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 arrives: it is passed on to every rank (SIGHUP as SIGTERM), which have
  `grace_seconds` to save and leave; a second SIGINT cuts that short. What is left then is killed.
- a rank ends with 75 ("saved after a preemption, start me again"): the others get the same time; the answer is 75.
- a rank fails: its last lines are shown, the others get SIGTERM and soon SIGKILL; the answer is that rank's code.
- a rank ends with 2 (bad usage): every rank is about to say the same, so only rank 0's line is shown.
- the launcher itself is killed: the kernel kills the ranks (see launch/child.py).
"""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from data_pipeline.addresses import told
from data_pipeline.errors import UserError
from launch import child
from launch.machine import available_cores, core_slices
from launch.tail import LogEcho, last_lines
from memformer.processes.ports import free_port
from memformer.run import exit_codes
from memformer.run.grace import handed_down

PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is gone: to a rank that means "save and leave" like any other stop
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR2,
}
CRASH_GRACE_SECONDS = 10.0  # survivors of a crash wait for the dead rank in a collective: there is nothing to save
USAGE_WAIT_SECONDS = 10.0  # ranks refuse the same setting within moments of one another
KILL_WAIT_SECONDS = 10.0  # a killed process that is still there then hangs in the kernel and cannot be helped
POLL_SECONDS = 0.1  # how often rank 0's log is looked at; the end of a rank and signals wake the loop at once


@dataclass
class Rank:
    """One process of the run."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # where this launch begins in the log, in bytes
    code: int | None = None  # exit code once it ended, 128 + n for signal n
    killed: bool = False  # by us, after its time was up

    def send(self, signum: int) -> None:
        """Sends a signal to the rank itself; its own helpers hear of it from the rank."""
        if self.code is None:
            os.kill(self.process.pid, signum)  # Popen.send_signal would reap a rank that has just ended: see `poll`

    def kill(self) -> None:
        """Kills the rank with every process of its group."""
        if self.code is None:
            self.killed = True
            _kill_group(self.process.pid)

    def poll(self) -> bool:
        """Looks whether the rank has ended since the last look, and if so clears away what it left running."""
        if self.code is not None:
            return False
        # WNOWAIT leaves the process as a zombie: its number cannot go to a stranger before its group is killed.
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        _kill_group(self.process.pid)
        self.code = exit_codes.of_process(self.process.wait())
        return True


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody of that group is left
        os.killpg(pid, signal.SIGKILL)


def launch_processes(
    command: Sequence[str],
    nproc: int,
    log_dir: Path,
    *,
    environment: Mapping[str, str] | None = None,
    bind_cores: bool = True,
    grace_seconds: float = 120.0,
    master_port: int | None = None,
    failed: Callable[[int, str], None] = lambda rank, reason: None,
    refused: Callable[[], bool] = lambda: False,
) -> int:
    """Runs `command` as `nproc` ranks and returns when all have ended. Call it in the main thread.

    Args:
        command: The command of every rank; the ranks differ in their environment only.
        nproc: Number of processes.
        log_dir: Folder of the logs `rank-00000.log`, ...; made if missing, logs of earlier launches are continued.
        environment: Environment variables for all ranks (default: this process's).
        bind_cores: Give each rank its own slice of the CPU cores, if there are enough.
        grace_seconds: How long ranks may take to save and leave after a signal, before they are killed.
        master_port: TCP port of the rendezvous (default: a free one).
        failed: Told at the end which rank failed first, and how, in words; not of bad usage.
        refused: Asked after bad usage, of which rank 0 has told the user, whether nothing was begun: then new logs go.

    Returns:
        0, or the exit code of the first rank that failed (128 + n for signal n); 75 if the ranks saved and left after
        a preemption; 137 if ranks had to be killed and none failed by itself.

    Raises:
        UserError: The logs cannot be written, or MEMFORMER_GRACE_SECONDS is no number of seconds.
    """
    inherited = dict(os.environ if environment is None else environment)
    inherited |= handed_down(grace_seconds, inherited)
    cores = available_cores()
    slices = core_slices(cores, nproc) if bind_cores else [[] for _ in range(nproc)]
    inherited.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // nproc)))
    inherited.setdefault("PYTHONUNBUFFERED", "1")  # a log is read while it is written
    inherited.setdefault("PYTHONFAULTHANDLER", "1")  # a crash in native code leaves the Python stack in the log
    port = free_port() if master_port is None else master_port
    ranks: list[Rank] = []
    made = [place for place in (log_dir, *log_dir.parents) if not place.exists()]
    logs = [log for log in (_log(log_dir, number) for number in range(nproc)) if not log.exists()]
    with _signals() as inbox:
        try:
            _make(log_dir)
            for number in range(nproc):
                variables = rank_environment(number, nproc, port)
                ranks.append(_start(command, number, log_dir, inherited | variables, slices[number]))
            code = _Supervisor(ranks, inbox, grace_seconds, failed).run()
            if code == ranks[0].code == exit_codes.USAGE and refused():
                _unmake([*logs, *made])
            return code
        except UserError:
            if not ranks:
                _unmake([*logs, *made])
            raise
        finally:
            for rank in ranks:
                rank.kill()


def rank_environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    """The variables by which the ranks of one machine find each other (the contract of torchrun)."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(nproc),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _make(log_dir: Path) -> None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{log_dir}: cannot be made ({error.strerror}): choose another run_dir") from None


def _start(command: Sequence[str], rank: int, log_dir: Path, environment: dict[str, str], cores: list[int]) -> Rank:
    path = _log(log_dir, rank)
    with _opened(path) as log:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            log.write(f"=== {now} rank {rank} of {environment['WORLD_SIZE']}: {shlex.join(told(command))}\n".encode())
        except OSError as error:  # where not even this has room, the rank could not say why it fails
            raise _unwritable(path, error) from None
        start = log.tell()
        bootstrap = [sys.executable, "-I", "-S", str(child.__file__)]
        settings = [str(os.getpid()), ",".join(map(str, cores)) or "-"]
        process = subprocess.Popen(
            [*bootstrap, *settings, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C reaches the launcher alone, which passes it on once
        )
    return Rank(rank, process, path, start)


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(log, error) from None


def _unwritable(log: Path, error: OSError) -> UserError:
    return UserError(f"{log}: cannot be written ({error.strerror}): mend its permissions, or make room", exit_code=1)


def _log(log_dir: Path, rank: int) -> Path:
    return log_dir / f"rank-{rank:05d}.log"


def _unmake(made: Sequence[Path]) -> None:
    """Takes back what was made, files before their folders, for a launch that has come to nothing."""
    for place in made:
        with suppress(OSError):  # it is not there, or something else is in it
            place.rmdir() if place.is_dir() else place.unlink()


@dataclass
class _Inbox:
    """Signals that arrived and were not looked at yet."""

    wake: int  # becomes readable when any signal arrives, SIGCHLD included
    waiting: list[int] = field(default_factory=list)

    def wait(self, seconds: float) -> list[int]:
        """Sleeps until a signal arrives or the time is up; returns the signals to pass on."""
        if select.select([self.wake], [], [], seconds)[0]:
            os.read(self.wake, 4096)
        arrived, self.waiting = self.waiting, []
        return arrived


@contextmanager
def _signals() -> Iterator[_Inbox]:
    """Collects the signals of `PASSED_ON` instead of acting on them, and puts everything back afterwards."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    inbox = _Inbox(readable)
    before = {}
    for signum in PASSED_ON:
        if signal.getsignal(signum) == signal.SIG_IGN:
            continue  # as nohup leaves SIGHUP: the run is to outlive its terminal
        before[signum] = signal.signal(signum, lambda number, _: inbox.waiting.append(number))
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # unless handled, it would wake nobody
    woken_before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield inbox
    finally:
        signal.set_wakeup_fd(woken_before)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(readable)
        os.close(writable)


class _Supervisor:
    """Watches the ranks from their start to the end of the last one."""

    def __init__(
        self, ranks: list[Rank], inbox: _Inbox, grace_seconds: float, failed: Callable[[int, str], None]
    ) -> None:
        self.ranks, self.failed = ranks, failed
        self.inbox = inbox
        self.grace_seconds = grace_seconds
        self.echo = LogEcho(ranks[0].log, ranks[0].log_start)
        self.started = time.monotonic()
        self.passed_on: list[int] = []
        self.failure: Rank | None = None  # the first rank that failed by itself
        self.obeyed: int | None = None  # exit code of the first rank that ended by a signal passed on to it
        self.saved = False  # a rank said that it has saved before any failed
        self.shown = False  # whether the failure was told
        self.terminate_at = self.kill_at = float("inf")  # time.monotonic() when the others get SIGTERM, SIGKILL

    def run(self) -> int:
        """Returns the exit code of the whole."""
        while any(rank.code is None for rank in self.ranks):
            now = time.monotonic()
            next_deadline = max(0.01, min(self.terminate_at, self.kill_at) - now)
            for signum in self.inbox.wait(min(POLL_SECONDS, next_deadline)):
                self._pass_on(signum)
            ended = [rank for rank in self.ranks if rank.poll()]
            self.echo.copy()
            for rank in sorted(ended, key=_likeliest_cause):
                self._note_end(rank)
            if not self._keep_deadlines():
                break
        return self._result()

    def _pass_on(self, signum: int) -> None:
        again = signum == signal.SIGINT and signal.SIGINT in self.passed_on
        self.passed_on.append(signum)
        if again:
            say("interrupted again: stopping now")
            self.kill_at = time.monotonic()
            return
        name = signal.Signals(signum).name
        say(f"{name}: passed on to {self._count()}; killing what is left in {self.grace_seconds:g} s")
        for rank in self.ranks:
            rank.send(PASSED_ON[signal.Signals(signum)])
        self._kill_in(self.grace_seconds)

    def _note_end(self, rank: Rank) -> None:
        if rank.code == 0 or rank.killed:
            return
        if rank.code == exit_codes.SAVED:
            self.saved = self.saved or self.failure is None
            self._kill_in(self.grace_seconds)
            return
        if rank.code in {exit_codes.of_signal(PASSED_ON[signal.Signals(signum)]) for signum in self.passed_on}:
            self.obeyed = self.obeyed or rank.code
            return
        if self.failure is not None:
            return
        self.failure = rank
        now = time.monotonic()
        if rank.code == exit_codes.USAGE:
            self.terminate_at = now + USAGE_WAIT_SECONDS
        else:
            self._show_failure()
            self.terminate_at = now

    def _keep_deadlines(self) -> bool:
        """Sends what is due; False when even killed processes do not end."""
        now = time.monotonic()
        if now >= self.terminate_at:
            self.terminate_at = float("inf")
            self._show_failure()
            if self._alive():
                say(f"stopping {self._count()}")
            for rank in self.ranks:
                rank.send(signal.SIGTERM)
            self._kill_in(min(CRASH_GRACE_SECONDS, self.grace_seconds))
        if now >= self.kill_at:
            stubborn = [rank for rank in self._alive() if not rank.killed]
            if stubborn:
                say(f"killing {', '.join(f'rank {rank.rank}' for rank in stubborn)}: not gone in time")
                for rank in stubborn:
                    rank.kill()
            elif now >= self.kill_at + KILL_WAIT_SECONDS:
                for rank in self._alive():
                    say(f"rank {rank.rank} (process {rank.process.pid}) does not end even when killed; leaving it")
                return False
        return True

    def _result(self) -> int:
        self.echo.copy()
        ends = f"after {time.monotonic() - self.started:.0f} s; logs in {self.ranks[0].log.parent}"
        codes = [rank.code for rank in self.ranks]
        if self.saved:
            say(f"saved and stopped; the same command goes on from there ({ends})")
            return exit_codes.SAVED
        if self.failure is not None and self.failure.code is not None:
            if codes[0] != exit_codes.USAGE:  # otherwise rank 0 has told the user what to mend, and that is all
                self._show_failure()
                self._tell_failure(self.failure, ends)
            return self.failure.code
        if self.obeyed is not None:
            say(f"stopped ({ends})")
            return self.obeyed
        if any(codes) or None in codes:
            say(f"stopped by force ({ends})")
            return exit_codes.KILLED
        say(f"{self._count(self.ranks)} done ({ends})")
        return exit_codes.DONE

    def _show_failure(self) -> None:
        """Tells once which rank failed, with what it said last."""
        rank = self.failure
        if rank is None or rank.code is None or self.shown:
            return
        self.shown = True
        self.echo.copy()
        if rank.rank == 0:  # its lines stand on the terminal already
            say(f"rank 0 {_how(rank)}")
            return
        lines = "".join(f"\n  | {line}" for line in last_lines(rank.log, rank.log_start))
        say(f"rank {rank.rank} {_how(rank)}" + (f"; the end of {rank.log}:{lines}" if lines else ", and said nothing"))

    def _tell_failure(self, first: Rank, ends: str) -> None:
        """The last words: what came first, though others have said much since, and what went down with it."""
        how = f"rank {first.rank} {_how(first)}"
        others = [f"rank {rank.rank} ({rank.code})" for rank in self.ranks if rank.code and rank is not first]
        after = f"; {', '.join(others)} ended after it, or was stopped" if others else ""
        say(f"failed: {how}: see {first.log}{after} ({ends})")
        self.failed(first.rank, f"{how}; its log is {first.log}")

    def _kill_in(self, seconds: float) -> None:
        self.kill_at = min(self.kill_at, time.monotonic() + seconds)

    def _alive(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.code is None]

    def _count(self, ranks: list[Rank] | None = None) -> str:
        number = len(self._alive() if ranks is None else ranks)
        return f"{number} rank{'' if number == 1 else 's'}"


def _how(rank: Rank) -> str:
    """How a rank ended, in words."""
    return exit_codes.in_words(rank.process.returncode)


def _likeliest_cause(rank: Rank) -> tuple[bool, bool, int]:
    """Sorts ranks that ended in the same moment: saved ones, then those a signal killed, which pull others along."""
    return (rank.code != exit_codes.SAVED, rank.process.returncode >= 0, rank.rank)


def say(message: str) -> None:
    """Prints a line of the launcher's own on stderr; a closed terminal is no reason to end a run."""
    with suppress(OSError):
        print(f"launch: {message}", file=sys.stderr, flush=True)
