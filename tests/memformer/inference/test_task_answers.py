# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents shared by processes: the answers of one process, in its order; a process that is killed is one line.

Real processes. Both sides compute with one thread, so likelihoods are equal to the last bit.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline import UserError
from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.inference.task_answers import OneProcess, SeveralProcesses, device_of
from memformer.inference.tasks import Prompt
from memformer.models.loading import load_model
from tests.launch.test_evaluate_command import export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    make_tokenizer("bytes").save(folder)
    return export(folder / "model", folder)


def batches(count: int = 7) -> Iterator[list[Prompt]]:
    """Of one to three documents, of which some take much longer than others."""
    random = np.random.default_rng(0)
    for number in range(count):
        lengths = random.integers(5, 400 if number % 3 else 30, size=1 + number % 3)
        yield [Prompt(random.integers(256, size=length), ((length - 3, length),)) for length in lengths]


def test_processes_give_the_answers_of_one_and_a_kill_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = {"one": 0, "two": 0}

    def count(name: str, tokens: int) -> None:
        told[name] += tokens

    alone = OneProcess(load_model(model), lambda tokens: count("one", tokens))
    cpu, dtype = torch.device("cpu"), torch.float32
    with SeveralProcesses(model, 2, cpu, dtype, alone.context, lambda tokens: count("two", tokens)) as shared:
        assert list(shared(batches())) == list(alone(batches()))
        assert told["two"] == told["one"] > 0
        assert list(shared([])) == [] and len(list(shared(batches(1)))) == 1  # again, by the same processes
        pids = [process.pid for process in shared._processes]
        assert len(set(pids)) == 2
        answers = shared(batches(200))
        next(answers)
        assert pids[1] is not None
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(UserError, match=rf"--processes 2: process {pids[1]} was killed by SIGKILL: if memory"):
            list(answers)
    assert not any(process.is_alive() for process in shared._processes)


def test_what_fails_in_a_process_is_said_here(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    cpu = torch.device("cpu")
    with SeveralProcesses(tmp_path, 1, cpu, torch.float32, None) as answers:
        with pytest.raises(UserError, match=r"model\.safetensors") as failed:
            list(answers(batches(1)))
        assert failed.value.exit_code == 1


def test_gpus_are_taken_in_turn() -> None:
    cuda = torch.device("cuda")
    assert [device_of(cuda, number, 2).index for number in range(4)] == [0, 1, 0, 1]
    assert device_of(torch.device("cuda:1"), 2, 4).index == 1
    assert device_of(torch.device("cpu"), 3, 0).type == "cpu"
