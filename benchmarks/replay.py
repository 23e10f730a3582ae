# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay against full back-propagation through time (BPTT) and per-segment gradient checkpointing.

    python benchmarks/replay.py                    about 15 minutes on one CPU core
    python benchmarks/replay.py --quick --json     about 1 minute; the last line is one JSON object
    python benchmarks/replay.py --out benchmarks/results/DATE-cpu-replay

The paper's 4+8 (MNIST) and 4+16 (WikiText-103) models, the latter at half its width on a CPU. Beside each measured
ratio stands the arithmetic limit:

* speed: replay computes encoder and writer of T-1 segments twice, so 1 / (1 + f/3 * (T-1)/T) of BPTT's, with f their
  share of a forward's operations and a backward twice a forward; 1 / (1 + f/3) for many segments. Checkpointing
  repeats the whole forward: 1 / (1 + 1/3).
* memory: one segment's graph + T*B*K*D numbers.

Gradients are checked to be the same before anything is timed.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.activations import LiveTensors, SavedActivations
from benchmarks.common import (
    add_measuring_options,
    begin_measuring,
    interleaved_seconds,
    markdown_table,
    median_ratio,
    page_head,
    synchronize,
    write_results,
)
from benchmarks.simulated_gpu import library
from memformer import Memformer, MemformerConfig
from memformer.models.sizes import advance_share
from memformer.replay import Carry, ReplayBuffer, Rollout, RolloutResult, Segment, bptt_backward, memory_replay_backward

VOCABULARY = 512  # of the scaled-down models; a real one makes the head larger and f smaller
SHAPES = {
    "4_8": MemformerConfig(4, 8, d_model=128, num_heads=4, d_ff=256, num_memory_slots=64),
    "4_16": MemformerConfig(4, 16, d_model=512, num_heads=8, d_ff=2048, num_memory_slots=32),
    "1_1": MemformerConfig(1, 1, d_model=32, num_heads=2, d_ff=64, num_memory_slots=8),
}
"""The paper's, and one to see that it runs."""
METHODS = ("bptt", "mrbp", "checkpointing")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model and the rollout it trains on."""

    model: Any
    rollout: Rollout
    carry: Carry

    @property
    def denominator(self) -> int:
        """Targets of the rollout."""
        return self.rollout.tokens.numel()

    @property
    def limit_buffer_bytes(self) -> int:
        """T*B*K*D numbers."""
        return self.rollout.num_segments * self.carry.memory.numel() * self.carry.memory.element_size()


class CheckpointedCell:
    """Per-segment gradient checkpointing: the graph keeps a segment's inputs and recomputes the rest."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.advance, self.initial_memory = model.advance, model.initial_memory

    def __call__(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cell's step, checkpointed."""
        # Without dropout there is no random state to keep, and checkpointing shall run at its best.
        result = checkpoint(self.model, segment, memory, use_reentrant=False, preserve_rng_state=False)
        return result  # type: ignore[no-any-return]


class MeteredBuffer(ReplayBuffer):
    """A replay buffer whose bytes count as kept memory."""

    def __init__(self, add: Callable[[int], None]) -> None:
        super().__init__()
        self._add = add

    def push(self, memory_BKD: torch.Tensor) -> None:
        """As `ReplayBuffer.push`."""
        before = self.stored_bytes
        super().push(memory_BKD)
        self._add(self.stored_bytes - before)

    def pop(self, ahead: bool = True) -> torch.Tensor:
        """As `ReplayBuffer.pop`."""
        before = self.stored_bytes
        memory = super().pop(ahead)
        self._add(self.stored_bytes - before)
        return memory


def make_problem(shape: str, segments: int, options: argparse.Namespace, device: torch.device) -> Problem:
    """The model in `shape` and a rollout in the middle of documents."""
    config = dataclasses.replace(SHAPES[shape], vocab_size=VOCABULARY, start_token_id=0)
    if options.width and config.d_model > options.width:
        ratio = config.d_model // options.width
        config = dataclasses.replace(
            config, d_model=options.width, num_heads=config.num_heads // ratio, d_ff=config.d_ff // ratio
        )
    torch.manual_seed(0)
    return problem_of(Memformer(config), segments, options, device)


def problem_of(model: Any, segments: int, options: argparse.Namespace, device: torch.device) -> Problem:
    """A model of any family and a rollout of random tokens in the middle of documents."""
    model = model.to(device)
    lanes, length = options.lanes, options.segment_length
    tokens = torch.randint(0, VOCABULARY, (lanes, segments + 1, length))
    lengths = torch.full((lanes, segments), length)
    rollout = Rollout.of(tokens[:, 1:], lengths, torch.zeros(lanes, segments, dtype=torch.bool), device)
    memory = model.initial_memory(lanes).detach().clone()
    first = torch.full((lanes,), length, device=device)
    return Problem(model, rollout, Carry(memory, tokens[:, 0].to(device), first, ragged=False))


def backward_of(problem: Problem, method: str, buffer: ReplayBuffer | None = None) -> RolloutResult:
    """One rollout's gradients, accumulated into the model's."""
    options: dict[str, Any] = {"denominator": problem.denominator, "seed": 0}
    if method == "mrbp":
        return memory_replay_backward(problem.model, problem.rollout, problem.carry, buffer=buffer, **options)
    cell = CheckpointedCell(problem.model) if method == "checkpointing" else problem.model
    return bptt_backward(cell, problem.rollout, problem.carry, **options)


def check_gradients(problem: Problem) -> float:
    """Largest relative difference of any method's gradient to BPTT's; exits where it is more than rounding."""
    flat = {}
    for method in METHODS:
        problem.model.zero_grad()
        backward_of(problem, method)
        flat[method] = torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None])
    worst = max(float((flat[m] - flat["bptt"]).norm() / flat["bptt"].norm()) for m in METHODS)
    if worst > 1e-3 and not library.loaded():  # a simulated GPU has no numbers
        raise SystemExit(f"gradients differ by {worst:.1e}: there is nothing to compare")
    return worst


def saved_bytes(problem: Problem, method: str) -> int:
    """Peak of what autograd keeps, parameters and inputs left out, and of the replay buffer."""
    inputs = (problem.rollout.tokens, problem.rollout.lengths, problem.rollout.resets)
    carried = (problem.carry.memory, problem.carry.tokens, problem.carry.length)
    with SavedActivations((*problem.model.parameters(), *inputs, *carried)) as saved:
        backward_of(problem, method, MeteredBuffer(saved.add))
    return saved.peak_bytes


def allocated_bytes(
    problem: Problem, method: Any, device: torch.device, backward_of: Callable[..., Any] = backward_of
) -> int:
    """Peak of all tensors, temporary ones too, above what lies there before (parameters, gradients, inputs)."""
    if device.type == "cuda" or next(problem.model.parameters()).grad is None:
        backward_of(problem, method)  # gradients are there from now on, and so are a GPU's work spaces
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        backward_of(problem, method)
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with LiveTensors() as live:
        backward_of(problem, method)
    return live.meter.peak_bytes


def measure(
    shape: str, options: argparse.Namespace, device: torch.device, make: Callable[..., Problem] = make_problem
) -> list[dict[str, Any]]:
    """One row for each number of segments; `make` is given shape, segments, options and device."""
    one = make(shape, 1, options, device)
    one_segment = {"saved": saved_bytes(one, "bptt"), "allocated": allocated_bytes(one, "bptt", device)}
    f = advance_share(one.model.config, options.segment_length)
    print(f"{shape.replace('_', '+'):>5} f = {f:.3f}: limit of the speed for many segments {1 / (1 + f / 3):.3f}")
    rows = []
    for segments in options.segments:
        problem = make(shape, segments, options, device)
        gradient_error = check_gradients(problem)
        saved = {method: saved_bytes(problem, method) for method in ("bptt", "mrbp")}
        allocated = {method: allocated_bytes(problem, method, device) for method in METHODS}
        seconds = interleaved_seconds(
            {method: functools.partial(backward_of, problem, method) for method in METHODS},
            options.repetitions,
            device,
            time.process_time if clock_name(options) == "processor time" else time.perf_counter,
        )
        row: dict[str, Any] = {"shape": shape, "num_segments": segments, "advance_share": f}
        row["speed_limit"] = 1 / (1 + f / 3 * (segments - 1) / segments)
        for method in METHODS:
            row[f"seconds_{method}"] = statistics.median(seconds[method])
            row[f"speed_{method}"] = median_ratio(seconds["bptt"], seconds[method])
            row[f"allocated_bytes_{method}"] = allocated[method]
        for method in saved:
            row[f"saved_bytes_{method}"] = saved[method]
        buffer = problem.limit_buffer_bytes
        row["limit_saved_bytes"] = one_segment["saved"] + buffer
        row["memory_vs_limit"] = saved["mrbp"] / row["limit_saved_bytes"]
        row["memory_vs_bptt"] = saved["mrbp"] / saved["bptt"]
        row["allocated_vs_limit"] = allocated["mrbp"] / (one_segment["allocated"] + buffer)
        row["gradient_error"] = gradient_error
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def clock_name(options: argparse.Namespace) -> str:
    """One thread on a CPU is timed by the processor time it got, which others on the machine change little."""
    return "processor time" if options.device == "cpu" and options.threads == 1 else "wall time"


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['shape'].replace('_', '+'):>5} T={row['num_segments']:<3} speed: replay {row['speed_mrbp']:.3f} "
        f"(limit {row['speed_limit']:.3f}), checkpointing {row['speed_checkpointing']:.3f} (limit 0.750)   "
        f"memory: replay {row['saved_bytes_mrbp'] / 2**20:.1f} MiB = {row['memory_vs_limit']:.3f} of the limit, "
        f"{row['memory_vs_bptt']:.3f} of BPTT's {row['saved_bytes_bptt'] / 2**20:.1f} MiB"
    )


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures by name, such as speed_vs_bptt_4_16_T8."""
    named = {}
    for row in rows:
        case = f"{row['shape']}_T{row['num_segments']}"
        named[f"speed_vs_bptt_{case}"] = row["speed_mrbp"]
        named[f"speed_limit_{case}"] = row["speed_limit"]
        named[f"checkpointing_speed_vs_bptt_{case}"] = row["speed_checkpointing"]
        named[f"memory_vs_limit_{case}"] = row["memory_vs_limit"]
        named[f"memory_vs_bptt_{case}"] = row["memory_vs_bptt"]
    return {name: round(value, 4) for name, value in named.items()}


def page(values: dict[str, Any]) -> str:
    """The result file for people."""
    sizes = values["sizes"]
    rows = [
        (
            row["shape"].replace("_", "+"),
            row["num_segments"],
            row["speed_mrbp"],
            row["speed_limit"],
            row["speed_checkpointing"],
            f"{row['saved_bytes_mrbp'] / 2**20:.1f}",
            f"{row['saved_bytes_bptt'] / 2**20:.1f}",
            row["memory_vs_limit"],
            *(f"{row[f'allocated_bytes_{method}'] / 2**20:.1f}" for method in ("mrbp", "bptt", "checkpointing")),
        )
        for row in values["rows"]
    ]
    columns = (
        "model", "T", "speed of replay", "its limit", "speed of checkpointing", "graph, replay (MiB)",
        "graph, BPTT (MiB)", "replay / limit", "all tensors, replay (MiB)", "BPTT (MiB)", "checkpointing (MiB)",
    )  # fmt: skip
    return "\n".join(
        [
            *page_head("Memory replay against BPTT and gradient checkpointing", values),
            f"{sizes['lanes']} lanes, {sizes['segment_length']} tokens a segment, width at most {sizes['width']}, "
            f"fp32, medians of {sizes['repetitions']} interleaved repetitions, {sizes['clock']}. Speeds are fractions "
            "of BPTT's at the same T; the limit is 1 / (1 + f/3 * (T-1)/T), for checkpointing 0.750. *Graph* is the "
            "peak of what autograd keeps and of the replay buffer; its limit is one segment's graph + T*B*K*D numbers. "
            "*All tensors* adds the temporary ones; parameters and gradients count in neither.",
            "",
            markdown_table(columns, rows),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["4_8", "4_16"], help="default 4_8 4_16")
    parser.add_argument("--segments", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32], help="T; default 1 .. 32")
    parser.add_argument("--lanes", type=int, help="B; default 2 on a CPU, 32 on a GPU")
    parser.add_argument("--segment-length", type=int, help="S in tokens; default 64 on a CPU, 512 on a GPU")
    parser.add_argument("--width", type=int, help="largest d_model; default 256 on a CPU, the paper's on a GPU")
    add_measuring_options(parser, "T = 1, 8, width 128, 3 repetitions")
    options = parser.parse_args(words)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = options.device == "cpu"
    if options.quick:
        options.segments = [1, 8]
    options.lanes = options.lanes or (2 if on_cpu else 32)
    options.segment_length = options.segment_length or (64 if on_cpu else 512)
    options.width = options.width or (128 if options.quick else 256 if on_cpu else 512)
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    device = torch.device(options.device)
    values = begin_measuring(options, device, clock_name(options))
    print(f"{values['hardware']}; torch {values['torch']}; commit {values['commit']}")
    values["rows"] = [row for shape in options.shapes for row in measure(shape, options, device)]
    values["summary"] = summary(values["rows"])
    if options.out:
        write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps({**values["summary"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
