# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The whole training step of a run against a bare torch loop of the same model.

    python benchmarks/overhead.py [--zero-stage 0 1] [--width 128 256] [--steps 20] [--json]

Ours: everything `memformer train` does in a step on real text: data plan and fetch, audit off, DeepSpeed engine,
memory replay, gradient norm and clipping, optimizer, loss reduction, metrics.jsonl, TensorBoard, log line.
Bare: memory replay on the plain model with one batch that lies ready, torch's clipping and fused AdamW. Nothing else.
One process; the two take turns step by step, so that a busy moment of the machine hits both. The figure is the median
of ours over the median of bare.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table, provenance, synchronize, tell
from data_pipeline import build_dataset
from memformer import Memformer
from memformer.config.schema import Config, load_config
from memformer.engine.optimizer import make_optimizer
from memformer.engine.precision import resolve_precision
from memformer.models.memformer import MemformerConfig
from memformer.models.sizes import count_parameters
from memformer.processes.environment import prepare_environment
from memformer.replay import Carry, Rollout, memory_replay_backward
from memformer.training import Callback, TrainingState, train


class BareLoop:
    """Replay, clip, step: what anybody would write by hand."""

    def __init__(self, model: MemformerConfig, config: Config, device: torch.device) -> None:
        self.model = Memformer(model).to(device)
        self.optimizer = make_optimizer(self.model, config.optimizer, device)
        self.clipping = config.optimizer.gradient_clipping
        data = config.data
        tokens = torch.randint(0, 256, (data.num_lanes, data.num_segments, data.segment_length))
        lengths = torch.full(tokens.shape[:2], data.segment_length)
        self.rollout = Rollout.of(tokens, lengths, torch.zeros(tokens.shape[:2], dtype=torch.bool), device)
        self.carry = Carry.empty(self.model.initial_memory(data.num_lanes), data.segment_length)
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=resolve_precision(config.precision, device) == "bf16"
        )

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        with self.autocast:
            result = memory_replay_backward(
                self.model, self.rollout, self.carry, denominator=float(self.rollout.tokens.numel())
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clipping)
        self.optimizer.step()
        self.carry = result.carry


class TakingTurns(Callback):
    """Runs a bare step before each of ours: what lies between two of them is one step of ours."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.parameters = 0
        self._bare: BareLoop | None = None
        self._returned: float | None = None

    def before_data(self, state: TrainingState) -> None:
        """A bare step, and the times of both."""
        device, model = state.world.device, state.engine.model.config
        synchronize(device)
        called = time.perf_counter()
        if self._returned is not None:
            self.ours.append(called - self._returned)
        if self._bare is None:
            self._bare, self.parameters = BareLoop(model, state.config, device), count_parameters(model)
        started = time.perf_counter()
        self._bare.step()
        synchronize(device)
        self._returned = time.perf_counter()
        self.theirs.append(self._returned - started)


def measure(zero_stage: int, width: int, steps: int, warm_up: int) -> dict[str, Any]:
    """Runs both loops and returns the figures."""
    prepare_environment()
    with tempfile.TemporaryDirectory() as directory:
        books = sorted((ROOT / "corpora" / "books").glob("*.txt.gz"))[:4]
        build_dataset(books, Path(directory) / "books")
        config = load_config(
            ROOT / "configs" / "train" / "quickstart.yaml",
            [
                f"--run_dir={directory}/run",
                f"--data.path={directory}/books",
                f"--training.max_steps={warm_up + steps + 1}",
                "--optimizer.warmup_steps=0",
                "--training.log_interval=1",
                "--training.eval_interval=0",
                "--checkpoint.interval=0",
                f"--parallel.zero_stage={zero_stage}",
                f"--model.d_model={width}",
                f"--model.d_ff={4 * width}",
            ],
        )
        turns = TakingTurns()
        train(config, callbacks=[turns])
        ours, theirs = turns.ours[warm_up:], turns.theirs[warm_up:]
        ours = ours[: len(theirs)]
        return {
            "zero_stage": zero_stage,
            "width": width,
            "parameters": turns.parameters,
            "steps": len(ours),
            "ours_seconds": statistics.median(ours),
            "bare_seconds": statistics.median(theirs),
            "step_vs_bare": statistics.median(ours) / statistics.median(theirs),
        }


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    columns = ["width", "parameters", "zero_stage", "ours_seconds", "bare_seconds", "step_vs_bare"]
    table = markdown_table(columns, [[row[column] for column in columns] for row in values["rows"]])
    about = f"{values['date']}, {values['hardware']}, torch {values['torch']}, commit {values['commit']}"
    remark = (
        f"Aim: at most {values['aim']}. What ZeRO adds is mostly a Python hook of DeepSpeed for each parameter and "
        "segment, a fixed time that weighs less the larger the model."
    )
    return f"# The training step against a bare torch loop\n\n{about}. `{values['command']}`\n\n{table}\n\n{remark}\n"


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero-stage", type=int, nargs="+", default=[0, 1], choices=range(4), help="default 0 and 1")
    parser.add_argument("--width", type=int, nargs="+", default=[128, 256], help="d_model; default 128, 256")
    parser.add_argument("--steps", type=int, default=20, help="measured steps (default 20)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them (default 3)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="width 128, ZeRO 1, 6 steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.width, arguments.zero_stage, arguments.steps = [128], [1], 6
    cases = itertools.product(arguments.width, arguments.zero_stage)
    rows = [measure(stage, width, arguments.steps, arguments.warm_up) for width, stage in cases]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = {**provenance(device), "rows": rows, "aim": 1.05}
    tell(values, page(values), arguments)


if __name__ == "__main__":
    sys.exit(main())
