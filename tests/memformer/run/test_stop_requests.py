# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a process makes of the signals that ask it to stop, in processes of their own."""

import signal
import subprocess
import sys

import pytest

from tests import ROOT

LISTEN = """
import os, signal, sys, time
from pathlib import Path
from memformer.run import stop_requests
stop_requests.ECHO_SECONDS = float(sys.argv[1])
for number in map(int, sys.argv[3:]):
    if number == 0:
        stop_requests.hold_back()
    elif number > 0 and sys.argv[2] == "early":
        os.kill(os.getpid(), number)
times, entered = [], time.monotonic()
with stop_requests.StopRequests(
    Path("no-such-file"), leave=lambda why: os.write(1, why.encode()), signalled=times.append
) as requests:
    for number in map(int, sys.argv[3:]):
        if number > 0 and sys.argv[2] == "late":
            os.kill(os.getpid(), number)
    deadline = time.monotonic() + 20
    while not times and time.monotonic() < deadline:
        time.sleep(0.01)
    print(requests.urgency, requests.reason(), "told" if (times[0] < entered) == (sys.argv[2] == "early") else times)
"""
LEAVE = """
import os, signal, time
from memformer.run.stop_requests import LeavingAtOnce
with LeavingAtOnce(lambda: os.write(1, b"last words")):
    pass
with LeavingAtOnce(lambda: os.write(1, b"last words")):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
USR1, TERM, INT = int(signal.SIGUSR1), int(signal.SIGTERM), int(signal.SIGINT)


def listen(when: str, *numbers: int, echo_seconds: float = 5.0) -> tuple[int, str]:
    """Exit code and answer of a process that is sent the signals; 0 among them holds warnings back."""
    command = [sys.executable, "-c", LISTEN, str(echo_seconds), when, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stdout.strip()


def test_a_warning_that_came_before_the_run_listened_is_not_lost() -> None:
    assert listen("early", 0, USR1) == (0, "1 SIGUSR1 told")


@pytest.mark.parametrize("number", [USR1, TERM])
def test_one_warning_that_arrives_twice_is_one(number: int) -> None:
    assert listen("late", number, number) == (0, f"1 {signal.Signals(number).name} told")


def test_a_second_request_ends_the_process_at_once() -> None:
    for numbers, echo_seconds in (((TERM, TERM), -1.0), ((TERM, INT), 5.0)):
        code, said = listen("late", *numbers, echo_seconds=echo_seconds)
        assert code == 128 + numbers[1]
        assert f"a second signal, {signal.Signals(numbers[1]).name}: left at once, without saving" in said


def test_a_process_that_does_not_listen_leaves_with_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert (done.returncode, done.stdout) == (128 + TERM, "last words")
