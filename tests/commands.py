# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The project's command in processes forked from one that has imported torch and DeepSpeed: a tenth of a second each.

For tests of what the command does. How it is started, by a shell, a launcher or Slurm, is not what they test: a start
as a program of its own costs five seconds of a core for every rank.
"""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from memformer.processes.ports import free_port
from tests import ROOT, held
from tests.distributed.processes import fork_server


def run_command(
    *words: str, environment: Mapping[str, str] | None = None, folder: Path = ROOT, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """`memformer WORDS` in `folder`, with these variables beside those of the tests.

    Raises:
        AssertionError: It did not end in time; what it has said is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="command-") as place:
        out, err = Path(place) / "out", Path(place) / "err"
        process = fork_server().Process(
            target=_run, args=(words, dict(environment or {}), str(folder), str(out), str(err), False)
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"memformer {' '.join(words)} has not ended after {seconds:g} s: {err.read_text()}")
        return subprocess.CompletedProcess(["memformer", *words], process.exitcode, out.read_text(), err.read_text())


def start_ranks(*words: str, count: int, log: Path, hold: bool = False) -> list[BaseProcess]:
    """`memformer train WORDS` as that many ranks, which write to log-RANK; `hold`: tests/held.py can stop them."""
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks: list[BaseProcess] = []
    for rank in range(count):
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        said = f"{log}-{rank}"
        ranks.append(
            fork_server().Process(target=_run, args=(("train", *words), environment, str(ROOT), said, said, hold))
        )
    for process in ranks:
        process.start()
    return ranks


def run_ranks(*words: str, count: int, log: Path, seconds: float = 120) -> str:
    """`start_ranks`, to their end; what rank 0 said.

    Raises:
        AssertionError: A rank failed or did not end in time; what it has said is in the message.
    """
    ranks = start_ranks(*words, count=count, log=log)
    for number, process in enumerate(ranks):
        process.join(seconds)
        if process.exitcode != 0:
            end(ranks)
            said = Path(f"{log}-{number}").read_text()[-3000:]
            raise AssertionError(f"rank {number}: exit code {process.exitcode}\n{said}")
    return Path(f"{log}-0").read_text()


def end(ranks: list[BaseProcess]) -> None:
    """kill -9 of those that still run."""
    for process in ranks:
        if process.is_alive():
            process.kill()
    for process in ranks:
        process.join()


def _run(words: tuple[str, ...], environment: dict[str, str], folder: str, out: str, err: str, hold: bool) -> None:
    from launch.cli import main

    # A shell starts background jobs with SIGINT ignored, which a run would respect.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    os.chdir(folder)
    with open(out, "ab") as stdout, open(err, "ab") as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
    if hold:
        held.wait_for_the_test()
    code: object = 1
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
