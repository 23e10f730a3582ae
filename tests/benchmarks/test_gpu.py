# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The script for a lent GPU, on a CPU at tiny sizes: what is there is not done again, what failed is said and redone.

The parts themselves are too slow for a CPU's test suite but for one; replay's exactness is held elsewhere.
"""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.gpu_runs import Setting


def test_parts_are_done_once_and_what_failed_again(tmp_path: Path) -> None:
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "result"), "--device", "cpu", "--small"]
    assert gpu.main([*words, "--only", "stages", "--patience", "4"]) == 1  # there is no data set
    found = json.loads((tmp_path / "result.json").read_text())["parts"]["stages"]
    assert found["failed"].startswith("exit code")
    assert gpu.main([*words, "--only", "ceilings", "--seconds", "1"]) == 1  # no time left, and the failure stands
    assert set(json.loads((tmp_path / "result.json").read_text())["parts"]) == {"stages"}
    assert "**stages failed**" in (tmp_path / "result.md").read_text()


def test_a_part_that_is_there_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "result"
    limits = {"matmul_tflops": 1.0, "copy_gb_per_second": 2.0}
    out.with_suffix(".json").write_text(json.dumps({"parts": {"ceilings": limits}}))
    words = ["--data", str(tmp_path), "--out", str(out), "--device", "cpu", "--small", "--only", "ceilings"]
    assert gpu.main(words) == 0
    assert json.loads(out.with_suffix(".json").read_text())["parts"]["ceilings"] == limits


def test_without_a_gpu_it_says_how_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main(["--data", str(tmp_path), "--out", str(tmp_path / "result")])
    assert "try --device cpu --small" in capsys.readouterr().err


def test_replay_is_held_to_bptt_and_a_wrong_number_fails_the_part(tmp_path: Path) -> None:
    found = gpu_parts.correctness(Setting(torch.device("cpu"), True, tmp_path, tmp_path))
    assert found["float64"]["gradient_error"] < 1e-12
    assert gpu_parts.right(found)
    found["float64"]["right"] = False
    assert not gpu_parts.right(found)
