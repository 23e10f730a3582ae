# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`launch_processes` with real processes: each test writes a small script for the ranks and runs a real launcher.

Covers: launch/child.py
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from data_pipeline.errors import UserError
from launch.local import launch_processes

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 30.0

# The launcher as a process of its own, so that it can be signalled and killed. SIGINT and SIGHUP are set back: a shell
# that starts a test run in the background has the first ignored, nohup the second.
DRIVER = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from launch import local
script, log_dir, nproc, options, constants = sys.argv[1:]
for name, value in json.loads(constants).items():
    setattr(local, name, value)
sys.exit(local.launch_processes([sys.executable, script], int(nproc), Path(log_dir), **json.loads(options)))
"""


class Launched(NamedTuple):
    """A running launcher and where its ranks leave their traces."""

    process: subprocess.Popen[str]
    folder: Path

    def finish(self) -> tuple[int, str, str]:
        """Waits for the end: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=WAIT_SECONDS)
        return self.process.returncode, out, err

    def log(self, rank: int) -> str:
        return (self.folder / f"logs/rank-{rank:05d}.log").read_text()

    def pids(self, count: int) -> list[int]:
        """The process ids that the ranks wrote to pid-RANK, as soon as all are there."""
        files = [self.folder / f"pid-{rank}" for rank in range(count)]
        wait_for(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
        return [int(file.read_text()) for file in files]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts a launcher for a rank script; the script finds `rank`, `folder` and `announce()` (writes its pid)."""
    started: list[subprocess.Popen[str]] = []

    def start(
        script: str, nproc: int = 2, environment: dict[str, str | None] | None = None, **options: object
    ) -> Launched:
        prelude = (
            "import os, signal, sys, time\nfrom pathlib import Path\n"
            f"rank, folder = int(os.environ['RANK']), Path({str(tmp_path)!r})\n"
            "def announce():\n    (folder / f'pid-{rank}').write_text(f'{os.getpid()}\\n')\n"
        )
        (tmp_path / "rank.py").write_text(prelude + script)
        constants = {name: options.pop(name) for name in list(options) if name.isupper()}
        arguments = [str(tmp_path / "rank.py"), str(tmp_path / "logs"), str(nproc)]
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments, json.dumps(options), json.dumps(constants)],
            cwd=REPOSITORY,
            env={name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return Launched(process, tmp_path)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()  # the ranks die with it, as a test below shows
        process.communicate()


WAITS = "announce()\ntime.sleep(60)\n"
SAVES_AND_LEAVES = """
def leave(signum, frame):
    print(f"rank {rank} got {signal.Signals(signum).name}", flush=True)
    sys.exit(CODE)
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), leave)
announce()
time.sleep(60)
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS


def test_ranks_find_the_environment_contract(launch: Callable[..., Launched]) -> None:
    script = "import json\n(folder / f'env-{rank}').write_text(json.dumps(dict(os.environ)))\n"
    run = launch(script, nproc=3, environment={"OMP_NUM_THREADS": "7", "MASTER_ADDR": "elsewhere"})
    assert run.finish()[0] == 0
    environments = [json.loads((run.folder / f"env-{rank}").read_text()) for rank in range(3)]
    for rank, environment in enumerate(environments):
        assert (environment["RANK"], environment["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("3", "3")
        assert (environment["NODE_RANK"], environment["MASTER_ADDR"]) == ("0", "127.0.0.1")
        assert environment["OMP_NUM_THREADS"] == "7", "what the user set stays"
    assert len({environment["MASTER_PORT"] for environment in environments}) == 1
    assert 1024 < int(environments[0]["MASTER_PORT"]) < 32768


@pytest.mark.parametrize("bind_cores", [True, False])
def test_cores_are_divided_among_the_ranks(launch: Callable[..., Launched], bind_cores: bool) -> None:
    cores = sorted(os.sched_getaffinity(0))
    script = "print('threads', os.environ['OMP_NUM_THREADS'], 'cores', sorted(os.sched_getaffinity(0)))\n"
    run = launch(script, environment={"OMP_NUM_THREADS": None}, bind_cores=bind_cores)
    assert run.finish()[0] == 0
    half, threads = len(cores) // 2, max(1, len(cores) // 2)
    slices = [cores[:half], cores[half:]] if bind_cores and half else [cores, cores]
    for rank in range(2):
        assert f"threads {threads} cores {slices[rank]}\n" in run.log(rank)


def test_logs_hold_both_streams_of_every_launch_and_rank_0_is_shown(launch: Callable[..., Launched]) -> None:
    script = "print(f'out of rank {rank}')\nprint(f'err of rank {rank} \u00e9', file=sys.stderr)\n"
    for launches in (1, 2):
        run = launch(script)
        code, out, err = run.finish()
        assert code == 0
        assert out == "out of rank 0\nerr of rank 0 \u00e9\n", "rank 0 alone, and of this launch alone"
        assert "2 ranks done" in err
        for rank in range(2):
            lines = run.log(rank).splitlines()
            assert sum(line.startswith("=== ") and f"rank {rank} of 2" in line for line in lines) == launches
            assert sum(line.startswith(f"err of rank {rank}") for line in lines) == launches
            assert "rank.py" in lines[0]


def test_rank_0_is_shown_while_it_runs(launch: Callable[..., Launched]) -> None:
    run = launch("print('first line')\n" + WAITS)
    assert run.process.stdout is not None
    assert run.process.stdout.readline() == "first line\n"
    assert run.process.poll() is None


def test_a_reader_that_goes_away_does_not_end_the_run(launch: Callable[..., Launched]) -> None:
    run = launch("announce()\ntime.sleep(0.5)\nprint('late line')\n")
    assert run.process.stdout is not None
    run.pids(2)
    run.process.stdout.close()
    run.process.stdout = None
    assert run.finish()[0] == 0
    assert "late line" in run.log(0)


def test_a_crash_is_shown_with_its_last_lines_and_ends_the_others(launch: Callable[..., Launched]) -> None:
    script = (
        "announce()\n"
        "if rank == 0:\n    time.sleep(60)\n"
        "while not (folder / 'pid-0').exists():\n    time.sleep(0.01)\n"
        "for number in range(40):\n    print('line', number)\n"
        "sys.exit('out of luck')\n"
    )
    run = launch(script)
    code, _, err = run.finish()
    assert code == 1
    assert "rank 1 failed (exit code 1)" in err.splitlines()[0]
    shown = [line for line in err.splitlines() if line.startswith("  | ")]
    assert shown[-1] == "  | out of luck"
    assert len(shown) == 20
    assert not any(map(is_running, run.pids(2)))


def test_a_rank_killed_by_a_signal_gives_128_plus_its_number(launch: Callable[..., Launched]) -> None:
    script = "announce()\nif rank == 1:\n    os.kill(os.getpid(), signal.SIGSEGV)\ntime.sleep(60)\n"
    code, _, err = launch(script).finish()
    assert code == 128 + signal.SIGSEGV
    assert "rank 1 was ended by SIGSEGV (Segmentation fault)" in err


def test_the_last_words_say_what_came_first_whatever_the_others_said_since(launch: Callable[..., Launched]) -> None:
    script = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('RuntimeError: Connection closed by peer'))\n"
        "announce()\n"
        "if rank == 1:\n"
        "    while not (folder / 'pid-0').exists():\n        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    run = launch(script)
    code, out, err = run.finish()
    assert code == 137
    assert "Connection closed by peer" in out
    last = err.splitlines()[-1]
    assert last.startswith("launch: failed: rank 1 was killed by SIGKILL (if nobody sent it, the machine or the job's ")
    assert f"see {run.folder}/logs/rank-00001.log; rank 0 (1) ended after it, or was stopped" in last


def test_a_survivor_of_a_crash_that_does_not_listen_is_killed(launch: Callable[..., Launched]) -> None:
    script = f"if rank == 1:\n    while not (folder / 'pid-0').exists(): time.sleep(0.01)\n    sys.exit(9)\n{STUBBORN}"
    run = launch(script, CRASH_GRACE_SECONDS=0.3)
    code, _, err = run.finish()
    assert code == 9
    assert "killing rank 0" in err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_signals_are_passed_on_once_and_saved_is_75(launch: Callable[..., Launched], name: str) -> None:
    run = launch(SAVES_AND_LEAVES.replace("CODE", "75"))
    run.pids(2)
    run.process.send_signal(getattr(signal, name))
    code, out, err = run.finish()
    assert code == 75
    assert out == f"rank 0 got {name}\n"
    assert run.log(1).count(f"rank 1 got {name}") == 1
    assert "saved and stopped" in err


def test_a_lost_terminal_is_passed_on_as_a_request_to_stop(launch: Callable[..., Launched]) -> None:
    run = launch(SAVES_AND_LEAVES.replace("CODE", "75"))
    run.pids(2)
    run.process.send_signal(signal.SIGHUP)
    code, out, _ = run.finish()
    assert (code, out) == (75, "rank 0 got SIGTERM\n")


@pytest.mark.parametrize(("name", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ranks_that_just_die_of_the_signal_are_no_failure(
    launch: Callable[..., Launched], name: str, expected: int
) -> None:
    run = launch("signal.signal(signal.SIGINT, signal.SIG_DFL)\n" + WAITS)
    run.pids(2)
    run.process.send_signal(getattr(signal, name))
    code, _, err = run.finish()
    assert code == expected
    assert "failed" not in err


def test_a_rank_that_fails_while_saving_is_a_failure(launch: Callable[..., Launched]) -> None:
    run = launch(SAVES_AND_LEAVES.replace("CODE", "75 if rank == 0 else time.sleep(0.3) or 'disk full'"))
    run.pids(2)
    run.process.send_signal(signal.SIGTERM)
    code, _, err = run.finish()
    assert code == 75, "rank 0 had said that the state is saved"
    assert "rank 1 failed (exit code 1)" in err
    assert "  | disk full" in err


def test_a_failure_counts_more_than_ranks_that_just_died_of_the_signal(launch: Callable[..., Launched]) -> None:
    run = launch(
        "if rank == 0:\n    announce()\n    time.sleep(60)\n" + SAVES_AND_LEAVES.replace("CODE", "time.sleep(0.3) or 3")
    )
    run.pids(2)
    run.process.send_signal(signal.SIGTERM)
    code, _, err = run.finish()
    assert code == 3
    assert "rank 1 failed (exit code 3)" in err


def test_stubborn_ranks_are_killed_after_the_grace(launch: Callable[..., Launched]) -> None:
    run = launch("print('left', os.environ['MEMFORMER_GRACE_SECONDS'], flush=True)\n" + STUBBORN, grace_seconds=0.5)
    pids = run.pids(2)
    assert "\nleft 0.5\n" in run.log(1), "they are told how long that is"
    run.process.send_signal(signal.SIGTERM)
    code, _, err = run.finish()
    assert code == 137
    assert "killing rank 0, rank 1" in err
    assert not any(map(is_running, pids))


def test_a_second_interrupt_does_not_wait(launch: Callable[..., Launched]) -> None:
    run = launch("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAITS, grace_seconds=600)
    pids = run.pids(2)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert run.finish()[0] == 137
    assert not any(map(is_running, pids))


def test_saved_by_one_rank_gives_the_others_time_to_leave(launch: Callable[..., Launched]) -> None:
    run = launch("time.sleep(0.5 * rank)\nprint('left')\nsys.exit(75)\n")
    assert run.finish()[0] == 75
    assert "left" in run.log(1)


def test_bad_usage_is_said_once(launch: Callable[..., Launched]) -> None:
    script = (
        "time.sleep(0.3 if rank == 0 else 0)\n"
        "print('memformer train: error: no such file', file=sys.stderr)\n"
        "sys.exit(2)\n"
    )
    code, out, err = launch(script, nproc=3).finish()
    assert code == 2
    assert (out + err).splitlines() == ["memformer train: error: no such file"]


def test_bad_usage_on_another_rank_alone_is_shown(launch: Callable[..., Launched], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-00001.log").write_text("of an earlier launch\n")
    run = launch("if rank == 1:\n    sys.exit(print('no such disk') or 2)\n" + WAITS, USAGE_WAIT_SECONDS=0.3)
    code, _, err = run.finish()
    assert code == 2
    assert "rank 1 failed (exit code 2)" in err
    assert [line for line in err.splitlines() if line.startswith("  | ")] == ["  | no such disk"]


def test_killing_the_launcher_leaves_no_orphans(launch: Callable[..., Launched]) -> None:
    run = launch(STUBBORN)
    pids = run.pids(2)
    run.process.kill()
    run.process.wait()
    wait_for(lambda: not any(map(is_running, pids)))


def test_what_a_rank_leaves_running_is_cleared_away(launch: Callable[..., Launched]) -> None:
    script = "import subprocess\nhelper = subprocess.Popen(['sleep', '60'])\nprint('helper', helper.pid)\n"
    run = launch(script)
    assert run.finish()[0] == 0
    helpers = [int(run.log(rank).split()[-1]) for rank in range(2)]
    wait_for(lambda: not any(map(is_running, helpers)))  # killed is not gone yet


def test_a_command_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from launch.local import launch_processes\n"
        f"sys.exit(launch_processes(['/no/such/program'], 1, Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 127
    assert "cannot start /no/such/program" in done.stdout


@pytest.mark.parametrize("trouble", ["a file in its place", "a folder in the log's place", "no room"])
def test_logs_that_cannot_be_written_are_one_line_and_nothing_is_started(tmp_path: Path, trouble: str) -> None:
    logs, limit = tmp_path / "run/logs", resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble == "a file in its place":
        logs.parent.mkdir()
        logs.write_text("")
    elif trouble == "a folder in the log's place":
        (logs / "rank-00000.log").mkdir(parents=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    before = sorted(tmp_path.rglob("*"))
    try:
        with pytest.raises(UserError, match=r"rank-00000.log: cannot be written|logs: cannot be made"):
            launch_processes([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"], 1, logs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("begun", [False, True])
def test_a_launch_that_is_refused_leaves_no_logs_of_its_own(tmp_path: Path, begun: bool) -> None:
    """Unless something was begun; logs of earlier launches are continued, as ever."""
    refuses = [sys.executable, "-c", "import sys; sys.exit(2)"]
    logs = tmp_path / "run/logs"
    assert launch_processes(refuses, 2, logs, refused=lambda: not begun) == 2
    assert logs.parent.exists() == begun
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "rank-00000.log").write_text("earlier\n")
    assert launch_processes(refuses, 2, logs, refused=lambda: not begun) == 2
    assert (logs / "rank-00000.log").read_text().startswith("earlier\n=== ")
    assert (logs / "rank-00001.log").exists() == begun


def test_logs_have_the_command_without_what_is_secret_in_its_addresses(tmp_path: Path) -> None:
    words = ["--data.path=https://host/set?sig=secret", "--other", "pipe:curl -u me:secret host"]
    assert launch_processes([sys.executable, "-c", "pass", *words], 1, tmp_path) == 0
    head = (tmp_path / "rank-00000.log").read_text()
    assert "--data.path=https://host/set?***" in head and "pipe:..." in head and "secret" not in head
