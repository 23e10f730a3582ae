# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How many threads on a CPU a model is worth."""

import pytest
import torch

from memformer import Memformer, MemformerConfig
from memformer.inference.threads import BYTES_A_THREAD, spare_threads, worthwhile_threads


@pytest.mark.parametrize(
    ("weights", "chosen"), [(1000, 1), (BYTES_A_THREAD - 4, 1), (3 * BYTES_A_THREAD, 4), (2**40, 8)]
)
def test_threads_are_as_many_as_a_token_is_worth(monkeypatch: pytest.MonkeyPatch, weights: int, chosen: int) -> None:
    class Model:
        device = torch.device("cpu")

        @staticmethod
        def named_parameters() -> list[tuple[str, torch.Tensor]]:
            return [("weight", torch.empty(weights // 4, device="meta"))]

    threads = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    spare_threads(Model)  # type: ignore[arg-type]  # what is asked of a model here
    assert threads == [8], "the user's own number stands"
    monkeypatch.delenv("OMP_NUM_THREADS")
    spare_threads(Model)  # type: ignore[arg-type]  # as above
    assert threads == [8, chosen]


@pytest.mark.parametrize(("length", "chosen"), [(16, 1), (2**16, 8)])
def test_a_small_segment_is_read_by_one_thread(monkeypatch: pytest.MonkeyPatch, length: int, chosen: int) -> None:
    model = Memformer(MemformerConfig(vocab_size=32, start_token_id=0, d_model=32, num_heads=2, num_memory_slots=4))
    threads = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with worthwhile_threads(model, length):
        assert threads[-1] == chosen
    assert threads[-1] == 8
