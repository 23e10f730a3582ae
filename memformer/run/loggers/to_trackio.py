# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Trackio: by default a database on this machine, TRACKIO_DIR; its own variables name a Space or a server instead."""

import contextlib
import contextvars
import os
import sys
from collections.abc import Mapping

from memformer.run.loggers.protocol import Ended, LoggedRun

LEVELS: dict[Ended, str] = {"finished": "info", "stopped": "info", "failed": "error"}


class TrackioLogger:
    """One run there for all lives of a run here. Trackio knows runs by their names, so that the id is part of it."""

    def __init__(self, run: LoggedRun) -> None:
        import trackio

        self._trackio = trackio
        with contextlib.redirect_stdout(sys.stderr):  # stdout may be read by a program
            # In a context of its own: the thread that closes the run has none of Trackio's, and its handler for the end
            # of the process, which would finish the run once more, finds nothing to wait for.
            self._run = contextvars.Context().run(
                trackio.init,
                project=os.environ.get("TRACKIO_PROJECT") or "memformer",
                name=f"{run.name}-{run.identifier[:8]}",
                config=dict(run.settings),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A row of the step; a thread of Trackio's writes it."""
        self._run.log(dict(values), step=step)

    def close(self, how: Ended) -> None:
        """Trackio's runs have no state: an alert says how the run has ended."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.alert(f"run {how}", level=self._trackio.AlertLevel(LEVELS[how]))
            self._run.finish()
