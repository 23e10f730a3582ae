# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The exit codes: those that a shell sees, those that the job scripts write, those that users are told."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from memformer.run import exit_codes

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "slurm").glob("pretrain*.sbatch"))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_gives_the_code_that_a_shell_sees(name: str) -> None:
    suicide = f"import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.{name})"
    ended = subprocess.run([sys.executable, "-c", suicide], timeout=30)
    shell = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", suicide], timeout=30)
    assert exit_codes.of_process(ended.returncode) == shell.returncode


def test_an_exit_code_is_itself() -> None:
    assert [exit_codes.of_process(code) for code in (0, 1, 75)] == [0, 1, 75]
    assert exit_codes.KILLED == 137 and exit_codes.of_signal(2) == exit_codes.INTERRUPTED


@pytest.mark.parametrize(
    ("returncode", "said"),
    [
        (1, "failed (exit code 1)"),
        (255, "failed (exit code 255)"),
        (-9, "was killed by SIGKILL (if nobody sent it, the machine or the job's limit ran out of memory)"),
        (137, "was killed by SIGKILL (if nobody sent it, the machine or the job's limit ran out of memory)"),
        (-11, "was ended by SIGSEGV (Segmentation fault)"),
        (-7, "was ended by SIGBUS (a full /dev/shm or disk, or a file that was cut while it was read)"),
        (76, "found that nothing moved any more (exit code 76): RUN/hangs says which rank the others waited for"),
    ],
)
def test_how_a_process_failed_is_told_in_words(returncode: int, said: str) -> None:
    assert exit_codes.in_words(returncode) == said


def test_a_users_mistake_is_bad_usage() -> None:
    assert UserError("a line").exit_code == exit_codes.USAGE


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_job_scripts_write_the_same_numbers(path: Path) -> None:
    text = path.read_text()
    counted = re.search(r"grep -cE '\^\(([\d|]+)\) '", text)
    assert counted is not None and sorted(map(int, counted[1].split("|"))) == sorted(exit_codes.STOPPED)
    passed = re.search(r"case \$rank_code in ([\d |]+)\)", text)
    assert passed is not None
    assert sorted(map(int, passed[1].split("|"))) == sorted((exit_codes.DONE, *exit_codes.STOPPED))
    kept = re.search(r'if \[ "\$code" = (\d+) \] \|\| \[ "\$code" = (\d+) \]; then\n +say "not requeued: code', text)
    assert kept is not None and tuple(map(int, kept.groups())) == exit_codes.NOT_MENDED_BY_RETRYING
    assert f"[ $code = {exit_codes.SAVED} ] || exit $code" in text
    assert set(map(int, re.findall(r"\bexit (\d+)", text))) == {
        exit_codes.DONE,
        exit_codes.FAILED,
        exit_codes.USAGE,
        exit_codes.SAVED,
    }


def test_there_are_job_scripts() -> None:
    assert len(SCRIPTS) == 3


@pytest.mark.parametrize("module", ["launch.commands.train", "launch.commands.launch_local"])
def test_the_help_names_the_codes_that_there_are(module: str) -> None:
    told = sys.modules.get(module) or __import__(module, fromlist=["run"])
    codes = (told.__doc__ or "").partition("exit codes: ")[2]
    for code in (exit_codes.DONE, exit_codes.USAGE, exit_codes.SAVED, exit_codes.INTERRUPTED):
        assert re.search(rf"\b{code}\b", codes)
