# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Threads that fetch ahead. Unlike those of `concurrent.futures`, they do not hold up the end of the interpreter."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_Job = tuple["Future[Any]", Callable[[], Any]]


class Background:
    """Runs calls in daemon threads, in the order of `submit`.

    Args:
        threads: Most calls at once; threads are started as they are needed.
        name: Of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._most, self._name = threads, name
        self._started = 0

    def submit(self, call: Callable[[], Any]) -> "Future[Any]":
        """A future of the call's result."""
        future: Future[Any] = Future()
        self._jobs.put((future, call))
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """Ends the threads after the calls that they are in; calls that wait are not made."""
        try:
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[0].cancel()
        except queue.Empty:
            pass
        for _ in range(self._started):
            self._jobs.put(None)
        self._started = 0


def _work(jobs: "queue.SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        future, call = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        # Nothing of a call that is done keeps its store alive while the thread waits for the next.
        del job, future, call
