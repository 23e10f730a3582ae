# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What one process finds for all, for longer than a collective may wait."""

import time
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.processes import collective_log, turns
from memformer.processes.group import World
from tests.distributed.processes import run_distributed

TAKES = 1.0


def found(world: World) -> dict[str, Any]:
    turns.TURN_SECONDS = TAKES / 10
    asked = collective_log.LOG.count

    def slow() -> int:
        time.sleep(TAKES)
        return world.rank + 7

    def refuses() -> int:
        raise UserError("no checkpoint: mend that")

    def fails() -> int:
        raise ValueError("a fault of the program")

    answer: dict[str, Any] = {"found": turns.found_by_main(world, slow), "asked": collective_log.LOG.count - asked}
    for work in (refuses, fails):
        with pytest.raises((UserError, ValueError)) as caught:
            turns.found_by_main(world, work)
        answer[work.__name__] = (type(caught.value).__name__, str(caught.value))
    return answer


@pytest.mark.distributed
def test_all_processes_have_what_one_found_and_ask_meanwhile() -> None:
    main, other = run_distributed(found, 2)
    assert main["found"] == other["found"] == 7
    assert main["asked"] == other["asked"] > 5, "no collective waits as long as the work takes"
    assert main["refuses"] == other["refuses"] == ("UserError", "no checkpoint: mend that")
    assert main["fails"] == ("ValueError", "a fault of the program")
    assert other["fails"] == ("UserError", "process 0: ValueError('a fault of the program')")
