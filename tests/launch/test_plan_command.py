# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer plan` on the command line: no data, no GPU, no process group; exit codes; one line for a mistake.

Covers: launch/commands/plan.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from launch.cli import main
from tests.books import TINY_MODEL

EIGHT_BILLION = Path(__file__).parents[2] / "configs" / "parallel" / "8b-memory-on-8.yaml"
MODEL = {**TINY_MODEL, "vocab_size": 257}
LARGE = {**MODEL, "d_model": 8192, "num_heads": 64, "d_ff": 32768, "vocab_size": 32768}


def plan(tmp_path: Path, *words: str, model: dict[str, Any] = MODEL) -> int:
    config = tmp_path / "run.yaml"
    data = {"path": str(tmp_path / "nowhere"), "num_lanes": 8, "segment_length": 32, "num_segments": 4}
    # Autocast would double the operations that a plan traces.
    values = {"run_dir": str(tmp_path / "run"), "precision": "fp32", "model": model, "data": data}
    config.write_text(yaml.safe_dump(values))
    return main(["plan", str(config), *words])


def test_json_has_everything_and_nothing_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--gpus-per-node", "4", "--parallel.tensor", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["topology"] == {"nodes": 1, "gpus_per_node": 4, "pipeline": 1, "data": 2, "segment": 1, "tensor": 2}
    assert found["hardware"]["name"] == "NVIDIA H100 80GB HBM3" and "nvidia.com" in found["hardware"]["source"]
    assert found["fits"] and found["parameters"] > 0 and found["traffic"]["tensor"]["all_reduce"] > 0
    assert not dist.is_initialized() and not (tmp_path / "run").exists()


def test_sizes_alone_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "sizes.yaml"
    config.write_text(yaml.safe_dump({"model": TINY_MODEL}))
    command = ["plan", str(config), "--gpus-per-node", "1"]
    assert main([*command, "--model.vocab_size", "257"]) == 0
    assert main(command) == 2
    assert "model.vocab_size and data.path are missing" in capsys.readouterr().err


def test_text_names_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--gpus-per-node", "2", "--search", "--data.num_segments", "1") == 0
    text = capsys.readouterr().out
    for words in ("parameters on 1 x 2 h100", "optimizer states", "data, all_reduce", "bubble 0.0%", "MFU", "fastest"):
        assert words in text


def test_latency_is_told_where_it_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--gpus-per-node", "4", "--parallel.tensor", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "latency" in line] == ["tensor"]


def test_the_network_that_is_given_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for gigabits in ("400", "100"):
        assert plan(tmp_path, "--nodes", "8", "--gpus-per-node", "1", "--network-gigabits", gigabits, "--json") == 0
        seconds.append(json.loads(capsys.readouterr().out.splitlines()[-1])["communication_seconds"]["data"])
    assert seconds[1] == pytest.approx(4 * seconds[0])


def test_a_warning_says_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--nodes", "8", "--gpus-per-node", "1", model=LARGE) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "is data-parallel traffic: " in line and "data.num_lanes" in line


def test_too_large_a_model_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--gpus-per-node", "8", model={**LARGE, "num_decoder_layers": 40}) == 1
    assert "does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--device", "tpu"), "--device is 'tpu'"),
        (("--nodes", "0"), "--nodes is 0"),
        (("--nodes", "2", "--device", "l4"), "give --network-gigabits"),
        (("--network-gigabits", "0"), "--network-gigabits is 0"),
        (("--efficiency", "2"), "--efficiency is 2"),
        (("--gpus-per-node", "3"), "3 data-parallel processes cannot share"),
        (("--parallel.tensors", "2"), "did you mean tensor?"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert plan(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_without_a_vocabulary_it_needs_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, model=TINY_MODEL) == 2
    assert "or set model.vocab_size" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--model.family", "backbone"], [str(EIGHT_BILLION)]])
def test_help_has_the_settings_of_the_family_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the other settings would be refused: of these two, the first has no sizes and no data."""
    with pytest.raises(SystemExit, match="0"):
        main(["plan", *words, "--help"])
    text = capsys.readouterr().out
    assert "settings of model.family backbone, " in text and "--model.memory.kind " in text
    assert "--model.num_memory_slots" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("  --model.backbone ")]
    assert line.endswith("(default: {})")


@pytest.mark.parametrize("words", [[], ["nowhere.yaml"], ["--model.family", "nobody"]])
def test_help_is_given_whatever_else_is_wrong(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", *words, "--help"])
    assert "settings of model.family memformer, " in capsys.readouterr().out


def test_the_8b_with_a_memory_fits_the_gpus_that_its_file_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The files of docs/parallelism.md are held by its table, this one by nothing else."""
    assert main(["plan", str(EIGHT_BILLION), "--nodes", "1", "--gpus-per-node", "8", "--device", "h100"]) == 0
    assert "memory of a process: 39.294 GB" in capsys.readouterr().out
