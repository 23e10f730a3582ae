# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`slurm/pretrain.sbatch` between stand-ins for Slurm's commands: what it starts, what it makes of how that ends."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from memformer.run import jsonl

TEMPLATE = Path(__file__).resolve().parents[2] / "slurm/pretrain.sbatch"
RUN = "runs/memformer-123456"
# srun runs the tasks' command once a task, one after the other; RANK_CODES says with what each rank ends, "-" for a
# rank whose node is gone.
STAND_INS = {
    "srun": """printf "%s\\n" "$@" >srun.arguments; env >srun.environment
        while [ "$1" != bash ]; do shift; done
        export SLURM_PROCID=0 SLURMD_NODENAME=node7
        for RANK_CODE in $RANK_CODES; do
            export RANK_CODE; [ "$RANK_CODE" = - ] || "$@"; SLURM_PROCID=$((SLURM_PROCID + 1)); sleep 0.02
        done
        exit "$SRUN_CODE" """,
    "train": 'eval "$TRAIN_DOES"; exit "$RANK_CODE"',
    "getent": 'test "$RESOLVES" = yes',
    "sleep": 'case $1 in 0.*) exec /bin/sleep "$1" ;; esac',
    "scontrol": """case "$1 $2" in
        "show hostnames") printf "node7\\nnode8\\n" ;;
        "show node") printf "NodeName=node7 Arch=x86_64\\n   NodeAddr=10.0.0.7 NodeHostName=node7\\n" ;;
        "show job") echo >>asked; [ "$(wc -l <asked)" -gt "${AWAY:-0}" ] || exit 1
            echo "JobId=$3 JobState=$STATE Reason=None" ;;
        requeue*) echo "$2" >requeued ;;
    esac""",
}
END = 'mkdir -p "$6"; echo \'{"time": "now", "event": "end", "step": 9, "tokens": 5}\' >"$6/events.jsonl"'
SAVE = 'mkdir -p "$6/checkpoints"; echo step-0000000$SLURM_PROCID$SLURM_RESTART_COUNT >"$6/checkpoints/latest"'


def submit(folder: Path, codes: str = "0 0", srun: int = 0, does: str = ":", **environment: str) -> tuple[int, str]:
    """Runs the script as Slurm would on the first node: its exit code and what it said."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    memformer = folder / ".venv/bin/memformer"
    memformer.unlink(missing_ok=True)
    memformer.symlink_to(commands / "train")
    (folder / "requeued").unlink(missing_ok=True)
    given = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NAME": "memformer",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "12",
        "RANK_CODES": codes,
        "SRUN_CODE": str(srun),
        "TRAIN_DOES": does,
        "RESOLVES": "yes",
        "STATE": "RUNNING",
        **environment,
    }
    command = ["bash", str(TEMPLATE), "config.yaml", "--seed", "{array}"]
    done = subprocess.run(
        command, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.returncode, done.stdout


def test_every_task_trains_with_one_rendezvous(tmp_path: Path) -> None:
    code, said = submit(tmp_path, does=END)
    assert code == 0, said
    assert "done: the run has finished" in said
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    train = [".venv/bin/memformer", "train", "config.yaml", "--seed", "{array}", "--run_dir", RUN, "--resume", "auto"]
    assert arguments[-len(train) :] == train
    assert {f"--output={RUN}/logs/rank-%5t.log", "--kill-on-bad-exit=1", "--open-mode=append"} <= set(arguments)
    environment = (tmp_path / "srun.environment").read_text().splitlines()
    assert {"MASTER_ADDR=node7", "SRUN_CPUS_PER_TASK=12", "OMP_NUM_THREADS=12"} <= set(environment)
    assert "MEMFORMER_GRACE_SECONDS=300" in environment
    (port,) = [line.partition("=")[2] for line in environment if line.startswith("MASTER_PORT=")]
    assert 20000 <= int(port) < 32768
    assert not (tmp_path / "requeued").exists()
    records = jsonl.records(tmp_path / RUN / "jobs.jsonl")
    assert [(record["event"], record.get("outcome")) for record in records] == [("start", None), ("end", "finished")]
    assert records[0]["nodes"] == "node7 node8"
    code_file = tmp_path / RUN / "logs/exit-codes/123456-0/rank-00001"
    assert code_file.read_text().split()[:2] == ["0", "node7"]


def test_a_percent_sign_in_the_run_directory_is_no_pattern(tmp_path: Path) -> None:
    submit(tmp_path, does=END, RUN_DIR="runs/50%t")
    assert "--output=runs/50%%t/logs/rank-%5t.log" in (tmp_path / "srun.arguments").read_text().splitlines()


def test_a_name_that_does_not_resolve_is_replaced_by_its_address(tmp_path: Path) -> None:
    submit(tmp_path, RESOLVES="no")
    assert "MASTER_ADDR=10.0.0.7" in (tmp_path / "srun.environment").read_text().splitlines()


@pytest.mark.parametrize("codes", ["0 -", "- -", "75 -", "0 0"])
def test_an_end_without_the_runs_own_word_is_no_success(tmp_path: Path, codes: str) -> None:
    """As after the death of a node, which srun may report as 0."""
    code, said = submit(tmp_path, codes=codes, srun=0)
    assert code == 1
    assert "a node may have failed" in said
    assert (tmp_path / "requeued").read_text() == "123456\n"


@pytest.mark.parametrize("codes", ["75 75", "75 143", "143 143", "138 75"])
def test_ranks_that_were_stopped_are_requeued(tmp_path: Path, codes: str) -> None:
    code, said = submit(tmp_path, codes=codes)
    assert code == 75
    assert "stopped" in said
    assert (tmp_path / "requeued").read_text() == "123456\n"
    assert not (tmp_path / RUN / "attempts").exists(), "no failure"


def test_the_task_of_an_array_is_a_run_of_its_own(tmp_path: Path) -> None:
    code, _ = submit(tmp_path, codes="75 75", SLURM_ARRAY_JOB_ID="99", SLURM_ARRAY_TASK_ID="4")
    assert code == 75
    assert (tmp_path / "requeued").read_text() == "99_4\n"
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    assert arguments[arguments.index("--seed") + 1] == "4"
    assert arguments[arguments.index("--run_dir") + 1] == f"{RUN}/array-4"


def test_the_requeue_waits_for_a_controller_that_is_away(tmp_path: Path) -> None:
    code, _ = submit(tmp_path, codes="75 75", AWAY="5")
    assert code == 75
    assert (tmp_path / "requeued").read_text() == "123456\n"
    assert len((tmp_path / "asked").read_text().splitlines()) == 6


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_cancelled_job_is_not_requeued(tmp_path: Path, state: str) -> None:
    code, said = submit(tmp_path, codes="75 75", STATE=state)
    assert code == 75
    assert state in said
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("codes", ["137 143", "143 1", "75 1"])
def test_the_rank_that_failed_is_named_and_the_job_requeued(tmp_path: Path, codes: str) -> None:
    failed = next(rank for rank, code in enumerate(codes.split()) if code not in ("75", "143"))
    code, said = submit(tmp_path, codes=codes, srun=143)
    assert code == int(codes.split()[failed])
    meaning = " (killed by SIGKILL; if nobody sent it" if code == 137 else "; see"
    assert f"rank-0000{failed} on node7 ended first, with exit code {code}{meaning}" in said
    assert (tmp_path / "requeued").read_text() == "123456\n"


@pytest.mark.parametrize(("rank_code", "meaning"), [("76", "nothing moved any more"), ("139", "ended by SIGSEGV")])
def test_an_exit_code_is_told_in_words(tmp_path: Path, rank_code: str, meaning: str) -> None:
    assert f"with exit code {rank_code} ({meaning}" in submit(tmp_path, codes=f"{rank_code} 143", srun=1)[1]


@pytest.mark.parametrize("file", ["jobs.jsonl", "attempts", "logs"])
def test_what_the_job_cannot_note_does_not_end_it(tmp_path: Path, file: str) -> None:
    """A directory or a file stands in its place."""
    (tmp_path / RUN).mkdir(parents=True)
    if file == "logs":
        (tmp_path / RUN / file).write_text("")
    else:
        (tmp_path / RUN / file).mkdir()
    code, said = submit(tmp_path, does=END)
    assert code == 0, said
    assert f"{RUN}/{file}" in said and "cannot be" in said
    assert "done: the run has finished" in said


@pytest.mark.parametrize("code", ["2", "130"])
def test_what_trying_again_cannot_mend_is_not_requeued(tmp_path: Path, code: str) -> None:
    ended, said = submit(tmp_path, codes=f"{code} {code}", srun=int(code))
    assert ended == int(code)
    assert "not requeued" in said
    assert not (tmp_path / "requeued").exists()


def test_failures_without_progress_end_the_chain_and_progress_begins_a_new_count(tmp_path: Path) -> None:
    for life in range(2):
        submit(tmp_path, codes="1 143", srun=1, SLURM_RESTART_COUNT=str(life))
        assert (tmp_path / "requeued").exists()
    submit(tmp_path, codes="1 143", srun=1, does=SAVE, SLURM_RESTART_COUNT="2")
    assert (tmp_path / "requeued").exists(), "it has saved a checkpoint before it failed"
    for life in (3, 4):
        submit(tmp_path, codes="1 143", srun=1, SLURM_RESTART_COUNT=str(life))
        assert (tmp_path / "requeued").exists()
    code, said = submit(tmp_path, codes="1 143", srun=1, SLURM_RESTART_COUNT="5")
    assert code == 1
    assert "not requeued: 3 lives in a row ended without progress" in said
    assert not (tmp_path / "requeued").exists()
    code, said = submit(tmp_path, codes="0 0", does=END)
    assert code == 1
    assert "giving up" in said and f"rm {RUN}/attempts" in said
    (tmp_path / RUN / "attempts").unlink()
    assert submit(tmp_path, codes="0 0", does=END)[0] == 0


@pytest.mark.parametrize("name", ["pretrain-pyxis", "pretrain-cpu"])
def test_the_scripts_for_pretraining_differ_in_their_settings_alone(name: str) -> None:
    below = "# ---- end of settings"
    other = TEMPLATE.with_name(f"{name}.sbatch").read_text()
    assert other.partition(below)[2] == TEMPLATE.read_text().partition(below)[2]
    settings = [re.findall(r"^([A-Z_]+)=", each.partition(below)[0], re.M) for each in (other, TEMPLATE.read_text())]
    assert settings[0] == settings[1]


def test_a_configuration_is_needed() -> None:
    done = subprocess.run(
        ["bash", str(TEMPLATE)], capture_output=True, text=True, env={"SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1"}
    )
    assert done.returncode == 2
    assert "give a configuration" in done.stderr
