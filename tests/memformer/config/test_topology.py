# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which numbers of processes fit a run, held to counting; and that every command which starts one asks alike."""

import math
from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import UserError
from launch import cli, local
from memformer.config.schema import Config, parse_config
from memformer.config.topology import replicas_of


def a_run(lanes: int, tensor: int = 1, pipeline: int = 1, segment: int = 1) -> Config:
    parallel = {"tensor": tensor, "pipeline": pipeline, "segment": segment}
    data = {"path": "unused", "num_lanes": lanes}
    return parse_config({"run_dir": "unused", "data": data, "parallel": parallel}, "test")


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (4, 2, 1), (1, 1, 3), (2, 1, 2)])
@pytest.mark.parametrize("lanes", [1, 4, 6])
def test_the_answer_is_what_counting_gives(lanes: int, grid: tuple[int, int, int]) -> None:
    config, size = a_run(lanes, *grid), math.prod(grid)
    for world_size in range(1, 33):
        fitting = [each for each in range(1, lanes + 1) if each * size == world_size and lanes % each == 0]
        if fitting:
            assert [replicas_of(config, world_size)] == fitting
        else:
            with pytest.raises(UserError, match="processes"):
                replicas_of(config, world_size)


def test_a_world_that_is_no_product_is_refused_by_the_three_settings() -> None:
    config = a_run(6, tensor=2, pipeline=2)
    for size in (2, 6):
        with pytest.raises(UserError, match=rf"^world size {size} is not parallel\.tensor 2 x parallel\.pipeline 2"):
            replicas_of(config, size)
    with pytest.raises(
        UserError, match=r"tensor 2 x parallel\.pipeline 1 x parallel\.segment 2 x data .* or parallel\.segm"
    ):
        replicas_of(a_run(6, tensor=2, segment=2), 6)
    with pytest.raises(UserError, match=r"data\.num_lanes is 6, which 4 data-parallel .*choose a multiple of 4"):
        replicas_of(config, 16)


def test_the_number_is_named_as_it_was_given() -> None:
    with pytest.raises(UserError, match=r"^--nproc 3 is not parallel\.tensor 2"):
        replicas_of(a_run(4, tensor=2), 3, "--nproc 3")
    with pytest.raises(UserError, match=r"cannot share equally \(--nproc 3 = parallel\.tensor 1"):
        replicas_of(a_run(4), 3, "--nproc 3")


COMMANDS = {
    "local": ["launch", "local", "{config}", "--nproc", "{tasks}", "--device", "cpu"],
    "slurm": ["launch", "slurm", "{config}", "--tasks-per-node", "{tasks}", "--dry-run"],
    "submitit": ["launch", "submitit", "{config}", "--executor", "local", "--tasks-per-node", "{tasks}"],
    "plan": ["plan", "{config}", "--gpus-per-node", "{tasks}"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("tasks", "tensor", "said"), [(1, 2, "is not parallel.tensor 2"), (6, 2, "which 3 data-parallel processes cannot")]
)
def test_every_command_refuses_before_anything_is_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    tasks: int,
    tensor: int,
    said: str,
) -> None:
    path = write(tmp_path, tensor)
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, **__: pytest.fail("a rank was started"))
    assert cli.main([word.format(config=path, tasks=tasks) for word in COMMANDS[command]]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_tensor_parallel_tasks_share_their_lanes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 tasks, tensor 2: 4 replicas, which share 4 lanes."""
    words = [word.format(config=write(tmp_path, 2), tasks=8) for word in COMMANDS["slurm"]]
    assert cli.main(words) == 0
    assert "#SBATCH --ntasks-per-node=8" in capsys.readouterr().out


def write(folder: Path, tensor: int) -> Path:
    """A configuration of 4 lanes."""
    values = {
        "run_dir": str(folder / "run"),
        "model": {"vocab_size": 257},
        "data": {"path": str(folder / "data"), "num_lanes": 4},
        "parallel": {"tensor": tensor},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"
