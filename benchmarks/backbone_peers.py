# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A memory for a pretrained decoder: memory and tokens a second by horizon, beside what others wrap around it.

    python benchmarks/backbone_peers.py                    about 15 minutes on one CPU core
    python benchmarks/backbone_peers.py --quick --json     about 1 minute
    python benchmarks/backbone_peers.py --out benchmarks/results/DATE-cpu-backbone-peers

RMT and ARMT as benchmark code (`benchmarks/peers/segment_wrappers.py`) back-propagate through all T segments, as their
public code does; this project's family `backbone` replays. All wrap the same Llama of transformers and read the same
random tokens: T segments, forward and backward, no optimizer, no overlap (they have none). Peak memory is that of all
tensors alive, less parameters and gradients; on a GPU the allocator's.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.backbone_replay import LAYERS, backbone_of
from benchmarks.common import (
    add_measuring_options,
    begin_measuring,
    interleaved_seconds,
    markdown_table,
    page_head,
    write_results,
)
from benchmarks.peers.segment_wrappers import ARMT, RMT
from benchmarks.replay import VOCABULARY, backward_of, clock_name, problem_of
from benchmarks.training_peers import Method, allocated_bytes
from memformer.models.backbone.config import MemoryConfig
from memformer.models.backbone.parts import language_model

TOKENS, WRITE_TOKENS, D_KEY = 16, 8, 16
OURS = {
    "associative": MemoryConfig("associative", d_key=D_KEY, num_write_tokens=WRITE_TOKENS),
    "slots": MemoryConfig("slots", num_slots=TOKENS, write_layer=LAYERS // 2),
    "tokens": MemoryConfig("tokens", num_slots=TOKENS),
}


def methods(segments: int, options: argparse.Namespace, device: torch.device) -> dict[str, Method]:
    """Each way to train through `segments` segments."""
    found = {}
    for kind, memory in OURS.items():
        problem = problem_of(backbone_of(options.width, options.segment_length, memory, 0), segments, options, device)
        found[f"{kind}, replay"] = Method(problem.model, functools.partial(backward_of, problem, "mrbp"))
    generator = torch.Generator().manual_seed(1)
    shape = (options.lanes, segments, options.segment_length)
    targets = torch.randint(1, VOCABULARY, shape, generator=generator)
    inputs = torch.cat([torch.zeros_like(targets[..., :1]), targets[..., :-1]], -1).to(device)
    targets = targets.to(device)
    wrapped = {
        "RMT, BPTT": lambda base: RMT(base, TOKENS),
        "ARMT, BPTT": lambda base: ARMT(base, WRITE_TOKENS, D_KEY),
    }
    for name, wrap in wrapped.items():
        config = backbone_of(options.width, options.segment_length, OURS["tokens"], 0).config
        torch.manual_seed(0)
        model = wrap(language_model(config)).to(device)
        found[name] = Method(model, functools.partial(_backward, model, inputs, targets))
    return found


def _backward(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    model(inputs, targets).backward()


def measure(segments: int, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """One row for each way."""
    chosen = methods(segments, options, device)
    clock = time.process_time if clock_name(options) == "processor time" else time.perf_counter
    seconds = interleaved_seconds(
        {name: each.backward for name, each in chosen.items()}, options.repetitions, device, clock
    )
    count, rows = options.lanes * segments * options.segment_length, []
    for name, each in chosen.items():
        middle = statistics.median(seconds[name])
        row = {
            "method": name,
            "num_segments": segments,
            "tokens_per_second": count / middle,
            "spread": (max(seconds[name]) - min(seconds[name])) / middle,
            "allocated_bytes": allocated_bytes(each, device),
            "parameters": sum(parameter.numel() for parameter in each.model.parameters()),
        }
        each.model.zero_grad()
        rows.append(row)
        print(
            f"T={segments:<3} {name:<20} {row['tokens_per_second']:9,.0f} tok/s, "
            f"{row['allocated_bytes'] / 2**20:8.1f} MiB",
            flush=True,
        )
    return rows


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    horizons = list(dict.fromkeys(row["num_segments"] for row in rows))
    table = []
    for name in dict.fromkeys(row["method"] for row in rows):
        found = {row["num_segments"]: row for row in rows if row["method"] == name}
        table.append([
            name,
            *(f"{found[T]['allocated_bytes'] / 2**20:.1f}" for T in horizons),
            *(f"{found[T]['tokens_per_second']:,.0f}" for T in horizons),
        ])  # fmt: skip
    columns = ("way", *(f"MiB, T = {T}" for T in horizons), *(f"tokens/s, T = {T}" for T in horizons))
    return "\n".join(
        [
            *page_head("A language model with a memory: horizon, memory and speed beside RMT and ARMT", values),
            f"A Llama of {LAYERS} layers, width {sizes['width']}; {sizes['lanes']} lanes, {sizes['segment_length']} "
            f"tokens a segment, fp32, medians of {sizes['repetitions']} interleaved repetitions, {sizes['clock']}. "
            f"{TOKENS} memory tokens or slots, {WRITE_TOKENS} write tokens, keys of {D_KEY} numbers; associative "
            "memories at every layer, slots written at half depth. *BPTT*: wrappers as benchmark code of this "
            "repository, after the public ones. What they hold grows with T, ours by T memories.",
            "",
            markdown_table(columns, table),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument("--segments", nargs="+", type=int, default=[4, 16, 64], help="T; default 4 16 64")
    parser.add_argument("--lanes", type=int, default=2, help="B; default 2")
    parser.add_argument("--segment-length", type=int, help="S in tokens; default 64")
    parser.add_argument("--width", type=int, help="default 128")
    add_measuring_options(parser, "T = 1 and 4, width 32, one repetition")
    options = parser.parse_args(words)
    if options.quick:
        options.segments = [1, 4]
    options.width = options.width or (32 if options.quick else 128)
    options.segment_length = options.segment_length or (16 if options.quick else 64)
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    device = torch.device(options.device)
    values = begin_measuring(options, device, clock_name(options))
    for segments in options.segments:  # each is kept as soon as it is measured
        values["rows"] += measure(segments, options, device)
        if options.out:
            write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps({"rows": values["rows"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
