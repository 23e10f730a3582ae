# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How much time a run that is asked to stop has left, by its launcher and by Slurm."""

import math
import time

import pytest

from data_pipeline.errors import UserError
from memformer.run.grace import VARIABLE, Grace, handed_down


def left(asked: float | None = 0.0, **environment: str) -> float:
    """Seconds that are left to a run that was asked to stop so many seconds ago; None: nobody has asked."""
    grace = Grace(environment)
    if asked is not None:
        grace.began(time.monotonic() - asked)
        grace.began(time.monotonic())  # a second signal gives no more
    return grace.left()


@pytest.mark.parametrize(
    ("asked", "seconds", "expected"), [(0, "300", 270), (0, "20", 10), (100, "300", 170), (100, "30", 0), (0, "0", 0)]
)
def test_the_launchers_seconds_count_from_the_first_signal(asked: float, seconds: str, expected: float) -> None:
    assert left(asked, **{VARIABLE: seconds}) == pytest.approx(expected, abs=1)
    assert left(None, **{VARIABLE: seconds}) == math.inf


def test_a_slurm_job_that_ends_sooner_decides() -> None:
    at = int(time.time())
    assert left(SLURM_JOB_END_TIME=str(at + 130)) == pytest.approx(100, abs=2)
    assert left(None, SLURM_JOB_END_TIME=str(at + 130)) == pytest.approx(100, abs=2)
    assert left(**{VARIABLE: "300", "SLURM_JOB_END_TIME": str(at + 1000)}) == pytest.approx(270, abs=2)
    assert left(SLURM_JOB_END_TIME=str(at + 10)) == 0
    assert left(SLURM_JOB_END_TIME=str(at - 10)) == math.inf, "the job was given more time"
    assert left(SLURM_JOB_END_TIME="Unknown") == left() == math.inf


def test_a_launcher_hands_down_what_it_was_given_itself_if_that_is_less() -> None:
    assert handed_down(120, {}) == {VARIABLE: "120"} == handed_down(120, {VARIABLE: "300"})
    assert handed_down(120, {VARIABLE: "30"}) == {VARIABLE: "30"}
    assert handed_down(-1, {}) == {VARIABLE: "0"}


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_what_is_no_number_of_seconds_is_named(text: str) -> None:
    with pytest.raises(UserError, match=rf"variable {VARIABLE} is {text}: set it to a number of seconds, or unset it"):
        Grace({VARIABLE: text})
