# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer launch slurm` without a cluster: the script it writes, what it copies, how it submits once.

Covers: launch/commands/launch_slurm.py, launch/slurm_client.py, launch/slurm_options.py, launch/slurm_script.py
"""

import json
import subprocess
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from launch import cli, slurm_client
from launch.slurm_options import SlurmOptions, time_seconds
from launch.slurm_script import TEMPLATES, render

NO_SUCH_JOB = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
AWAY = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
CONFIG = "run_dir: {folder}/run\ndata:\n  path: {folder}/data\n"
SBATCH = """
count=$(cat {folder}/count 2>/dev/null || echo 0); echo $((count + 1)) >{folder}/count
for word; do case $word in --job-name=*) echo "${{word#*=}}" >>{folder}/names ;; esac; done
{answer}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return str(path)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm's commands; sbatch answers 7."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    answer(folder, sbatch=SBATCH.format(folder=folder, answer="echo 7"), squeue=":", scontrol=NO_SUCH_JOB)
    return folder


def answer(folder: Path, **bodies: str) -> None:
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["launch", "slurm", *words, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_options_become_sbatch_lines(config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    resources = "--nodes 2 --gpus-per-node 8 --cpus-per-task 12 --time 1-00:00:00 --partition gpu --account me"
    site = ["--constraint", "a100&ib", "--reservation", "r", "--dependency", "afterok:5", "--sbatch-line=--switches=1"]
    script = dry_run(capsys, config, *resources.split(), *site, "--set-up", "module load cuda", "--qos", "two words")
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    expected = (
        "nodes=2 ntasks-per-node=8 gpus-per-node=8 cpus-per-task=12 mem=0 time=1-00:00:00 partition=gpu account=me"
    )
    assert {f"--{each}" for each in expected.split()} <= set(lines)
    assert {"--constraint=a100&ib", "--reservation=r", "--dependency=afterok:5", "--switches=1"} <= set(lines)
    assert {'--qos="two words"', "--requeue", "--kill-on-invalid-dep=yes", "--signal=USR1@300"} <= set(lines)
    assert f"--output={tmp_path}/run/logs/slurm-%j.out" in lines
    assert "\nmodule load cuda\n# ---- end of settings" in script
    assert not (tmp_path / "run").exists(), "a dry run leaves nothing"


def test_the_script_is_the_template_below_its_settings(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    template = (TEMPLATES / "pretrain.sbatch").read_text()
    assert "#SBATCH --signal=USR1@300 " in template and "\nGRACE_SECONDS=300 " in template
    script = dry_run(capsys, config, "--warning-seconds", "200")
    assert "#SBATCH --signal=USR1@200\n" in script and "\nGRACE_SECONDS=200\n" in script
    assert script.partition("# ---- end of settings")[2] == template.partition("# ---- end of settings")[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=30)


def test_nothing_in_a_name_is_run_by_the_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a $(touch bad) 'b'"
    folder.mkdir()
    (folder / "config.yaml").write_text("run_dir: run\ndata:\n  path: data\n")
    monkeypatch.chdir(folder)
    script = dry_run(capsys, "config.yaml")
    settings = script.partition("# ---- settings")[2].partition("# ---- end")[0].partition("\n")[2]
    done = subprocess.run(
        ["bash", "-c", f'{settings}\nprintf %s "$RUN_DIR"'], capture_output=True, text=True, cwd=tmp_path, timeout=30
    )
    assert done.stdout == str(folder / "run")
    assert not (tmp_path / "bad").exists()


def test_a_percent_sign_in_the_run_directory_is_no_pattern(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert f"#SBATCH --output={tmp_path}/50%%j/logs/slurm-%j.out\n" in dry_run(
        capsys, config, f"--run_dir={tmp_path}/50%j"
    )


@pytest.mark.parametrize(
    ("command", "sign"), [("slurm", "a\\b"), ("slurm", "a\nb"), ("submitit", "50%j"), ("submitit", "a\\b")]
)
def test_a_run_directory_that_slurm_would_misread_is_refused(
    command: str, sign: str, config: str, slurm: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["launch", command, config, f"--run_dir={tmp_path}/{sign}"]) == 2
    said = capsys.readouterr().err
    assert "run_dir: " in said and "choose another" in said and said.count("\n") == 1
    assert not (tmp_path / sign).exists()


def test_a_container_gets_its_flags_and_its_own_python(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = dry_run(capsys, config, "--container-image", "docker://memformer:1", "--container-mounts", "/data:/data")
    assert "CONTAINER=(--container-image=docker://memformer:1 --container-workdir=" in script
    assert "--container-mounts=/data:/data)" in script
    assert "MEMFORMER=(python3 " in script and "/run/code)" in script


def test_submission_copies_code_and_configuration(
    config: str, slurm: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--nodes", "2", "--training.max_steps", "177", "--time", "10"]
    assert cli.main(["launch", "slurm", config, *words]) == 0
    run = tmp_path / "run"
    assert "max_steps: 177" in (run / "submit.yaml").read_text()
    assert (run / "code/launch/commands/launch_slurm.py").read_bytes() == Path(cli.__file__).with_name(
        "commands"
    ).joinpath("launch_slurm.py").read_bytes()
    assert json.loads((run / "submission.json").read_text())["jobs"] == ["7"]
    said = capsys.readouterr().out
    for expected in ("scancel 7", f"sbatch {run}/submit.sbatch", "memformer status", f"{run}/logs"):
        assert expected in said
    answer(slurm, scontrol='echo "JobId=7 JobState=RUNNING Reason=None"')
    assert cli.main(["launch", "slurm", config, *words]) == 2
    assert "job 7 of this run waits or runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        (AWAY, 1, "Slurm does not answer whether job 7 of this run has ended: submit again when scontrol ping"),
        ("exit 0", 1, "Slurm does not answer whether job 7"),
        ("sleep 30", 1, "Slurm does not answer whether job 7"),
        ('echo "JobId=7 JobState=A_STATE_OF_TOMORROW"', 2, "job 7 of this run waits or runs"),
        ('echo "JobId=7 JobState=COMPLETED,COMPLETING"', 2, "job 7 of this run waits or runs"),
        (
            'echo "JobId=7 JobState=CANCELLED x"; echo "JobId=7 JobState=PENDING x"',
            2,
            "job 7 of this run waits or runs",
        ),
        ('echo "JobId=7 JobState=CANCELLED Reason=None"', 0, ""),
        (NO_SUCH_JOB, 0, ""),
    ],
)
def test_a_second_job_is_submitted_only_where_the_first_is_known_to_have_ended(
    config: str,
    slurm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    code: int,
    told: str,
) -> None:
    monkeypatch.setattr(slurm_client, "COMMAND_SECONDS", 3.0)
    assert cli.main(["launch", "slurm", config]) == 0
    capsys.readouterr()
    answer(slurm, scontrol=said)
    assert cli.main(["launch", "slurm", config]) == code
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == bool(told)
    assert (slurm / "count").read_text() == ("1\n" if code else "2\n")


@pytest.mark.parametrize("text", ["", '{"time": "2026', "[]", "{}", '{"jobs": "7"}', '{"jobs": [7]}', "directory"])
def test_a_damaged_description_of_the_last_submission_refuses(
    config: str, slurm: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    description = tmp_path / "run/submission.json"
    description.parent.mkdir()
    if text == "directory":
        description.mkdir()  # as unreadable to root as to anybody
    else:
        description.write_text(text)
    for words in (["slurm", config], ["submitit", config]):
        assert cli.main(["launch", *words]) == 2
        error = capsys.readouterr().err
        assert f"{description}: cannot be read" in error and "delete the file" in error and error.count("\n") == 1
    assert not (slurm / "count").exists()


def test_events_that_cannot_be_read_are_not_taken_for_none(
    config: str, slurm: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run/events.jsonl").mkdir(parents=True)
    assert cli.main(["launch", "slurm", config]) == 1
    assert "events.jsonl: cannot be read" in capsys.readouterr().err
    assert not (slurm / "count").exists()


def test_a_finished_run_is_not_submitted(config: str, slurm: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/events.jsonl").write_text('{"event": "start", "step": 0}\n{"event": "end", "step": 50}\n')
    assert cli.main(["launch", "slurm", config, "--training.max_steps", "50", "--optimizer.warmup_steps", "5"]) == 0
    assert not (slurm / "count").exists()
    assert cli.main(["launch", "slurm", config, "--training.max_steps", "60", "--optimizer.warmup_steps", "5"]) == 0
    assert (slurm / "count").exists(), "it is to go on for ten steps more"


def test_a_chain_is_k_jobs_that_do_not_requeue(config: str, slurm: Path, tmp_path: Path) -> None:
    arguments = f'echo "$@" >>{slurm}/calls; wc -l <{slurm}/calls'
    answer(slurm, sbatch=arguments)
    assert cli.main(["launch", "slurm", config, "--time-chain", "3"]) == 0
    calls = (slurm / "calls").read_text().splitlines()
    assert [call.count("--dependency=afterany:") for call in calls] == [0, 1, 1]
    assert "--dependency=afterany:2" in calls[2]
    assert json.loads((tmp_path / "run/submission.json").read_text())["jobs"] == ["1", "2", "3"]
    script = (tmp_path / "run/submit.sbatch").read_text()
    assert "REQUEUE=no" in script and "#SBATCH --no-requeue" in script


def test_an_array_keeps_what_differs_for_the_command_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = dry_run(capsys, config, "--array", "3-5", "--seed", "{array}", "--training.max_steps", "200")
    assert "TRAIN=(" in script and "submit.yaml --seed '{array}')" in script
    assert "#SBATCH --array=3-5" in script and "slurm-%A_%a.out" in script


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nodes", "0"], "--nodes"),
        (["--nodes", "3"], "data.num_lanes is 16, which 3 data-parallel processes"),
        (["--gpus-per-node", "2", "--tasks-per-node", "4"], "--tasks-per-node 4"),
        (["--time", "soon"], "--time 'soon'"),
        (["--time", "5"], "--warning-seconds 300"),
        (["--partition", "a\nb"], "--partition"),
        (["--sbatch-line=rm"], "--sbatch-line 'rm'"),
        (["--container-mounts", "/a:/a"], "--container-image"),
        (["--seed", "{array}"], "--array"),
        (["--time-chain", "2", "--array", "0-1"], "--time-chain"),
        (["--training.max_stepz", "3"], "max_stepz"),
    ],
)
def test_mistakes_are_one_line_and_submit_nothing(
    config: str, slurm: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    try:
        code: object = cli.main(["launch", "slurm", config, *words])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert named in error and error.count("\n") == 1
    assert not (slurm / "count").exists()


def test_without_slurm_it_says_so(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["launch", "slurm", config]) == 2
    assert "sbatch: there is no such command" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing half-made is left"


def test_a_job_that_slurm_refuses_leaves_nothing_of_a_new_run(
    config: str, slurm: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer(slurm, sbatch='echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1')
    assert cli.main(["launch", "slurm", config]) == 1
    assert "invalid partition specified: gpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert cli.main(["launch", "slurm", config]) == 1
    assert (tmp_path / "run").exists(), "what was there before stays"


def test_a_dry_run_says_that_there_is_no_run_yet(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["launch", "slurm", config, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/usr/bin/env bash")
    assert "nothing was submitted" in err and "memformer status knows the run once it is submitted" in err


HELD = {"host": "node7", "process": 5, "time": 1.0, "boot": "other", "job": "12"}
NODE_FAILED = 'echo "JobId=12 JobState=NODE_FAIL"'


@pytest.mark.parametrize(
    ("holder", "said", "code", "told"),
    [
        ({}, NODE_FAILED, 0, ""),
        ({}, NO_SUCH_JOB, 0, ""),
        ({}, 'echo "JobId=12 JobState=RUNNING"', 2, "its job has not ended"),
        ({}, AWAY, 1, "Slurm does not say whether its job has ended"),
        ({"job": None}, NO_SUCH_JOB, 2, "it is on another machine"),
        ({"cluster": "b"}, f'[ "$2" = config ] && echo "ClusterName = a" || {NODE_FAILED}', 1, "Slurm does not say"),
        ({"cluster": "a"}, f'[ "$2" = config ] && echo "ClusterName = a" || {NODE_FAILED}', 0, ""),
    ],
)
def test_a_run_that_trains_elsewhere_is_not_disturbed(
    config: str,
    slurm: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    holder: dict[str, str],
    said: str,
    code: int,
    told: str,
) -> None:
    """Its job was submitted by hand, or on another login node; what Slurm says of it decides."""
    lock = tmp_path / "run/lock"
    lock.mkdir(parents=True)
    (lock / "00000001.held").write_text(json.dumps({**HELD, **holder}))
    answer(slurm, scontrol=said)
    assert cli.main(["launch", "slurm", config]) == code
    assert told in capsys.readouterr().err
    assert (slurm / "count").exists() is (code == 0)
    if code:
        assert sorted(tmp_path.glob("run/**/*")) == [lock, lock / "00000001.held"]


def test_a_job_that_was_accepted_without_an_answer_is_found_not_submitted_again(slurm: Path, tmp_path: Path) -> None:
    """The controller took the job and died; then it is away for two questions; then it knows the job by its name."""
    hung = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
    looking = (
        f'echo x >>{slurm}/looks; [ $(wc -l <{slurm}/looks) -gt 2 ] || exit 1; [ "$2" = --name=unique ] && echo 41'
    )
    answer(slurm, sbatch=SBATCH.format(folder=slurm, answer=hung), squeue=looking)
    assert slurm_client.submit(tmp_path / "script", "unique", patience=0.01) == "41"
    assert (slurm / "count").read_text() == "1\n"


def test_a_job_that_was_not_accepted_is_submitted_again_under_the_same_name(slurm: Path, tmp_path: Path) -> None:
    refused = '[ $count = 0 ] || { echo "9;cluster"; exit 0; }; echo "Unable to contact slurm controller" >&2; exit 1'
    answer(slurm, sbatch=SBATCH.format(folder=slurm, answer=refused))
    assert slurm_client.submit(tmp_path / "script", "unique", patience=0.01) == "9"
    assert (slurm / "names").read_text() == "unique\nunique\n"


def test_where_it_is_not_known_whether_a_job_was_accepted_none_is_submitted_again(slurm: Path, tmp_path: Path) -> None:
    """The controller is away whenever it is asked for the job, and back whenever one is submitted."""
    hung = '[ $count = 0 ] || { echo 9; exit 0; }; echo "Socket timed out on send/recv operation" >&2; exit 1'
    answer(slurm, sbatch=SBATCH.format(folder=slurm, answer=hung), squeue=AWAY)
    with pytest.raises(UserError, match="nothing is known to be submitted: look with squeue --name=unique"):
        slurm_client.submit(tmp_path / "script", "unique", patience=0.01)
    assert (slurm / "count").read_text() == "1\n"


def test_a_refusal_is_told_at_once(slurm: Path, tmp_path: Path) -> None:
    refusal = 'echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1'
    answer(slurm, sbatch=SBATCH.format(folder=slurm, answer=refusal))
    with pytest.raises(UserError, match="Invalid account"):
        slurm_client.submit(tmp_path / "script", "unique")
    assert (slurm / "count").read_text() == "1\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("02:00:00", 7200),
        ("1-12", 129600),
        ("2-00:30", 174600),
        ("UNLIMITED", float("inf")),
    ],
)
def test_times_of_slurm(text: str, seconds: float) -> None:
    assert time_seconds(text) == seconds


def test_a_template_without_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="settings"):
        render("#!/bin/bash\n", "", [], {}, [])
    with pytest.raises(ValueError, match="NO_SUCH"):
        render((TEMPLATES / "pretrain.sbatch").read_text(), "", [], {"NO_SUCH": 1}, [])
    assert SlurmOptions(nodes=2, tasks_per_node=3).tasks == 6
