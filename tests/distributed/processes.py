# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Runs functions in several real processes over gloo, bounded in time.

The processes are forked from a server that has imported torch and DeepSpeed once: a start costs a tenth of a second
instead of seven. A `Crew` does one function after another, each with a time of its own. What went wrong is told of all
ranks, what came first at the top: a rank that raised, one that died without a word, and one that is late, with the
place where it is.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from memformer.processes import group
from memformer.processes.ports import free_port
from tests.distributed import collectives

TELL_STACK = signal.SIGQUIT
"""Makes a rank write where it is. The other signals mean something to a run."""

MOMENT_SECONDS = 3.0
"""How long after the first failure the others may still answer: what they say may be its consequence, or its cause."""

DEATH_SECONDS = 1.0
"""A death counts as so much earlier than it was noticed: the ranks that it made fail may have answered before."""


def run_distributed(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 240
) -> list[Any]:
    """Calls `function(world, *arguments)` in `world_size` processes of its own and returns their results by rank.

    Raises:
        AssertionError: As of `Crew.run`.
    """
    with Crew(world_size) as crew:
        return crew.run(function, *arguments, timeout_seconds=timeout_seconds)


class Crew:
    """Processes of one world that do what they are given, until one of them fails; the next work then has new ones.

    Args:
        size: How many. They start with the first work, and end with the `with` statement.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[_Rank] = []
        self._stacks = tempfile.TemporaryDirectory(prefix="stacks-")

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            for rank in self._ranks:
                rank.dismiss()
            for rank in self._ranks:
                rank.process.join(timeout=30)
        finally:
            self._end()
            self._stacks.cleanup()

    def run(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 240) -> list[Any]:
        """Calls `function(world, *arguments)` in all processes and returns their results by rank.

        Raises:
            AssertionError: A process failed (its traceback is in the message), died, or did not answer in time (its
                stack is in the message).
        """
        try:
            if not self._ranks:
                self._start()
            for rank in self._ranks:
                rank.give(function, arguments)
            _collect(self._ranks, timeout_seconds)
            problems = sorted((rank for rank in self._ranks if rank.problem), key=lambda rank: rank.since)
            assert not problems, "\n\n".join(rank.problem for rank in problems)
        except BaseException:
            self._end()
            raise
        return [rank.result for rank in self._ranks]

    def _start(self) -> None:
        context, port = fork_server(), free_port()
        for number in range(self.size):
            self._ranks.append(_Rank(context, number, Path(self._stacks.name) / f"rank-{number}"))
            self._ranks[-1].start(self.size, port)

    def _end(self) -> None:
        while self._ranks:
            self._ranks.pop().end()


class _Rank:
    """One process: what it answered, or what is wrong with it."""

    def __init__(self, context: ForkServerContext, number: int, stack_file: Path) -> None:
        self.number, self.stack_file = number, stack_file
        self.answers, self._child_end = context.Pipe()
        self._context = context
        self.process: Any = None
        self.answered = False
        self.result: Any = None
        self.problem, self.since = "", 0.0

    def start(self, size: int, port: int) -> None:
        given = (self._child_end, str(self.stack_file), self.number, size, port)
        self.stack_file.unlink(missing_ok=True)
        self.process = self._context.Process(target=_child, args=given, daemon=True)
        self.process.start()
        self._child_end.close()

    def give(self, function: Callable[..., Any], arguments: Any) -> None:
        self.answered, self.result = False, None
        with contextlib.suppress(OSError):  # it has died: `look` says so
            self.answers.send((function, arguments))

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            self.answers.send(None)

    def look(self) -> None:
        """Takes the answer if there is one, and notices a process that will give none."""
        code, closed = self.process.exitcode, False
        if self.answers.poll():
            try:
                self.result, failure, self.since = pickle.loads(self.answers.recv_bytes())
            except (EOFError, OSError):
                closed = True
            else:
                self.answered = True
                self.problem = f"rank {self.number} failed:\n{failure}" if failure else ""
                return
        if closed:
            self.process.join(timeout=5)
            code = self.process.exitcode
        if closed or code is not None:
            self.answered, self.since = True, time.monotonic() - DEATH_SECONDS
            self.problem = f"rank {self.number} died without an answer, exit code {code}"

    def end(self) -> None:
        if self.process is not None and self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.answers.close()


def _collect(ranks: list[_Rank], timeout_seconds: float) -> None:
    """Waits until all have answered, the time is up, or one has failed and the others have had a moment."""
    began = time.monotonic()
    end = began + timeout_seconds
    while late := [rank for rank in ranks if not rank.answered]:
        remaining = end - time.monotonic()
        if remaining <= 0:
            break
        # Both, since a process of its own that a rank has left behind may keep the pipe open.
        wait([*(rank.answers for rank in late), *(rank.process.sentinel for rank in late)], timeout=remaining)
        for rank in late:
            rank.look()
        if any(rank.problem for rank in ranks):
            end = min(end, time.monotonic() + MOMENT_SECONDS)
    gave_up = time.monotonic()  # before the stacks, which take a busy machine seconds
    stacks = _stacks(late)
    for rank in late:
        rank.since = gave_up
        waited = f"rank {rank.number} has not answered after {rank.since - began:.0f} s"
        rank.problem = f"{waited}; it is at\n{stacks[rank.number]}"


def _stacks(late: list[_Rank]) -> dict[int, str]:
    """The Python stack of each of these ranks: of all its threads, innermost call first."""
    begun = [rank for rank in late if rank.stack_file.exists()]
    for rank in begun:
        if rank.process.exitcode is None:
            os.kill(rank.process.pid, TELL_STACK)
    end = time.monotonic() + 5
    sizes: list[int] = []
    while time.monotonic() < end:
        time.sleep(0.2)
        before, sizes = sizes, [rank.stack_file.stat().st_size for rank in begun]
        if all(sizes) and sizes == before:
            break
    said = {
        rank.number: rank.stack_file.read_text() or "a place that it does not tell: it may be stopped" for rank in begun
    }
    return {rank.number: said.get(rank.number, "its start: the function was not called yet") for rank in late}


def fork_server() -> ForkServerContext:
    """Where test processes come from; started with the first of them."""
    # Until Python 3.12 the server does not take over this process's sys.path.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    return context


def _child(work: Connection, stack_file: str, rank: int, size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with open(stack_file, "w") as stacks:
        faulthandler.register(TELL_STACK, file=stacks)
        collectives.install()
        world = None
        with contextlib.suppress(EOFError):
            while given := work.recv():
                function, arguments = given
                try:
                    world = world or group.initialise("cpu", timeout_seconds=120)
                    # Pickled here: a result that cannot be is this rank's failure, and tensors travel by value.
                    answer = pickle.dumps((function(world, *arguments), None, time.monotonic()))
                except BaseException:
                    answer = pickle.dumps((None, traceback.format_exc(), time.monotonic()))
                work.send_bytes(answer)
        faulthandler.unregister(TELL_STACK)
