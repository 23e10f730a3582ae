# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Life`: from the moment in which a run has its directory to itself until it has said how it ended.

The last event of a life tells how: `end` (finished, or nothing to do), `preemption` (asked to stop), `failure` or
`hang`. A life that is refused leaves the directory as it was. One that is killed can say nothing: its lock then names a
process that is no more (memformer/run/lock.py), from which `memformer status` and the next life know.
"""

import errno
import math
import threading
import types

from data_pipeline.errors import UserError
from memformer.checkpoints.state import probe_losses
from memformer.processes import group
from memformer.processes.group import World, lost_peer
from memformer.run import exit_codes, lock
from memformer.run.directory import RunDirectory
from memformer.run.grace import Grace
from memformer.run.stop_requests import LAST_WORDS_SECONDS, LeavingAtOnce
from memformer.training.callbacks import TrainingState

NOT_LISTENING = "before the first step or after the last: nothing was saved"
LOST_PEER = "another process of the run has ended, or is not reached any more"
OF_THE_DISK = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
    }
)
"""Errors of writing and reading that say nothing of the program."""


class Life:
    """Context manager around everything that a run does in its directory; entered by all processes together.

    Args:
        run: The run.
        world: This process among all; the main one holds the lock, and says how the run ended.
        grace: How much time it has to end in.

    Raises:
        UserError: Another process trains there, or may do so.
    """

    def __init__(self, run: RunDirectory, world: World, grace: Grace) -> None:
        self._run, self._world, self.grace = run, world, grace
        self._lock: lock.RunLock | None = None
        self._accepted = False
        self._how: str | None = None
        self._looked = threading.Event()  # set once the lock is taken, or known not to be
        self._leaving = LeavingAtOnce(self._asked_to_leave)

    def __enter__(self) -> "Life":
        self._leaving.__enter__()
        try:
            self._take()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _take(self) -> None:
        """Takes the lock, on behalf of all processes."""
        refused: UserError | None = None
        if self._world.is_main:
            try:
                self._lock = lock.RunLock.take(self._run)
            except UserError as error:
                refused = error
            finally:
                self._looked.set()
        refused = group.from_main(refused)
        if refused is not None:
            raise refused

    def accept(self) -> None:
        """The run is what it should be: from here on, its directory is written."""
        self._accepted = True
        if self._lock is not None:
            self._lock.accept()
            self._run.create()

    def ended(self, exit_code: int) -> None:
        """The run says how it ends: nothing that comes now changes that."""
        self._how = lock.FINISHED if exit_code == exit_codes.DONE else lock.STOPPED

    def leave(self, reason: str) -> None:
        """Says that the process leaves at once, without having saved."""
        if self._world.is_main:
            self._run.event("preemption", reason=reason)
        self._release(lock.STOPPED)

    def _asked_to_leave(self) -> None:
        """SIGTERM, while the run does not listen: before its first step, or after its last."""
        if self._world.is_main:
            self._looked.wait(LAST_WORDS_SECONDS / 2)
        if self._how is None and self._accepted and self._world.is_main:
            self._run.event("preemption", reason=f"SIGTERM, {NOT_LISTENING}")
        self._release(self._how or lock.STOPPED)

    def give_up(self) -> None:
        """Gives the directory free where somebody else has said why."""
        self._release(lock.FAILED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._leaving.__exit__(None, None, None)
        if not self._accepted:
            if self._lock is not None:
                self._lock.withdraw()
        else:
            if error is not None:
                self._tell(error)
            self._release(self._how or lock.FAILED)
        if error is not None and self._world.size > 1 and (said := lost_peer(error)):
            raise UserError(
                f"rank {self._world.rank}: {LOST_PEER} ({said}): the log of the process that ended first says why",
                exit_code=exit_codes.FAILED,
            ) from None
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise UserError(
                f"{error.filename or self._run.root}: {error.strerror}: make room, or mend the disk or its "
                "permissions, and start the run again: it goes on from the last checkpoint",
                exit_code=exit_codes.FAILED,
            ) from None

    def _release(self, how: str) -> None:
        if self._lock is not None:
            self._lock.release(how)

    def _tell(self, error: BaseException) -> None:
        """The event of a life that failed: once, but for a process that fails by itself."""
        rank, lost = self._world.rank, lost_peer(error)
        if not self._world.is_main and (lost or isinstance(error, UserError)):
            return  # the main process says the same, or was told of it
        if isinstance(error, KeyboardInterrupt):
            if self._how is None:  # otherwise the run has said how it ended
                self._how = lock.STOPPED
                self._run.event("preemption", reason=f"SIGINT, {NOT_LISTENING}")
            return
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_first_line(error)}"
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            reason = f"{error.filename or self._run.root}: {error.strerror}"
        if lost:
            reason = f"{LOST_PEER} ({lost})"
        # What `follows` from another process's end is not what went wrong.
        self._run.event("failure", reason=reason, rank=rank, **({"follows": True} if lost else {}))


def refuse_untrained(state: TrainingState) -> None:
    """A run that has come to its last step without a model that is of use has not trained. Called by all processes.

    Raises:
        UserError: No step was applied, or the weights give no finite loss any more.
    """
    steps, skipped = state.progress.step, state.progress.skipped_steps
    if steps and skipped >= steps:
        found = f"none of the {steps} steps was applied, since no gradient was finite"
    elif group.all_max(not all(map(math.isfinite, probe_losses(state.engine)))):
        found = f"after {steps} steps, {skipped} of them left out, the model gives no finite loss any more"
    else:
        return
    raise UserError(
        f"training: {found}: lower optimizer.learning_rate or choose another precision, and start in another run_dir",
        exit_code=exit_codes.FAILED,
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
