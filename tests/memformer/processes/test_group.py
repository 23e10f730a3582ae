# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The device of a process, and collectives of one process alone.

Several processes: tests/distributed/test_topology.py (axes), and every other test of that folder.
"""

import os
import types

import pytest
import torch

from data_pipeline.errors import UserError
from memformer.processes import group
from memformer.processes.topology import Axis


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert group.choose_device("auto", 0) == group.choose_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(UserError, match="device: is cuda, but there is no GPU here: set --device cpu"):
        group.choose_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert group.choose_device("auto", 1) == torch.device("cuda", 1)
    assert group.choose_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(UserError, match="start at most 2 processes a machine"):
        group.choose_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert group.choose_device("auto", 3) == torch.device("cuda", 0), "one GPU a task, whatever the local rank"


def test_a_process_that_is_alone_waits_for_nobody() -> None:
    values = torch.tensor([1.0, 2.0])
    assert group.everyone() == Axis()
    assert group.all_sum(values) is values and values.tolist() == [1.0, 2.0]
    assert (group.all_max(7), group.all_max_each([3, -4])) == (7, [3, -4])
    assert group.gather({"a": 1}) == [{"a": 1}]
    assert group.from_main("word") == "word"
    group.barrier()


@pytest.mark.parametrize(("device", "local_rank"), [("cuda:0", "0"), ("cuda:3", "3"), ("cpu", "3")])
def test_the_group_is_bound_to_the_device_of_the_process(
    device: str, local_rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed takes the GPU of the number LOCAL_RANK, which a task that sees one GPU does not have."""
    seen: list[tuple[str, str]] = []

    def init_distributed(dist_backend: str, **_: object) -> None:
        seen.append((os.environ["LOCAL_RANK"], dist_backend))

    logger = types.SimpleNamespace(setLevel=lambda level: None)
    deepspeed = types.SimpleNamespace(init_distributed=init_distributed, utils=types.SimpleNamespace(logger=logger))
    for name in ("LOCAL_RANK", "DS_ACCELERATOR", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(group, "import_deepspeed", lambda: deepspeed)
    monkeypatch.setattr(group, "importlib", types.SimpleNamespace(import_module=lambda name: types.SimpleNamespace()))
    monkeypatch.setattr(group.collective_log, "install", lambda: None)
    monkeypatch.setattr(group.hosts, "join", lambda seconds: None)
    group.join_deepspeed(torch.device(device), 1800)
    assert seen == [(local_rank, "gloo" if device == "cpu" else "nccl")]
    assert os.environ["LOCAL_RANK"] == "3"


def test_what_is_compiled_when_called_is_compiled_once_and_not_before() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    double = group.compiled_when_called(lambda x: x * 2, backend=backend)
    assert not compiled
    assert [double(torch.ones(2)).tolist() for _ in range(2)] == [[2.0, 2.0]] * 2
    assert len(compiled) == 1
