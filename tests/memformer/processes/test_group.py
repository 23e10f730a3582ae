# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Who a process is, from torchrun's or Slurm's variables; its device; and collectives of one process alone.

Several processes: tests/distributed/test_topology.py (axes), and every other test of that folder.

Covers: memformer/processes/environment.py
"""

import pytest
import torch

from data_pipeline.errors import UserError
from memformer.processes import group
from memformer.processes.topology import Axis


def test_a_single_process_has_all_variables() -> None:
    environment: dict[str, str] = {}
    group.prepare_environment(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("0", "1", "0")
    assert environment["MASTER_ADDR"] == "127.0.0.1" and int(environment["MASTER_PORT"]) > 0


def test_slurms_variables_stand_in_for_torchruns() -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    meeting = {"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}
    environment = {**slurm, **meeting}
    group.prepare_environment(environment)
    assert environment == {**slurm, **meeting, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    # Inside a batch script, outside of any step, there is one process.
    alone = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    group.prepare_environment(alone)
    assert alone["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": ""}, "environment variable WORLD_SIZE is ''"),
        ({"MASTER_PORT": "http"}, "environment variable MASTER_PORT is 'http'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_a_variable_that_is_missing_is_named(change: dict[str, str], said: str) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    group.prepare_environment(dict(whole))
    with pytest.raises(UserError, match=said):
        group.prepare_environment({**whole, **change})


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert group.choose_device("auto", 0) == group.choose_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(UserError, match=r"device: local rank 0 has no GPU \(0 visible\)"):
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
