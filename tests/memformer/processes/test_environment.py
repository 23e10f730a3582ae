# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Who a process is, from torchrun's or Slurm's variables."""

import os
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from memformer.processes import environment as module
from memformer.processes.environment import first_host, is_task_among_others, prepare_environment
from memformer.processes.ports import RANGE

STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_NODELIST": "login,gpu[07-08]",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
}
"""What a task of `srun --ntasks 8` on two nodes of a job of three sees."""


def prepared(variables: dict[str, str]) -> dict[str, str]:
    found = dict(variables)
    prepare_environment(found)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: found[name] for name in names}


def is_alone(variables: dict[str, str]) -> bool:
    found = prepared(variables)
    port = int(found.pop("MASTER_PORT"))
    return port in RANGE and found == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def test_a_process_by_itself_is_a_run_of_one() -> None:
    assert is_alone({})
    assert is_alone({"MASTER_ADDR": "left-over", "MASTER_PORT": "29500"})


def test_a_batch_script_is_no_step() -> None:
    assert is_alone({"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})


def test_the_tasks_of_a_step_find_each_other_by_what_slurm_tells_them() -> None:
    found = prepared(STEP)
    assert found | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07"} == found
    assert int(found["MASTER_PORT"]) in RANGE
    other = prepared(STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert (other["MASTER_ADDR"], other["MASTER_PORT"]) == (found["MASTER_ADDR"], found["MASTER_PORT"])
    for change in ({"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_ID": "78"}):
        assert prepared(STEP | change)["MASTER_PORT"] != found["MASTER_PORT"], "steps beside each other, or later"


def test_what_is_set_is_not_chosen() -> None:
    found = prepared(STEP | {"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("node-1", "29500")
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert prepared(STEP | torchrun) == torchrun


def test_on_one_machine_its_name_need_not_resolve() -> None:
    one = {name: value for name, value in STEP.items() if "STEP_N" not in name} | {"SLURM_JOB_NODELIST": "node1"}
    assert prepared(one)["MASTER_ADDR"] == "127.0.0.1" and prepared(one)["WORLD_SIZE"] == "8"
    assert prepared(STEP | {"SLURM_STEP_NUM_NODES": "1"})["MASTER_ADDR"] == "127.0.0.1"
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        prepared({name: value for name, value in STEP.items() if "NODE" not in name})


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, True),  # the shell of salloc: the job asked for eight
        ({"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_PTY_PORT": "1"}, True),  # a shell of srun --pty --ntasks 8 bash
        ({"SLURM_PTY_PORT": "1"}, False),  # handed down from such a shell to a task of another step
        (
            {"SLURM_PROCID": "0", "SLURM_PTY_PORT": "1", "SLURM_TASK_PID": str(os.getpid())},
            False,
        ),  # srun --pty memformer
    ],
)
def test_a_task_among_others_and_a_shell(change: dict[str, str], alone: bool) -> None:
    assert is_task_among_others(STEP | change) is not alone
    assert is_alone(STEP | change) is alone


@pytest.mark.parametrize("terminal", [True, False])
def test_a_script_of_a_step_that_was_started_from_a_shell_has_no_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(module, "_has_terminal", lambda: terminal)
    first = STEP | {"SLURM_PROCID": "0", "SLURM_PTY_PORT": "1", "SLURM_TASK_PID": "1"}
    assert is_task_among_others(first) is not terminal


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("rack[1-2]n[3,5]-ib", "rack1n3-ib"),
        ("a-b[10]", "a-b10"),
        ("", ""),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": ""}, "environment variable WORLD_SIZE is ''"),
        ({"MASTER_PORT": "http"}, "environment variable MASTER_PORT is 'http'"),
        ({"MASTER_PORT": "70000"}, "environment variable MASTER_PORT is 70000: set it to a port from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 0"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"RANK": "2"}, "environment variable RANK is 2, but WORLD_SIZE is 2: ranks go from 0"),
    ],
)
def test_a_variable_that_is_missing_or_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    prepare_environment(dict(whole))
    without = {name: value for name, value in whole.items() if name != "WORLD_SIZE"}
    with pytest.raises(UserError, match="environment variable WORLD_SIZE is not set: set it to a number"):
        prepare_environment(without)
    with pytest.raises(UserError, match=said):
        prepare_environment({**whole, **change})


def test_deepspeed_takes_the_gpu_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local rank 3, which sees its own GPU alone, as number 0."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    with module.local_rank_of(torch.device("cuda", 0)):
        assert os.environ["LOCAL_RANK"] == "0"
    assert os.environ["LOCAL_RANK"] == "3"
    with module.local_rank_of(torch.device("cpu")):
        assert os.environ["LOCAL_RANK"] == "3"
