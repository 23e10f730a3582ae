# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Grace`: how much time a run that is asked to stop has left until whoever started it ends it.

Launchers say it by `MEMFORMER_GRACE_SECONDS`: the seconds between their signal and the end. Newer versions of Slurm say
besides when the job ends. What can wait for the next life, as the copy of a checkpoint that is complete here, must not
take longer: a run that is killed while it waits has not said by its exit code that it has saved.
"""

import math
import os
import time
from collections.abc import Mapping

from data_pipeline.errors import UserError

VARIABLE = "MEMFORMER_GRACE_SECONDS"
LEAVING_SECONDS = 30.0
"""Of that time, at most half of it, is kept for the end itself: processes leave, a job asks for its requeue."""


class Grace:
    """The time that is left, in a process of the run.

    Args:
        environment: Environment variables.

    Raises:
        UserError: `MEMFORMER_GRACE_SECONDS` is no number of seconds.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._seconds = _given(environment)
        self._over = math.inf  # by time.monotonic()
        job_ends = environment.get("SLURM_JOB_END_TIME", "")
        self._job_ends = float(job_ends) if job_ends.isdecimal() else 0.0  # by time.time()

    def began(self, at: float) -> None:
        """The run was asked to stop, by `time.monotonic()`; the first time counts."""
        kept_back = min(LEAVING_SECONDS, self._seconds / 2)
        self._over = min(self._over, at + self._seconds - kept_back)

    def left(self) -> float:
        """Seconds that the run may still wait; infinite where nobody has said."""
        left, job = self._over - time.monotonic(), self._job_ends - time.time()
        if job > 0:  # otherwise the job was given more time than when it began
            left = min(left, job - LEAVING_SECONDS)
        return max(0.0, left)


def handed_down(seconds: float, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable for ranks that are given so many seconds; what the launcher was given itself holds if it is less.

    Raises:
        UserError: What it was given is no number of seconds.
    """
    return {VARIABLE: f"{min(max(0.0, seconds), _given(environment)):g}"}


def _given(environment: Mapping[str, str]) -> float:
    """The seconds by the environment; infinite where it says nothing."""
    text = environment.get(VARIABLE) or "inf"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UserError(f"environment variable {VARIABLE} is {text}: set it to a number of seconds, or unset it")
    return seconds
