# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`found_by_main`: one process works for all, for as long as it takes."""

import threading
from collections.abc import Callable
from typing import TypeVar

from data_pipeline.errors import UserError
from memformer.processes import group
from memformer.processes.group import World

TURN_SECONDS = 5.0
T = TypeVar("T")


def found_by_main(world: World, work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, a small picklable object, on all processes; called by all of them.

    The others ask every few seconds whether it is done: a collective must not wait, and nobody may look as if it stood
    still, for as long as it takes to read a large checkpoint.

    Raises:
        UserError: `work` raised it, or, on the other processes, any other exception.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # not to be lost in a thread
            errors.append(error)

    thread = threading.Thread(target=run, name="work for all processes", daemon=True)
    if world.is_main:
        thread.start()
    while group.from_main(thread.is_alive()):
        if world.is_main:
            thread.join(TURN_SECONDS)
    error = errors[0] if errors else None
    said = error if error is None or isinstance(error, UserError) else UserError(f"process 0: {error!r}", exit_code=1)
    found, refused = group.from_main((results[0] if results else None, said))
    if error is not None:
        raise error
    if refused is not None:
        raise refused
    return found  # type: ignore[no-any-return]
