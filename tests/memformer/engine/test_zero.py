# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's hooks while all parameters are gathered: off, and back as they were; its linear maps, taken back.

The rest of the module, and that sums are equal: tests/distributed/test_zero.py.
"""

import types

import pytest
import torch

from memformer.engine.zero import coordinator_at_rest, give_linear_back


class Coordinator:
    """Notes what is fetched and released."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def fetch_sub_module(self, module: object, forward: bool = True) -> None:
        self.seen.append("fetch")

    trace_prologue = record_module = reset_step = release_sub_module = fetch_sub_module


def test_hooks_of_deepspeed_rest_and_come_back_in_their_order() -> None:
    coordinator, called, module = Coordinator(), list[str](), torch.nn.Sequential(torch.nn.Linear(2, 2))

    def theirs(*_: object) -> None:
        called.append("deepspeed's")

    theirs.__module__ = "deepspeed.utils.nvtx"
    for hook in (theirs, lambda *_: called.append("ours"), theirs):
        module[0].register_forward_hook(hook)
        module[0].register_forward_pre_hook(hook)
    optimizer = types.SimpleNamespace(
        parameter_offload=types.SimpleNamespace(get_param_coordinator=lambda: coordinator)
    )
    with pytest.raises(KeyboardInterrupt), coordinator_at_rest(module, optimizer):
        module(torch.ones(1, 2))
        coordinator.fetch_sub_module(module, forward=True)
        raise KeyboardInterrupt
    assert called == ["ours", "ours"] and coordinator.seen == []
    module(torch.ones(1, 2))
    coordinator.fetch_sub_module(module)
    assert called[2:] == 2 * ["deepspeed's", "ours", "deepspeed's"] and coordinator.seen == ["fetch"]


def test_what_comes_after_a_run_has_torchs_linear_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Replacing

    own = torch.nn.functional.linear
    monkeypatch.setattr(Replacing, "linear_bk", own, raising=False)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: None)
    give_linear_back()
    assert torch.nn.functional.linear is own
