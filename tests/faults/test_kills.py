# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""kill -9 of a random process, or of all, at random moments of training and of saving: nothing is lost or changed.

8 lives are cut short in the normal suite; MEMFORMER_KILLS sets another number for a longer hunt.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from memformer.run.directory import RunDirectory
from tests.books import small_dataset
from tests.faults.lives import PROCESSES, assert_every_token_once, finish, metrics_of, start, wait_for

KILLS = int(os.environ.get("MEMFORMER_KILLS", "8"))
STEPS, LONGEST_DELAY = 24, 0.6

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(300 + 15 * KILLS)]


def settings(background: bool) -> dict[str, Any]:
    return {
        "training": {"max_steps": STEPS},
        "parallel": {"zero_stage": 2},
        "checkpoint": {"interval": 2, "background": background},
    }


def killed_life(root: Path, name: str, background: bool, chance: random.Random) -> bool:
    """Starts a life and kills it at a random moment after its first new step; False if it has ended before."""
    run = RunDirectory(root / name)
    before = run.events.read_bytes().count(b'"start"') if run.events.exists() else 0
    processes = start(root, name, settings(background))

    def started() -> bool:
        return run.events.exists() and run.events.read_bytes().count(b'"start"') > before

    # The kill before may have come after the last checkpoint: then there is nothing left to start.
    wait_for(lambda: started() or not any(process.is_alive() for process in processes), processes)
    if not started():
        assert [process.exitcode for process in processes] == [0, 0]
        return False
    time.sleep(chance.uniform(0, LONGEST_DELAY))
    doomed = processes if chance.random() < 0.5 else [chance.choice(processes)]
    alive = [process for process in doomed if process.is_alive()]
    for process in alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    # As the launcher does: what waits for a dead process is killed too.
    finish(processes, seconds=0.5 if alive else 60)
    return bool(alive) and any(process.exitcode != 0 for process in processes)


def test_runs_that_are_killed_at_random_are_bit_equal_to_one_in_peace(tmp_path: Path) -> None:
    small_dataset(tmp_path, characters=3_000)
    assert finish(start(tmp_path, "peace", settings(background=False))) == [0, 0]
    expected = metrics_of(RunDirectory(tmp_path / "peace"))
    kills, number = 0, 0
    while kills < KILLS:
        number += 1
        name, run = f"run-{number}", RunDirectory(tmp_path / f"run-{number}")
        for life in range(100):
            chance = random.Random(1000 * number + life)
            if kills == KILLS:
                assert finish(start(tmp_path, name, settings(number % 2 == 0))) == [0, 0]
                break
            if not killed_life(tmp_path, name, number % 2 == 0, chance):
                break
            kills += 1
        logs = "".join((tmp_path / f"{name}-{rank}.log").read_text()[-3000:] for rank in range(PROCESSES))
        assert metrics_of(run) == expected, f"run {number} differs from the one in peace\n{logs}"
        assert_every_token_once(run)
