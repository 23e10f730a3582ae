# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The line of a process whose memory runs out; `test_profiling.py` has it of whole runs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_pipeline import UserError
from memformer.training.out_of_memory import told_when_out_of_memory
from tests.memformer.planning.test_backbone import run_of


@pytest.mark.parametrize(("window", "parts"), [(0, "segments"), (3, "windows")])
def test_what_was_done_is_counted_in_what_is_trained_at_a_time(window: int, parts: str) -> None:
    run, events = run_of(training={"wavefront_window": window}), []
    state: Any = SimpleNamespace(
        config=run,
        engine=SimpleNamespace(model=SimpleNamespace(config=run.model)),
        progress=SimpleNamespace(step=4),
        run=SimpleNamespace(event=lambda name, **fields: events.append((name, fields["step"]))),
        world=SimpleNamespace(rank=0, device="cuda:0", size=1, mesh=SimpleNamespace(pipe=SimpleNamespace(rank=0))),
    )
    with pytest.raises(UserError) as error, told_when_out_of_memory(state, lambda: 2):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert str(error.value).startswith(
        f"out of memory at step 5, rank 0 on cuda:0, {parts} of the rollout that were done: 2, asked for: 2.00 GiB; "
    )
    assert events == [("out_of_memory", 5)]
