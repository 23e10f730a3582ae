# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of benchmarks/gpu.py that are whole runs of `memformer train`: speed, ZeRO stages, a kill, an export."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import programs
from benchmarks.simulated_gpu import library


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

    @property
    def repetitions(self) -> int:
        """Timed runs of each variant."""
        return int(self.pick(3, 1))

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is tried; for a CPU it is tested elsewhere, and a simulated GPU runs no kernel."""
        return self.device.type == "cuda" and not library.loaded()


def memformer(setting: Setting, words: Sequence[str], log: Path) -> programs.Program:
    """Starts `memformer WORDS` on the device; what it says is added to `log`."""
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return programs.start(["-m", "launch.cli", *words], log, on_cpu if setting.device.type == "cpu" else {})


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


PLAIN: dict[str, object] = {"compile": "false"}
TINY: dict[str, object] = {
    "model__num_encoder_layers": 1,
    "model__num_decoder_layers": 1,
    "model__d_model": 32,
    "model__num_heads": 2,
    "model__d_ff": 64,
    "model__num_memory_slots": 8,
    "data__segment_length": 16,
    "data__num_segments": 2,
}
"""What goes over a run's settings where sizes are small."""


def lines_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, but for a line that is being written."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def sized(setting: Setting, words: dict[str, object]) -> dict[str, object]:
    """A run's settings, with the tiny model where sizes are small."""
    return {**words, **TINY} if setting.small else words


def trained(setting: Setting, name: str, config: str, steps: int, **overrides: object) -> list[float]:
    """The losses of a run of so many steps."""
    run, log = setting.work / name, setting.work / f"{name}.log"
    words = settings(setting, run, steps, **sized(setting, overrides))
    programs.finish(memformer(setting, ["train", f"configs/{config}.yaml", *words], log), log)
    return [line["loss"] for line in lines_of(run)]


def speed(config: str, name: str, steps: int = 10, **overrides: object) -> Callable[[Setting], dict[str, Any]]:
    """A part that trains a configuration of configs/model with 8 lanes of 8 segments of 1,024 tokens in bf16, ZeRO 1.

    Medians of the steps from the fourth on, and how long it took to get there. The run is killed after its last step:
    the checkpoint that it would leave takes longer than the steps, and 16 GB.

    Args:
        config: Its file.
        name: Of the run.
        steps: How many.
        overrides: Settings; with `compile` left at its default the part fails where the layers were not compiled.
    """

    def part(setting: Setting) -> dict[str, Any]:
        run, log, count = setting.work / name, setting.work / f"{name}.log", setting.pick(steps, 2)
        words: dict[str, object] = {"data__num_lanes": 8, "data__segment_length": 1024, "data__num_segments": 8}
        # 16 bits are slow on most CPUs.
        words |= {"precision": "fp32" if setting.device.type == "cpu" else "bf16", "parallel__zero_stage": 1}
        words = settings(setting, run, count + 1000, **sized(setting, {**words, **overrides}))
        started = time.perf_counter()
        process = memformer(setting, ["train", f"configs/model/{config}.yaml", *words], log)
        planned = None if library.loaded() else planned_bytes(setting, [f"configs/model/{config}.yaml", *words], run)
        programs.kill_when(process, lambda: len(lines_of(run)) >= count, log)
        wall = time.perf_counter() - started
        lines = lines_of(run)[:count]
        steady = lines[3:] or lines
        median = {
            key: statistics.median(line[key] for line in steady)
            for key in ("tokens_per_second", "step_seconds", "mfu", "hfu")
            if steady[0].get(key) is not None
        }
        found = {
            **median,
            "peak_bytes": max(line["peak_memory_bytes"] for line in lines),
            "planned_bytes": planned,
            "seconds_before_steady": wall - median["step_seconds"] * len(lines),
            "losses": [line["loss"] for line in lines],
        }
        if "compile" not in overrides and setting.device.type == "cuda":
            said = log.read_text(errors="replace")
            # With `auto` a layer that the compiler fails at runs as it was written, and torch warns of it.
            compiled = "layers are compiled" in said and "WON'T CONVERT" not in said
            found |= {"compiled": compiled, "right": compiled}
        return found

    return part


def planned_bytes(setting: Setting, words: Sequence[str], run: Path) -> int:
    """What `memformer plan` says of a run's memory, while that starts; whether it would fit (its exit code) or not."""
    log = run.with_name(f"{run.name}-plan.log")
    memformer(setting, ["plan", *words, "--nodes", "1", "--gpus-per-node", "1", "--json"], log).wait(60)
    plan = next(line for line in reversed(log.read_text().splitlines()) if line.startswith("{"))
    return int(json.loads(plan)["device_memory"]["total"])


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
    if setting.small:  # the other parts that train do so in bf16
        cases = {name: case for name, case in cases.items() if not name.endswith("bf16")}
    sizes: dict[str, object] = {"data__num_lanes": 8, "data__segment_length": 256, "data__num_segments": 4}

    def losses(name: str) -> list[float]:
        stage, precision = cases[name]
        words = {**sizes, **PLAIN, "parallel__zero_stage": stage, "precision": precision}
        if name.endswith("offloaded"):
            words |= {"parallel__offload_optimizer": "cpu", "parallel__offload_parameters": "cpu"}
        run = f"stage-{name.replace(' ', '-')}"
        return trained(setting, run, "model/tiny", setting.pick(20, 1), **words)

    runs = dict(zip(cases, programs.side_by_side(losses, cases, setting.pick(4, 1)), strict=True))
    found = {}
    for name, (_, precision) in cases.items():
        error = max(abs(a / b - 1) for a, b in zip(runs[name], runs["zero 0"], strict=True))
        bound = 1e-4 if precision == "fp32" else 1e-2
        found[name] = {"loss_error": error, "bound": bound, "right": error <= bound, "last_loss": runs[name][-1]}
    return found


def resume(setting: Setting) -> dict[str, Any]:
    """A run that is killed and goes on, beside one that was not; its export is read on the device and on the host."""
    words: dict[str, object] = {"data__num_lanes": 8, "data__segment_length": 256, "data__num_segments": 4}
    words |= {"parallel__zero_stage": 1, "precision": "fp32" if setting.device.type == "cpu" else "bf16"}
    steps, interval, middle = setting.pick((20, 5, 10), (2, 1, 1))
    words |= {**PLAIN, "checkpoint__interval": interval}
    whole = trained(setting, "resume-whole", "model/tiny", steps, **words)
    again = trained(setting, "resume-again", "model/tiny", steps, **words)
    run, log = setting.work / "resume-killed", setting.work / "resume-killed.log"
    train = ["train", "configs/model/tiny.yaml", *settings(setting, run, steps, **sized(setting, words))]
    half_way = run / "checkpoints" / f"step-{middle:08d}"
    programs.kill_when(memformer(setting, train, log), half_way.exists, log)
    programs.finish(memformer(setting, train, log), log)
    losses = [line["loss"] for line in lines_of(run)]
    error = max(abs(a / b - 1) for a, b in zip(losses, whole, strict=True))
    export = run / "model"
    # Weights without numbers cannot give the losses that the checkpoint recorded.
    unverified = ["--no-verify"] if library.loaded() else []
    programs.finish(memformer(setting, ["export", str(run), "--out", str(export), *unverified], log), log)
    perplexity = {device: evaluated(setting, export, device) for device in (setting.device.type, "cpu")}
    distance = abs(perplexity[setting.device.type] / perplexity["cpu"] - 1)
    return {
        "steps_of_the_killed_run": len(losses),
        "loss_error": error,
        "loss_error_of_the_same_run_twice": max(abs(a / b - 1) for a, b in zip(again, whole, strict=True)),
        "bit_equal": losses == whole,
        "right": error <= 1e-3,
        # Both in float32, which sums of some thousand terms round differently.
        "export": {"perplexity": perplexity, "error": distance, "bound": 1e-4, "right": distance <= 1e-4},
    }


def evaluated(setting: Setting, export: Path, device: str) -> float:
    """Perplexity of the export on the held-out documents, by `memformer evaluate`."""
    log = export.with_name(f"evaluated-{device}.log")
    words = ["evaluate", str(export), "--data", str(setting.data), "--max-segments", "16", "--device", device, "--json"]
    programs.finish(memformer(setting, words, log), log)
    # --json leaves stdout to one object; what is said on stderr may come behind it.
    line = next(line for line in reversed(log.read_text().splitlines()) if line.startswith("{"))
    return float(json.loads(line)["with_memory"]["perplexity"])


HALVES: dict[str, object] = {"training__lanes_per_micro_batch": 4}
LEAN: dict[str, object] = {
    "precision": "bf16",
    "model__residual_dtype": "compute",
    "training__gradient_accumulation_dtype": "bfloat16",
    "training__lanes_per_micro_batch": 8,
}
"""Everything that saves bytes, and all lanes at once in the room that it leaves."""
PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "stages": stages,
    "resume": resume,
    # They fill the cache of compiled graphs; what a first start costs is in them.
    "compile-350m": speed("350m", "compile-350m", steps=2),
    "compile-1.3b": speed("1.3b", "compile-1.3b", steps=2, **HALVES),
    "compile-1.3b-lean": speed("1.3b", "compile-1.3b-lean", steps=2, **LEAN),
    "train-350m": speed("350m", "train-350m", **PLAIN),
    "train-350m-compiled": speed("350m", "train-350m-compiled"),
    "train-350m-bf16-stream": speed(
        "350m", "train-350m-bf16-stream", precision="bf16", model__residual_dtype="compute"
    ),
    "train-1.3b": speed("1.3b", "train-1.3b", **PLAIN, **HALVES),
    "train-1.3b-compiled": speed("1.3b", "train-1.3b-compiled", **HALVES),
    "train-1.3b-lean": speed("1.3b", "train-1.3b-lean", **LEAN),
}
