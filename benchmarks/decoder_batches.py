# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Does it pay to decode several segments as one batch? Time and memory of a rollout by G, at small and large segments.

    python benchmarks/decoder_batches.py [--evaluation] [--device cuda] [--quick] [--out STEM]

A rollout of T segments of B lanes of S tokens, replayed with the decoder of G segments at a time
(`training.segments_per_decoder_batch`), forms taking turns. G = 1 is the plain replay, whose gradients the others' are
first compared with. `operations` is what a G adds to it by arithmetic: encoders that run once more without a graph. The
peak is all that a rollout's operations have returned and that is alive at a time; on a GPU what the allocator says.

With --evaluation instead: documents of 8 segments scored with their memory and with it reset, by two models.
`layer calls` is by arithmetic: of N encoder and M decoder layers N T + M T/G and (N + M) T/G instead of 2 (N + M) T;
each call starts the same kernels, whatever its rows.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
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
from data_pipeline import SegmentBatch
from memformer import Memformer, MemformerConfig
from memformer.inference import evaluate
from memformer.models.sizes import hardware_flops_per_token
from memformer.replay import grouped_replay_backward, memory_replay_backward

MODEL = MemformerConfig(
    4, 16, d_model=256, num_heads=4, d_ff=1024, num_memory_slots=32, vocab_size=VOCABULARY, start_token_id=0
)
SIZES = ((1, 8), (1, 32), (1, 128), (4, 128))  # lanes and tokens of a segment
SCORED = ((2, 6, 64), (4, 16, 128))  # layers and width of the models that score
SCORED_SIZES = ((1, 16), (1, 64), (8, 16), (8, 64))
SCORED_SEGMENTS = 8
SCORED_COLUMNS = ("model", "lanes", "segment", "G", "ms", "time", "layer calls", "losses differ by")
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


def batches_of(lanes: int, length: int, group: int) -> list[SegmentBatch]:
    """Documents of random tokens, so many segments at a time."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (lanes, SCORED_SEGMENTS, length), dtype=np.int32)
    whole, found = np.zeros((lanes, SCORED_SEGMENTS), dtype=np.int64), []
    for first in range(0, SCORED_SEGMENTS, group):
        part = whole[:, first : first + group]
        starts = part + length * np.arange(first, first + group)
        arrays: dict[str, Any] = {"documents": part, "epochs": part, "starts": starts, "resets": starts == 0}
        arrays |= {"lengths": (part + length).astype(np.int32), "carry_from": whole[:, 0] - 1}
        counts = {"step": first // group, "first_lane": 0, "valid_tokens": lanes * group * length}
        found.append(SegmentBatch(tokens=tokens[:, first : first + group], **arrays, **counts))
    return found


def scored_rows_of(layers: tuple[int, int, int], options: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """A row a size and G of one model."""
    encoder, decoder, width = layers
    config = dataclasses.replace(
        MODEL,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        d_model=width,
        num_heads=width // 32,
        d_ff=4 * width,
    )
    model, found = Memformer(config).to(device), []
    groups, clock = (1, 4, 8), time.process_time if device.type == "cpu" else time.perf_counter
    for lanes, length in SCORED_SIZES[: 1 if options.quick else None]:
        runs = {
            str(group): functools.partial(evaluate, model, batches_of(lanes, length, group), device, group=group)
            for group in groups
        }
        losses = {name: torch.stack([score.losses for score in run().values()]) for name, run in runs.items()}
        times = interleaved_seconds(runs, options.repetitions, device, clock)
        for group in groups:
            seconds, first = (statistics.median(times[str(each)]) for each in (group, 1))
            # With the memory encoders go on one by one.
            calls = (encoder * (1 + 1 / group) + 2 * decoder / group) / (2 * (encoder + decoder))
            difference = float((losses[str(group)] - losses["1"]).norm() / losses["1"].norm())
            if difference > 1e-5:
                raise SystemExit(f"G = {group}: losses differ by {difference:.1e}: there is nothing to compare")
            row = (f"{encoder}+{decoder} of {width}", lanes, length, group, seconds * 1e3, seconds / first, calls)
            found.append(dict(zip(SCORED_COLUMNS, (*row, difference), strict=True)))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def scored_page(values: dict[str, Any]) -> str:
    """The result page of --evaluation in Markdown."""
    formats = {"ms": ".0f", "time": ".2f", "layer calls": ".2f", "losses differ by": ".0e"}
    rows = [[format(row[column], formats.get(column, "")) for column in SCORED_COLUMNS] for row in values["scored"]]
    return "\n".join(
        [
            *page_head("Scoring with the decoder of several segments at once", values),
            f"Documents of {values['segments']} segments, with the memory and with it reset, {values['precision']}. "
            "*model*: layers and width. *time* and *layer calls* are factors of G = 1, the latter by arithmetic: a "
            "call starts the same kernels, whatever its rows.",
            "",
            markdown_table(SCORED_COLUMNS, rows),
            "",
            *([values["notes"], ""] if values["notes"] else []),
        ]
    )


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    if "scored" in values:
        return scored_page(values)
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
    parser.add_argument("--evaluation", action="store_true", help="documents that are scored, and no training")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--segments", type=int, default=8, help="T; default 8")
    parser.add_argument("--width", type=int, default=256, help="d_model of the 4+16 layers; default 256")
    parser.add_argument("--sizes", nargs="+", metavar="BxS", help="lanes and tokens; default 1x8 1x32 1x128 4x128")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device(options.device)
    if options.evaluation:
        scored: dict[str, Any] = {**provenance(device), "segments": SCORED_SEGMENTS, "notes": options.notes}
        scored |= {"precision": "fp32", "scored": []}
        for layers in SCORED[: 1 if options.quick else None]:
            torch.manual_seed(0)
            scored["scored"] += scored_rows_of(layers, options, device)
        tell(scored, page(scored), options)
        return
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
