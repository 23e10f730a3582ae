# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`StopAgreement`: all processes leave a run at the same point, though only one of them may have been asked to.

A process that left alone would leave the others waiting in a collective. So each keeps what its own signals say
(`StopRequests`) apart from what all have agreed on, and acts on the second alone.
"""

import logging

from memformer.processes import group
from memformer.run.stop_requests import StepAbandoned, StopRequests
from memformer.training.callbacks import TrainingState

LOG = logging.getLogger("memformer")
AGREE_EVERY = 8
"""Batches of an evaluation between two looks at requests to stop."""


class StopAgreement:
    """Whether the run is to stop, as all processes know it. Every method is called by all of them together.

    Args:
        requests: What this process was asked.
        finish_step_seconds: Steps that take less are finished before the run stops.
    """

    def __init__(self, requests: StopRequests, finish_step_seconds: float) -> None:
        self._requests, self._finish_step_seconds = requests, finish_step_seconds
        self._step_seconds = 0.0
        self.urgency = 0
        """0: go on; 1: stop and be started again; 2: stop for good."""

    def ask(self) -> bool:
        """Agrees anew; whether the run is to stop."""
        self.urgency = group.all_max(self._requests.urgency)
        return self.urgency > 0

    def after_step(self, step_seconds: float, writing: bool, save_due: bool) -> tuple[bool, bool]:
        """What all processes must know alike after a step, in one collective.

        Args:
            step_seconds: How long the step took here.
            writing: Whether this process is still writing a checkpoint.
            save_due: Whether a save is due by this process's clock.

        Returns:
            Whether any process is writing, and whether a save is due by any clock.
        """
        self.urgency, any_writing, milliseconds, any_due = group.all_max_each(
            [self._requests.urgency, writing, int(1000 * step_seconds), save_due]
        )
        self._step_seconds = milliseconds / 1000
        return bool(any_writing), bool(any_due)

    def between_segments(self) -> None:
        """Where steps are long, a run that is asked to stop does not finish one.

        Raises:
            StepAbandoned: It is asked to stop.
        """
        if self._step_seconds >= self._finish_step_seconds and self.ask():
            raise StepAbandoned

    def before_batch(self, number: int, segments: int = 1) -> None:
        """An evaluation ends early as well; it is asked every few segments.

        Args:
            number: Of the batch, counted from 0.
            segments: That a batch has.

        Raises:
            StepAbandoned: The run is asked to stop.
        """
        if number * segments % AGREE_EVERY < segments and self.ask():
            raise StepAbandoned

    def leave(self, state: TrainingState) -> int:
        """Says that the run leaves, once it has saved; returns the exit code."""
        step, reason = state.progress.step, self._requests.reason()
        LOG.info("stopped after step %d by %s; the same command goes on", step, reason)
        state.event("preemption", step=step, reason=reason)
        group.barrier()  # every process has looked at the stop file
        if state.world.is_main:
            file = state.run.stop_file
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                LOG.warning(
                    "%s: cannot be removed (%s): remove it, or the next life stops at once", file, error.strerror
                )
        return self._requests.exit_code(self.urgency)
