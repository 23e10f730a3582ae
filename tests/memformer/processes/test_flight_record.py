# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The flight recorder's entries in words. What a real run leaves when it hangs: tests/faults/test_guards.py."""

from typing import Any

from memformer.processes.flight_record import ENTRIES, in_words, switch_on


def entry(number: int, group: list[str], state: str = "completed", **changes: Any) -> dict[str, Any]:
    return {
        "collective_seq_id": number,
        "p2p_seq_id": 7,
        "is_p2p": False,
        "input_sizes": [[4, 8]],
        "input_dtypes": ["Float"],
        "process_group": group,
        "profiling_name": "nccl:all_reduce",
        "retired": False,
        "state": state,
        **changes,
    }


def test_the_last_of_each_group_in_words() -> None:
    world, data = ["0", "default_pg"], ["1", "undefined"]
    record = {
        "entries": [
            *(entry(number, world) for number in range(1, 6)),
            entry(1, data, "started", profiling_name="nccl:all_gather", input_sizes=[[], [2]]),
            entry(6, world, "scheduled", retired=True),
            entry(9, data, "scheduled", is_p2p=True, profiling_name="nccl:send 0->1", input_dtypes=["Half", "Half"]),
        ]
    }
    assert in_words(record) == [
        "default_pg 0: nccl:all_reduce 4 of 4x8 Float: completed",
        "default_pg 0: nccl:all_reduce 5 of 4x8 Float: completed",
        "default_pg 0: nccl:all_reduce 6 of 4x8 Float: completed",
        "group 1: nccl:all_gather 1 of 1, 2 Float: started, not completed",
        "group 1: nccl:send 0->1 7 of 4x8 Half: scheduled, not completed",
    ]


def test_it_is_switched_on_unless_somebody_has_said_otherwise() -> None:
    for given, kept in (({}, str(ENTRIES)), ({"TORCH_FR_BUFFER_SIZE": "0"}, "0")):
        environment = dict(given)
        switch_on(environment)
        assert environment == {"TORCH_FR_BUFFER_SIZE": kept}
    older = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "5"}
    switch_on(older)
    assert older == {"TORCH_NCCL_TRACE_BUFFER_SIZE": "5"}
