# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of benchmarks/gpu.py that are whole runs of `memformer train`: speed, ZeRO stages, a kill, an export."""

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT

MEMFORMER = (sys.executable, "-m", "launch.cli")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a part is told.

    Attributes:
        device: Where it runs.
        small: Whether sizes are tiny, to see that it runs.
        work: A directory for what runs leave behind.
        data: A data set, for the parts that train.
    """

    device: torch.device
    small: bool
    work: Path
    data: Path

    def pick(self, full: Any, small: Any) -> Any:
        """The size to run at."""
        return small if self.small else full


def memformer(setting: Setting, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `memformer WORDS` on the device; its output goes to `log`."""
    environment = dict(os.environ)
    if setting.device.type == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with log.open("ab") as file:
        return subprocess.Popen([*MEMFORMER, *words], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for it; what it said last is the error if it failed."""
    if process.wait():
        raise SystemExit(f"exit code {process.returncode}: " + log.read_text(errors="replace")[-2000:])


def settings(setting: Setting, run: Path, steps: int, **overrides: object) -> list[str]:
    """The words of `memformer train` for a run without evaluations, checkpoints and pictures, but for `overrides`."""
    values: dict[str, object] = {
        "run_dir": run,
        "data.path": setting.data,
        "training.max_steps": steps,
        "training.eval_interval": 0,
        "training.diagnostics_interval": 0,
        "training.memory_pictures_interval": 0,
        "training.log_interval": 1,
        "checkpoint.interval": 0,
        "optimizer.learning_rate": 3e-4,
    }
    for name, value in overrides.items():
        values[name.replace("__", ".")] = value
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


TINY = {
    "model__num_encoder_layers": 1,
    "model__num_decoder_layers": 2,
    "model__d_model": 64,
    "model__num_heads": 4,
    "model__d_ff": 128,
    "model__num_memory_slots": 8,
}


def small_words(setting: Setting) -> dict[str, object]:
    """What goes over a run's settings where sizes are small."""
    return {**TINY, "data__segment_length": 32} if setting.small else {}


def lines_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained(setting: Setting, name: str, config: str, steps: int, **overrides: object) -> dict[str, Any]:
    """A run of `steps` steps: medians of the steps from the fourth on, and how long it took to get there."""
    run, log = setting.work / name, setting.work / f"{name}.log"
    words = settings(setting, run, steps, **{"compile": "false", **overrides, **small_words(setting)})
    started = time.perf_counter()
    finished(memformer(setting, ["train", f"configs/{config}.yaml", *words], log), log)
    wall = time.perf_counter() - started
    lines = lines_of(run)
    steady = lines[3:] or lines
    median = {
        key: statistics.median(line[key] for line in steady)
        for key in ("tokens_per_second", "step_seconds", "mfu", "hfu")
        if steady[0].get(key) is not None
    }
    return {
        **median,
        "peak_bytes": max(line["peak_memory_bytes"] for line in lines),
        "seconds_before_steady": wall - median["step_seconds"] * len(lines),
        "losses": [line["loss"] for line in lines],
    }


def speed(config: str, compiled: bool, steps: int = 10, **overrides: object) -> Callable[[Setting], dict[str, Any]]:
    """A part that trains a configuration of configs/model with 8 lanes of 8 segments of 1,024 tokens in bf16."""

    def part(setting: Setting) -> dict[str, Any]:
        sizes: dict[str, object] = {"data__num_lanes": 8, "data__segment_length": 1024, "data__num_segments": 8}
        precision = setting.pick("bf16", "fp32")  # 16 bits are slow on most CPUs
        words = {**sizes, "precision": precision, "parallel__zero_stage": 1, **overrides}
        words["compile"] = "true" if compiled else "false"
        name = f"{config}{'-compiled' if compiled else ''}"
        return trained(setting, f"train-{name}", f"model/{config}", setting.pick(steps, 5), **words)

    return part


def stages(setting: Setting) -> dict[str, Any]:
    """ZeRO 0 to 3 with one process in float32, and bf16 and fp16: the same losses as ZeRO 0 in float32.

    float32: the stages order their sums otherwise, and twenty steps of AdamW carry that on. 16 bits: what rounding of
    every product leaves after as many steps.
    """
    cases = {
        "zero 0": (0, "fp32"), "zero 1": (1, "fp32"), "zero 2": (2, "fp32"), "zero 3": (3, "fp32"),
        "zero 1 bf16": (1, "bf16"), "zero 3 bf16": (3, "bf16"), "zero 1 fp16": (1, "fp16"),
        "zero 3 offloaded": (3, "bf16"),
    }  # fmt: skip
    sizes: dict[str, object] = {"data__num_lanes": 8, "data__segment_length": 256, "data__num_segments": 4}

    def losses(name: str) -> list[float]:
        stage, precision = cases[name]
        words = {**sizes, "parallel__zero_stage": stage, "precision": precision}
        if name.endswith("offloaded"):
            words |= {"parallel__offload_optimizer": "cpu", "parallel__offload_parameters": "cpu"}
        run = f"stage-{name.replace(' ', '-')}"
        return list(trained(setting, run, "model/tiny", setting.pick(20, 4), **words)["losses"])

    with ThreadPoolExecutor(max_workers=setting.pick(4, 1)) as pool:
        runs = dict(zip(cases, pool.map(losses, cases), strict=True))
    found = {}
    for name, (_, precision) in cases.items():
        error = max(abs(a / b - 1) for a, b in zip(runs[name], runs["zero 0"], strict=True))
        bound = 1e-4 if precision == "fp32" else 1e-2
        found[name] = {"loss_error": error, "bound": bound, "right": error <= bound, "last_loss": runs[name][-1]}
    return found


def resume(setting: Setting) -> dict[str, Any]:
    """A run that is killed and goes on, beside one that was not; its export is read on the device and on the host."""
    sizes: dict[str, object] = {"data__num_lanes": 8, "data__segment_length": 256, "data__num_segments": 4}
    words = {**sizes, "checkpoint__interval": 5, "parallel__zero_stage": 1, "precision": setting.pick("bf16", "fp32")}
    whole = trained(setting, "resume-whole", "model/tiny", 20, **words)["losses"]
    again = trained(setting, "resume-again", "model/tiny", 20, **words)["losses"]
    run, log = setting.work / "resume-killed", setting.work / "resume-killed.log"
    train = ["train", "configs/model/tiny.yaml", *settings(setting, run, 20, **{**words, **small_words(setting)})]
    with started(memformer(setting, train, log)) as process:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "step-00000010").exists() and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished(memformer(setting, train, log), log)
    losses = [line["loss"] for line in lines_of(run)]
    error = max(abs(a / b - 1) for a, b in zip(losses, whole, strict=True))
    export = run / "model"
    finished(memformer(setting, ["export", str(run), "--out", str(export)], log), log)
    return {
        "steps_of_the_killed_run": len(losses),
        "loss_error": error,
        "loss_error_of_the_same_run_twice": max(abs(a / b - 1) for a, b in zip(again, whole, strict=True)),
        "bit_equal": losses == whole,
        "right": error <= 1e-3,
        "export": {"perplexity": evaluated(setting, export), "right": True},
    }


@contextlib.contextmanager
def started(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends the process at the block's end, whatever happened in it."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def evaluated(setting: Setting, export: Path) -> float:
    """Perplexity of the export on the held-out documents, by `memformer evaluate`."""
    command = [*MEMFORMER, "evaluate", str(export), "--data", str(setting.data), "--max-segments", "16", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["with_memory"]["perplexity"])


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "stages": stages,
    "resume": resume,
    # They fill torch's cache of compiled graphs; what a first start costs is in them.
    "compile-350m": speed("350m", compiled=True, steps=2),
    "compile-1.3b": speed("1.3b", compiled=True, steps=2, training__lanes_per_micro_batch=4),
    "train-350m": speed("350m", compiled=False),
    "train-350m-compiled": speed("350m", compiled=True),
    "train-1.3b": speed("1.3b", compiled=False, training__lanes_per_micro_batch=4),
    "train-1.3b-compiled": speed("1.3b", compiled=True, training__lanes_per_micro_batch=4),
}
