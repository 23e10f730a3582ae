# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The job scripts of `slurm/`, submitted by hand one after another: data, training, export, evaluation."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.books import book_text, small_dataset
from tests.held import held_python
from tests.slurm.cluster import Cluster
from tests.slurm.runs import ROOT, job_log, records, write_config

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A directory as after `make setup`: the scripts, the command, two books."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    command = tmp_path / ".venv/bin/memformer"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{held_python(tmp_path)}" -m launch.cli "$@"\n')
    command.chmod(0o755)
    for number in (1, 2):
        folder = tmp_path / f"texts/book-{number}"
        folder.mkdir(parents=True)
        for part in range(3):
            skip = 20_000 * (number + 3 * part)
            (folder / f"{part}.txt").write_text(book_text(4_000 + 500 * part, skip=skip), encoding="utf-8")
    (tmp_path / "sources.txt").write_text("texts/book-1\ntexts/book-2\n")
    return tmp_path


def sbatch(cluster: Cluster, account: Path, *words: str) -> str:
    return cluster.client("sbatch", "--parsable", "--cpus-per-task=1", *words, cwd=account).strip()


def test_from_text_to_figures_by_hand(cluster: Cluster, account: Path) -> None:
    build = sbatch(cluster, account, "--array=1-2", "slurm/data-build.sbatch", "sources.txt", "data")
    for task in ("1", "2"):
        cluster.wait_for(f"{build}_{task}", "COMPLETED", "FAILED", seconds=90)
        assert (account / f"data/texts+book-{task}/manifest.json").exists(), output(account)
    write_config(account / "config.yaml", Path("data/texts+book-1"), steps=6)
    setting = ["config.yaml", "--training.eval_interval", "0"]
    resources = ["--ntasks-per-node=1", "--job-name=trial"]
    train = sbatch(cluster, account, *resources, "slurm/pretrain-cpu.sbatch", *setting)
    run = account / f"runs/trial-{train}"
    after = [f"--dependency=afterok:{train}", "--kill-on-invalid-dep=yes"]
    export = sbatch(cluster, account, *after, "slurm/export.sbatch", str(run), "model")
    again = f"--dependency=afterok:{export}"
    evaluate = sbatch(
        cluster, account, again, "slurm/evaluate.sbatch", "model", "data/texts+book-2", "--max-segments", "4"
    )
    cluster.wait_for(evaluate, "COMPLETED", "FAILED", "CANCELLED", seconds=200)
    assert cluster.state(evaluate) == "COMPLETED", output(account) + job_log(run)
    events = records(run / "events.jsonl")
    assert [event["processes"] for event in events if event["event"] == "start"] == [2]
    assert events[-1]["event"] == "end"
    figures = json.loads((account / f"slurm-{evaluate}.out").read_text())
    assert figures["with_memory"]["perplexity"] > 1


def output(account: Path) -> str:
    """What the jobs said, for failures' messages."""
    return "\n".join(file.read_text(errors="replace")[-1500:] for file in sorted(account.glob("slurm-*")))


def test_deepspeeds_own_launcher_with_a_hostfile(cluster: Cluster, tmp_path: Path) -> None:
    """For sites without Slurm: the same command on each node, here started there by srun instead of by a person."""
    config = write_config(tmp_path / "config.yaml", small_dataset(tmp_path), steps=6)
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/mlflow.py").write_text("raise ImportError")  # which the launcher would import in four processes
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(tmp_path / "hostfile"), "--no_ssh"]
    place = "--master_addr=node1 --master_port=29611 --node_rank=$SLURM_NODEID --no_local_rank"
    without_slurm = (
        'for name in ${!SLURM_*}; do [ "$name" = SLURM_NODEID ] || unset "$name"; done; '
        f"export DS_ACCELERATOR=cpu PYTHONPATH={shlex.quote(str(tmp_path / 'absent'))}"
    )
    command = (
        f"{without_slurm}; exec {shlex.join(launcher)} {place} --module launch.cli train {shlex.quote(str(config))}"
    )
    cluster.client("srun", "-N2", "--ntasks-per-node=1", "bash", "-c", command, cwd=ROOT, timeout=150)
    (start, *_, end) = records(tmp_path / "run/events.jsonl")
    assert (start["processes"], end["event"], end["step"]) == (2, "end", 6)
