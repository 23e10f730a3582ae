# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Does it pay to decode several segments as one batch? Time and memory of a rollout by G, at small and large segments.

    python benchmarks/decoder_batches.py [--device cuda] [--quick] [--out STEM]

A rollout of T segments of B lanes of S tokens, replayed with the decoder of G segments at a time
(`training.segments_per_decoder_batch`), forms taking turns. G = 1 is the plain replay, whose gradients the others' are
first compared with. `operations` is what a G adds to it by arithmetic: encoders that run once more without a graph. The
peak is all that a rollout's operations have returned and that is alive at a time; on a GPU what the allocator says.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import (
    add_measuring_options,
    interleaved_seconds,
    keep_freed_memory,
    markdown_table,
    page_head,
    provenance,
    tell,
)
from benchmarks.replay import VOCABULARY, Problem, allocated_bytes, problem_of
from memformer import Memformer, MemformerConfig
from memformer.models.sizes import hardware_flops_per_token
from memformer.replay import grouped_replay_backward, memory_replay_backward

MODEL = MemformerConfig(
    4, 16, d_model=256, num_heads=4, d_ff=1024, num_memory_slots=32, vocab_size=VOCABULARY, start_token_id=0
)
SIZES = ((1, 8), (1, 32), (1, 128), (4, 128))  # lanes and tokens of a segment
COLUMNS = ("lanes", "segment", "G", "ms a rollout", "time", "operations", "peak MB", "gradients differ by")


def backward_of(problem: Problem, method: int, buffer: Any = None) -> Any:
    """One rollout's gradients with the decoder of so many segments at a time."""
    options: dict[str, Any] = {"denominator": problem.denominator, "seed": 0, "buffer": buffer}
    if method == 1:
        return memory_replay_backward(problem.model, problem.rollout, problem.carry, **options)
    return grouped_replay_backward(problem.model, problem.rollout, problem.carry, group=method, **options)


def gradients_of(problem: Problem, batch: int) -> torch.Tensor:
    """The gradients of a rollout, flat."""
    problem.model.zero_grad()
    backward_of(problem, batch)
    return torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None])


def rows_of(problem: Problem, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A row a G."""
    lanes, segments, length = problem.rollout.tokens.shape
    batches = [2**n for n in range(segments.bit_length()) if 2**n <= segments]
    plain, differences = gradients_of(problem, 1), {}
    for batch in batches:
        differences[batch] = float((gradients_of(problem, batch) - plain).norm() / plain.norm())
        if differences[batch] > 1e-3:
            raise SystemExit(f"G = {batch}: gradients differ by {differences[batch]:.1e}: there is nothing to compare")
    # The time of the core, not of the clock: other work on the machine is left out.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    runs = {str(batch): functools.partial(backward_of, problem, batch) for batch in batches}
    times = interleaved_seconds(runs, options.repetitions, device, clock)
    found = []
    for batch in batches:
        operations = [
            hardware_flops_per_token(problem.model.config, length, segments, "mrbp", "none", decoder_group=each)
            for each in (batch, 1)
        ]
        seconds, first = (statistics.median(times[str(each)]) for each in (batch, 1))
        peak = allocated_bytes(problem, batch, device, backward_of)
        row = (lanes, length, batch, seconds * 1e3, seconds / first, operations[0] / operations[1], peak / 1e6)
        found.append(dict(zip(COLUMNS, (*row, differences[batch]), strict=True)))
        print(found[-1], file=sys.stderr, flush=True)
    return found


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    model, formats = values["model"], {"ms a rollout": ".1f", "time": ".2f", "operations": ".3f", "peak MB": ".1f"}
    formats["gradients differ by"] = ".0e"
    rows = [[format(row[column], formats.get(column, "")) for column in COLUMNS] for row in values["rows"]]
    return "\n".join(
        [
            *page_head("The decoder of several segments at once", values),
            f"{model}; {values['segments']} segments a rollout, {values['precision']}. *time* and *operations* are "
            "factors of G = 1.",
            "",
            markdown_table(COLUMNS, rows),
            "",
            *([values["notes"], ""] if values["notes"] else []),
        ]
    )


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_measuring_options(parser, "one small size")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--segments", type=int, default=8, help="T; default 8")
    parser.add_argument("--width", type=int, default=256, help="d_model of the 4+16 layers; default 256")
    parser.add_argument("--sizes", nargs="+", metavar="BxS", help="lanes and tokens; default 1x8 1x32 1x128 4x128")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device(options.device)
    config = dataclasses.replace(MODEL, d_model=options.width, num_heads=options.width // 64, d_ff=4 * options.width)
    sizes: Any = [tuple(map(int, each.split("x"))) for each in options.sizes] if options.sizes else SIZES
    if options.quick:
        config, sizes, options.segments = dataclasses.replace(config, num_decoder_layers=4), [(1, 8)], 4
    values = {**provenance(device), "model": config.summary(), "segments": options.segments, "notes": options.notes}
    values |= {"precision": "fp32", "rows": []}
    for lanes, length in sizes:
        torch.manual_seed(0)
        sized = argparse.Namespace(lanes=lanes, segment_length=length)
        problem = problem_of(Memformer(config), options.segments, sized, device)
        values["rows"] += rows_of(problem, options, device)
    tell(values, page(values), options)


if __name__ == "__main__":
    sys.exit(main())
