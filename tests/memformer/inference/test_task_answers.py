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
from data_pipeline.tasks.prompts import Prompt
from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.inference.task_answers import OneProcess, SeveralProcesses
from memformer.models.loading import load_model
from tests.launch.test_evaluate_command import export

CPU = torch.device("cpu")


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


def test_a_process_gives_the_answers_of_one_here_and_its_death_is_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several of them: `tests/launch/test_evaluate_tasks.py`."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = {"here": 0, "there": 0}

    def count(name: str, tokens: int) -> None:
        told[name] += tokens

    alone = OneProcess(load_model(model), lambda tokens: count("here", tokens))
    with SeveralProcesses(model, alone.model, [CPU], lambda tokens: count("there", tokens)) as shared:
        assert list(shared(batches())) == list(alone(batches()))
        assert told["there"] == told["here"] > 0
        assert list(shared([])) == [] and len(list(shared(batches(1)))) == 1  # again, by the same process
        pid = shared._processes[0].pid
        assert pid is not None and pid != os.getpid()
        answers = shared(batches(200))
        next(answers)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match=rf"--processes 1: process {pid} was killed by SIGKILL: if memory ran out"):
            list(answers)
    assert not shared._processes[0].is_alive()


def test_what_fails_in_a_process_is_said_here(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    with SeveralProcesses(tmp_path, load_model(model), [CPU]) as answers:
        with pytest.raises(UserError, match=r"model\.safetensors") as failed:
            list(answers(batches(1)))
        assert failed.value.exit_code == 1
