# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Mirroring`: has every checkpoint of a run copied to `checkpoint.mirror`, and says how far that got."""

import logging
import time
import types

from data_pipeline.object_store import ObjectStore
from memformer.checkpoints.mirror import Mirror, MirrorReport
from memformer.checkpoints.resuming import Start
from memformer.checkpoints.saving import SaveReport
from memformer.config.schema import CheckpointConfig
from memformer.processes import group
from memformer.run.grace import Grace
from memformer.training.callbacks import Callback, TrainingState

LOG = logging.getLogger("memformer")
_TURN_SECONDS = 0.25
_AGAIN_SECONDS = 2.0
_CLOSING_SECONDS = 5.0


class Mirroring(Callback):
    """The mirror of a run, on all of its processes, of which one copies; a context manager, which ends the copying.

    Args:
        settings: Where the mirror is; without one, nothing happens.
        state: The run.
        start: Where it begins: a checkpoint of its own may not have been copied yet.
        grace: How long it may wait once it is asked to stop.
    """

    def __init__(self, settings: CheckpointConfig, state: TrainingState, start: Start, grace: Grace) -> None:
        self._settings, self._state, self._start, self._grace = settings, state, start, grace
        self._mirror: Mirror | None = None

    def __enter__(self) -> "Mirroring":
        if self._settings.mirror is not None and self._state.world.is_main:
            store = ObjectStore(self._settings.mirror)
            self._mirror = Mirror(store, self._state.run, self._settings, self._copied)
            if self._start.own and self._start.checkpoint is not None:
                self._mirror.offer(self._start.checkpoint)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._mirror is not None:
            self._mirror.close(_CLOSING_SECONDS)

    def after_save(self, state: TrainingState, report: SaveReport) -> None:
        """A checkpoint is complete."""
        if self._mirror is not None and report.directory is not None:
            self._mirror.offer(report.directory)

    def wait(self) -> None:
        """Waits for the last copy, at most `checkpoint.mirror_wait_seconds` and what is left of the grace.

        Called by all processes: whichever has the least time decides, since the others cannot stay without it.
        """
        if self._settings.mirror is None:
            return
        seconds = min(self._settings.mirror_wait_seconds, self._grace.left())
        deadline = time.monotonic() + min(group.gather(seconds))
        if self._mirror is not None:
            self._mirror.offer_failed()
        again = time.monotonic() + _AGAIN_SECONDS
        while group.from_main(self._may_come() and time.monotonic() < deadline):
            time.sleep(_TURN_SECONDS)
            if self._mirror is not None and not self._mirror.busy and time.monotonic() > again:
                self._mirror.offer_failed()
                again = time.monotonic() + _AGAIN_SECONDS
        missing = [] if self._mirror is None else self._mirror.missing()
        if missing:
            self._state.event("mirror_incomplete", steps=missing, address=self._settings.mirror)
            LOG.warning(
                "%s has no complete copy of step %s: the same command goes on with it, when it is started again",
                self._settings.mirror,
                ", ".join(map(str, missing)),
            )

    def _may_come(self) -> bool:
        """Whether a copy is under way, or one that failed may succeed after all."""
        return self._mirror is not None and (self._mirror.busy or self._mirror.may_pass)

    def _copied(self, report: MirrorReport) -> None:
        if report.copied is not None:
            details = {**vars(report.copied), "deleted": report.deleted}
            self._state.event("mirror", step=report.step, address=report.address, **details)
            LOG.info(
                "copied step %d to %s: %.1f MB sent, %.1f MB were there, in %.1f s",
                report.step,
                report.address,
                report.copied.sent / 1e6,
                report.copied.found / 1e6,
                report.copied.seconds,
            )
        if report.error is not None:
            self._state.event("mirror_failed", step=report.step, address=report.address, reason=report.error)
            what = "is not copied" if report.copied is None else "is copied, but old copies could not be deleted"
            LOG.warning(
                "step %d %s (%s); the run goes on, and tries again with its next checkpoint",
                report.step,
                what,
                report.error,
            )
