# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`slurm/pretrain.sbatch` between stand-ins for Slurm's commands: what it starts, what it does with the exit code."""

import os
import subprocess
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).resolve().parents[2] / "slurm/pretrain.sbatch"
STAND_INS = {
    "srun": 'printf "%s\\n" "$@" >srun.arguments; env >srun.environment; exit "$SRUN_CODE"',
    "getent": 'test "$RESOLVES" = yes',
    "scontrol": """case "$1 $2" in
        "show hostnames") printf "node7\\nnode8\\n" ;;
        "show node") printf "NodeName=node7 Arch=x86_64\\n   NodeAddr=10.0.0.7 NodeHostName=node7\\n" ;;
        requeue*) echo "$2" >requeued ;;
    esac""",
}


def submit(folder: Path, code: int = 0, **environment: str) -> tuple[int, str]:
    """Runs the script as Slurm would on the first node: its exit code and what it said."""
    commands = folder / "commands"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    given = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NAME": "memformer",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_CPUS_PER_TASK": "12",
        "SRUN_CODE": str(code),
        "RESOLVES": "yes",
        **environment,
    }
    command = ["bash", str(TEMPLATE), "config.yaml", "--seed", "3"]
    done = subprocess.run(
        command, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.returncode, done.stdout


def test_every_task_trains_with_one_rendezvous(tmp_path: Path) -> None:
    code, said = submit(tmp_path)
    assert code == 0, said
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    run = "runs/memformer-123456"
    train = ["train", "config.yaml", "--run_dir", run, "--resume", "auto", "--seed", "3"]
    assert arguments[arguments.index("train") :] == train
    assert f"--output={run}/logs/rank-%5t.log" in arguments
    assert (tmp_path / run / "logs").is_dir()
    environment = (tmp_path / "srun.environment").read_text().splitlines()
    assert {"MASTER_ADDR=node7", "SRUN_CPUS_PER_TASK=12", "OMP_NUM_THREADS=12"} <= set(environment)
    (port,) = [line.partition("=")[2] for line in environment if line.startswith("MASTER_PORT=")]
    assert 20000 <= int(port) < 32768
    assert not (tmp_path / "requeued").exists()


def test_a_name_that_does_not_resolve_is_replaced_by_its_address(tmp_path: Path) -> None:
    submit(tmp_path, RESOLVES="no")
    assert "MASTER_ADDR=10.0.0.7" in (tmp_path / "srun.environment").read_text().splitlines()


@pytest.mark.parametrize(
    ("array", "expected"), [({}, "123456"), ({"SLURM_ARRAY_JOB_ID": "99", "SLURM_ARRAY_TASK_ID": "4"}, "99_4")]
)
def test_saved_ranks_are_requeued(tmp_path: Path, array: dict[str, str], expected: str) -> None:
    code, said = submit(tmp_path, code=75, **array)
    assert code == 75
    assert "requeueing" in said
    assert (tmp_path / "requeued").read_text() == f"{expected}\n"


@pytest.mark.parametrize("code", [1, 2, 137, 143])
def test_failures_are_not_requeued(tmp_path: Path, code: int) -> None:
    ended, said = submit(tmp_path, code=code)
    assert ended == code
    assert f"failed with code {code}" in said
    assert not (tmp_path / "requeued").exists()
