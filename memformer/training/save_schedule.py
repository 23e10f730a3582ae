# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SaveSchedule`: when a run saves, and that it does not end well unless its last checkpoint is complete.

How a checkpoint is written is `Saver`'s business (memformer/checkpoints/saving.py).
"""

import time
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from memformer.checkpoints.saving import Saver, SaveReport
from memformer.training.callbacks import Callback, TrainingState


class SaveSchedule:
    """The checkpoints of a run. Every method is called by all processes together.

    Args:
        state: The run.
        identity: What checkpoints say of it (`run_identity`).
        tokenizer_file: Copied into each checkpoint.
        saved_step: The step of the checkpoint of this run that it goes on from; -1: none.
        callback: Told of each save that has ended.
    """

    def __init__(
        self, state: TrainingState, identity: dict[str, Any], tokenizer_file: Path, saved_step: int, callback: Callback
    ) -> None:
        self._state, self._settings, self._callback = state, state.config.checkpoint, callback
        self._saver = Saver(
            state.run, state.world, state.engine, identity, tokenizer_file, self._settings, self._save_ended
        )
        self._saved_step, self._last_save = saved_step, time.monotonic()
        self._error: str | None = None

    @property
    def writing(self) -> bool:
        """Whether this process is still writing in the background."""
        return self._saver.writing

    @property
    def due_by_clock(self) -> bool:
        """Whether `checkpoint.interval_minutes` have passed since the last save; clocks differ between processes."""
        minutes = self._settings.interval_minutes
        return bool(minutes) and time.monotonic() - self._last_save > 60 * minutes

    @property
    def due_by_step(self) -> bool:
        """Whether a checkpoint of the step that is done belongs to the run."""
        step, interval = self._state.progress.step, self._settings.interval
        return step == self._state.config.training.max_steps or bool(interval and step % interval == 0)

    def save(self) -> None:
        """Writes a checkpoint of the step that is done, or starts to, unless there is one already."""
        step = self._state.progress.step
        if self._saved_step != step:
            self._saved_step, self._last_save = step, time.monotonic()
            self._saver.start(self._state.lanes, self._state.progress)

    def settle(self) -> None:
        """Publishes the save under way, if there is one."""
        self._saver.settle()

    def settle_last(self) -> None:
        """Waits for the last checkpoint to be complete: leaving without it must not look like success.

        Raises:
            UserError: It could not be written.
        """
        self._saver.settle()
        if self._error is not None:
            raise UserError(
                f"checkpoint: step {self._state.progress.step} could not be saved ({self._error}): make room on the "
                "disk of run_dir and start the run again, it goes on from the last checkpoint",
                exit_code=1,
            )

    def _save_ended(self, report: SaveReport) -> None:
        """A disk that is full is no reason to end a run, unless it still is at the end: the step may be saved again."""
        self._error = report.error
        if report.error is not None and report.step == self._saved_step:
            self._saved_step = -1
        self._callback.after_save(self._state, report)
