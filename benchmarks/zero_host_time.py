# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a rollout costs the host at each ZeRO stage: Python and the launching of kernels, which a GPU must not wait for.

One process on a CPU, a model so narrow that the arithmetic is next to nothing. What stage 3 has more are DeepSpeed's
hooks around modules and parameters.

python benchmarks/zero_host_time.py [--layers 4 16] [--segments 8] [--repetitions 10] [--quick] [--out STEM] [--json]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import (
    add_measuring_options,
    interleaved_seconds,
    markdown_table,
    median_ratio,
    page_head,
    provenance,
    tell,
)
from memformer import Memformer, MemformerConfig
from memformer.config.schema import parse_config
from memformer.engine.base import Engine
from memformer.engine.making import make_engine
from memformer.processes import group
from memformer.replay import Rollout

STAGES, LENGTH = (0, 1, 3), 4


def engine_of(stage: int, layers: Sequence[int]) -> Engine:
    """An engine of this process alone."""
    encoder, decoder = layers
    sizes: dict[str, Any] = {"d_model": 16, "num_heads": 2, "d_ff": 16, "num_memory_slots": 2, "vocab_size": 16}
    model = MemformerConfig(num_encoder_layers=encoder, num_decoder_layers=decoder, start_token_id=0, **sizes)
    config = parse_config(
        {
            "run_dir": "unused",
            "precision": "bf16",
            "device": "cpu",
            "model": model.to_dict(),
            "data": {"path": "unused", "num_lanes": 1, "segment_length": LENGTH},
            "parallel": {"zero_stage": stage},
        },
        "benchmark",
    )
    torch.manual_seed(0)
    return make_engine(Memformer(model), config, group.initialise("cpu"), "bf16")


def rollout_of(engine: Engine, segments: int) -> Callable[[], float]:
    """Trains a rollout; its loss."""
    tokens = torch.arange(segments * LENGTH).view(1, segments, LENGTH) % 16
    rollout = Rollout.of(tokens, torch.full((1, segments), LENGTH), torch.zeros(1, segments, dtype=torch.bool))
    carry = engine.empty_carry(1)
    return lambda: float(engine.rollout_backward(rollout, carry, segments * LENGTH, 0).segment_losses.sum())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=(4, 16), metavar=("ENCODER", "DECODER"))
    parser.add_argument("--segments", type=int, default=8, help="of a rollout; default 8")
    add_measuring_options(parser, "few layers, few repetitions")
    options = parser.parse_args(words)
    layers, repetitions = ((1, 2), 2) if options.quick else (tuple(options.layers), options.repetitions or 10)
    torch.set_num_threads(options.threads)
    runs = {str(stage): rollout_of(engine_of(stage, layers), options.segments) for stage in STAGES}
    losses = {name: run() for name, run in runs.items()}
    seconds = interleaved_seconds(runs, repetitions, torch.device("cpu"), time.process_time)
    rows = [
        {
            "zero_stage": int(name),
            "milliseconds_a_segment": 1e3 * statistics.median(found) / options.segments,
            "times_stage_1": median_ratio(found, seconds["1"]),
            "loss": losses[name],
        }
        for name, found in seconds.items()
    ]
    values = provenance(torch.device("cpu")) | {"layers": layers, "segments": options.segments, "rows": rows}
    values |= {"repetitions": repetitions, "notes": options.notes}
    tell(values, page(values), options)


def page(values: dict[str, Any]) -> str:
    """The result file for people."""
    encoder, decoder = values["layers"]
    table = [
        [row["zero_stage"], f"{row['milliseconds_a_segment']:.1f}", f"{row['times_stage_1']:.2f}"]
        for row in values["rows"]
    ]
    return "\n".join(
        [
            *page_head("Host time of a rollout at each ZeRO stage", values),
            f"{encoder} + {decoder} layers of width 16, {values['segments']} segments of {LENGTH} tokens, bf16, one "
            f"process, median of {values['repetitions']} interleaved runs, CPU seconds of the process: nearly all "
            "of it Python, autograd and the start of kernels.",
            "",
            markdown_table(["ZeRO stage", "ms a segment", "times stage 1"], table),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


if __name__ == "__main__":
    main()
