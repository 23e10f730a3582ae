# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a step reports: lines that JSON can read, one tag a number in TensorBoard, a log line with an ETA."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from memformer.run.directory import RunDirectory
from memformer.run.metrics import MetricsWriter, log_line, peak_memory_bytes, perplexity, set_up_logging

STEP: dict[str, Any] = {
    "step": 90,
    "loss": 2.5,
    "perplexity": perplexity(2.5),
    "learning_rate": 3e-4,
    "grad_norm": 1.25,
    "epochs": 1.5,
    "tokens_per_second": 12345.6,
    "mfu": 0.4321,
    "peak_memory_bytes": 3 * 2**30,
}


class Board:
    """Keeps what would go to TensorBoard."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[tuple[str, str, int]] = []

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        self.scalars += [(tag, value, step) for tag, value in values.items()]

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))

    def close(self) -> None:
        pass


def writer_of(run: RunDirectory, enabled: bool = True) -> MetricsWriter:
    run.root.mkdir(exist_ok=True)
    return MetricsWriter(run, enabled, tensorboard=False, first_step=1)


def test_each_step_is_a_line_that_json_reads(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with writer_of(run) as first:
        first.step({"step": 1, "loss": math.nan, "by_segment": [1.0, math.inf]})
        # Before the file is closed: a run that is killed loses no step that it reported.
        assert json.loads(run.metrics.read_text()) == {"step": 1, "loss": None, "by_segment": [1.0, None]}
    with writer_of(run) as second:
        second.step({"step": 2, "loss": 0.5})
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with writer_of(run, enabled=False) as writer:
        writer.step({"step": 1})
        writer.figures("memory", 1, {"shares": object()})
    assert not run.metrics.exists()


def test_numbers_become_scalars_by_name(tmp_path: Path) -> None:
    with writer_of(RunDirectory(tmp_path / "run")) as writer:
        board = Board()
        writer._board = board  # type: ignore[assignment]
        writer.step(
            {"step": 3, "loss": 0.5, "note": "words", "bad": math.nan, "part": {"a": 1}, "by_segment": [2.0, 4]}
            | {"tasks": {"copy": {"160": {"with_memory": 0.75}}}}
        )
    assert board.scalars == [
        ("train/loss", 0.5, 3),
        ("train/part/a", 1, 3),
        ("train/by_segment/01", 2.0, 3),
        ("train/by_segment/02", 4, 3),
        ("tasks/copy/160/with_memory", 0.75, 3),
    ]


def test_a_text_keeps_its_lines(tmp_path: Path) -> None:
    with writer_of(RunDirectory(tmp_path / "run")) as writer:
        writer.text("settings", "nowhere", 0)
        writer._board = board = Board()
        writer.text("settings", "seed: 1\nmodel:\n  d_model: 8\n", 4)
    assert board.texts == [("settings", "    seed: 1\n    model:\n      d_model: 8\n", 4)]


def test_a_line_of_the_log() -> None:
    line = log_line(STEP, max_steps=1000, seconds_per_step=4.0)
    assert line.startswith("step   90/1000 | loss  2.5000 | ppl     12.18 | lr 3.00e-04 | grad    1.250 ")
    assert "| epoch   1.500 |    12,346 tok/s | mfu 43.2% | mem   3.00 GiB | eta 1:00:40" in line
    assert "mfu   n/a" in log_line({**STEP, "mfu": None}, 1000, 4.0)


def test_a_loss_beyond_what_exp_can_say_is_infinite() -> None:
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1.0


def test_the_peak_of_a_cpu_process_is_in_bytes() -> None:
    found = peak_memory_bytes(torch.device("cpu"))
    status = Path("/proc/self/status").read_text()
    kernels = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    assert found == pytest.approx(kernels, rel=0.05)


@pytest.mark.parametrize(("rank", "shown"), [(0, ["[0] hello", "[0] careful"]), (3, ["[3] careful"])])
def test_only_rank_0_tells_what_goes_well(rank: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("memformer")
    before = log.handlers, log.propagate, log.level
    try:
        set_up_logging(rank)
        log.info("hello")
        log.warning("careful")
    finally:
        log.handlers, log.propagate = before[0], before[1]
        log.setLevel(before[2])
    assert [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()] == shown
