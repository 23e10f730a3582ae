# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The script for a lent GPU, on a CPU at tiny sizes: what is there is not done again, what failed is said and redone.

Its parts run on a simulated GPU (tests/simulated_gpu/test_gpu_script.py); replay's exactness is held elsewhere.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_parts, programs
from benchmarks.gpu_page import page
from benchmarks.gpu_runs import Setting
from benchmarks.simulated_gpu import library
from tests import ROOT


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a run on a CPU, whose data set is one by its looks alone."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "manifest.json").write_text("{}")
    place = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "result")]
    return [*place, "--device", "cpu", "--small"]


def test_parts_are_done_once_and_what_failed_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([*words, "--only", "stages", "--patience", "4"]) == 1  # there is no data set
    found = json.loads((tmp_path / "result.json").read_text())["parts"]["stages"]
    assert found["failed"].startswith("exit code")
    assert gpu.main([*words, "--only", "ceilings", "stages", "--seconds", "1"]) == 1  # no time left
    assert set(json.loads((tmp_path / "result.json").read_text())["parts"]) == {"stages"}
    assert "missing: ceilings, stages; the same command" in capsys.readouterr().err
    assert "**stages failed**" in (tmp_path / "result.md").read_text()


def test_a_part_that_is_there_is_left_alone(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "result"
    limits = {"matmul_tflops": 1.0, "copy_gb_per_second": 2.0}
    out.with_suffix(".json").write_text(
        json.dumps({"kind": "small", "parts": {"ceilings": limits}, "notes": ["Kept."]})
    )
    assert gpu.main([*words, "--only", "ceilings"]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["parts"]["ceilings"] == limits
    assert out.with_suffix(".md").read_text().endswith("Kept.\n")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--device", "cuda"], "there is no GPU here: --simulated runs every part without one"),
        (["--data", "nowhere"], "--data nowhere has no train/ and validation/: make them with memformer data build"),
        (["--simulated"], "start it as a program"),
        (["--out", "/proc/nowhere/result"], "--out /proc/nowhere/result cannot be written"),
        (["--only", "trian-350m"], "invalid choice: 'trian-350m'"),
    ],
)
def test_what_cannot_begin_is_said_in_one_line(
    words: list[str], changed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in changed and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as left:
        gpu.main([*words, *changed])
    message = str(left.value.code) if isinstance(left.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert said in message and "\n" not in message


@pytest.mark.parametrize("held", ['{"kind": "simulated", "parts": {}}', '{"parts": {"ceilings": {}}}', "[]", "{"])
def test_results_of_another_kind_are_not_gone_on_with(words: list[str], tmp_path: Path, held: str) -> None:
    """A result without a kind was measured on a GPU."""
    (tmp_path / "result.json").write_text(held)
    with pytest.raises(SystemExit, match="give another --out"):
        gpu.main(words)
    assert (tmp_path / "result.json").read_text() == held


def test_a_simulated_run_leaves_nothing_among_the_results() -> None:
    out = ROOT / "benchmarks" / "results" / "2026-01-01-gpu-step"
    words = [sys.executable, "benchmarks/gpu.py", "--simulated", "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and ("give an --out outside" in done.stderr or library.missing())
    assert not out.with_suffix(".json").exists()


@pytest.mark.parametrize(("out", "said"), [(None, "nothing was kept; with --out"), (Path("r"), "the same command")])
def test_a_script_that_is_stopped_says_whether_it_goes_on(out: Path | None, said: str, tmp_path: Path) -> None:
    options = argparse.Namespace(out=out, seconds=1)
    with pytest.raises(SystemExit, match=f"stopped; {said}"):
        gpu.Parts(options, {"hardware": {}, "commit": ""}, tmp_path).leave(15, None)


def test_the_page_says_what_differs_and_where_parts_ran() -> None:
    speed = {"step_seconds": 1.0, "peak_bytes": 2**30, "seconds_before_steady": 5.0, "commit": "abc"}
    parts = {
        "train-350m": {**speed, "tokens_per_second": 100.0, "hardware": "H100"},
        "train-350m-compiled": {**speed, "tokens_per_second": 130.0, "hardware": "H200"},
        "train-350m-bf16-stream": {**speed, "tokens_per_second": 195.0, "hardware": "H200", "planned_bytes": 2**29},
    }
    values = {"date": "today", "hardware": "H200", "torch": "2", "commit": "abc", "command": "python", "parts": parts}
    drawn = page(values)
    assert "| 350m-compiled | 130 |  | 1.000 |" in drawn  # another host than that of 350m
    assert "| 350m-bf16-stream | 195 | 1.50 x 350m-compiled | 1.000 | n/a | n/a | 1.00 | -50.0% |" in drawn
    assert "* H100, commit abc: train-350m." in drawn and "* H200, commit abc: train-350m-compiled, " in drawn


def test_a_profile_counts_kernels_once_and_nothing_else() -> None:
    """Not the calls that launch them, which take no time of the GPU or are said to take their kernels', nor spans."""

    def event(key: str, count: int, seconds: float, kind: str = "CUDA", span: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            count=count,
            self_device_time_total=1e6 * seconds,
            self_cpu_time_total=5e6,
            device_type=getattr(torch.autograd.DeviceType, kind),
            is_user_annotation=span,
        )

    long = "void at::native::elementwise_kernel<" + "a" * 120
    events = [event("nvjet_tst", 3, 0.5), event(f"{long}, 1>", 2, 0.25), event(f"{long}, 2>", 1, 0.125)]
    beside = [event("cudaLaunchKernel", 6, 0.0, "CPU"), event("cuLaunchKernelEx", 1, 0.5, "CPU")]
    found = gpu_parts.in_kernels([*events, *beside, event("memformer: pass 1", 1, 0.875, span=True)], on_gpu=True)
    assert (found["kernels"], found["busy_seconds"]) == (6, 0.875)
    assert found["seconds_by_kind"] == {"matrix products": 0.5, "elementwise": 0.375}
    assert found["longest"] == {"nvjet_tst": 0.5, long[:120]: 0.375}
    assert gpu_parts.in_kernels(beside, on_gpu=False)["busy_seconds"] == 10
    found |= {"seconds": 1.25, "launch_seconds": 1.2, "idle_share": 0.3}
    drawn = page(
        {"date": "", "hardware": "", "torch": "", "commit": "", "command": "", "parts": {"profile": {"plain": found}}}
    )
    assert "| plain | 1.250 | 0.875 | 30% | 1.200 | 6 | matrix products 0.500, elementwise 0.375 |" in drawn


def test_a_program_ends_with_what_it_has_started(tmp_path: Path) -> None:
    log, mark = tmp_path / "log", tmp_path / "child"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    program = programs.start(["-c", code], log, leads=True)
    programs.kill_when(program, lambda: mark.exists() and bool(mark.read_text()), log)
    assert program.returncode == -signal.SIGKILL
    limit = time.monotonic() + 10
    while is_running(mark.read_text()) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not is_running(mark.read_text())


def is_running(process: str) -> bool:
    """Whether a process is there and not dead, be it waited for or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_fails_is_told_of(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = programs.start(["-c", "raise SystemExit('no disk')"], log, {"A": "b"})
    with pytest.raises(SystemExit, match="exit code 1: no disk"):
        programs.kill_when(program, lambda: False, log)
    assert programs.side_by_side(os.path.basename, ["a/b", "c/d"], 2) == ["b", "d"]


def test_replay_is_held_to_bptt_and_a_wrong_number_fails_the_part(tmp_path: Path) -> None:
    found = gpu_parts.correctness(Setting(torch.device("cpu"), True, tmp_path, tmp_path))
    assert found["float64"]["gradient_error"] < 1e-12
    assert gpu_parts.right(found)
    found["float64"]["right"] = False
    assert not gpu_parts.right(found)
