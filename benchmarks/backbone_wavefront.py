# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reading one document with a memory of each layer's own: along the diagonals of segments and layers, or in turn.

    python benchmarks/backbone_wavefront.py                    about 4 minutes on one CPU core
    python benchmarks/backbone_wavefront.py --quick --json     some seconds; the last line is one JSON object

Three ways of reading the same documents to their ends, without logits, by the same weights:

* in turn: `Backbone.advance` of one segment after another, T N runs of a layer.
* wavefront: `BackboneWavefront.advance`, T + N - 1 runs of neighbouring layers, each as one batch.
* full attention: the same language model without a memory, by transformers, over the whole document at once, its keys
  and values kept.

A size or two are changed at a time. Times are processor time of one thread on a CPU, medians of interleaved
repetitions; ratios are medians over neighbouring runs. *Operators* are those that torch dispatches for one document,
without views and allocations: on a GPU each is a kernel or more, so their number times some microseconds is the least
that a reading takes. What a GPU would make of them is not measured here.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
from memformer.models.backbone import Backbone, BackboneConfig, MemoryConfig
from memformer.models.backbone.parts import language_model
from memformer.models.backbone.pretrained import copy_weights
from memformer.models.backbone.wavefront import BackboneWavefront
from memformer.replay import Carry, Rollout, Segment

IDS = 4096
BASE = {"layers": 8, "width": 256, "segment_length": 64, "segments": 32, "documents": 1, "dtype": "float32"}
CHANGES: list[dict[str, Any]] = [
    {},
    {"segment_length": 16},
    {"segment_length": 32},
    {"segment_length": 256, "segments": 16},
    {"segments": 8},
    {"segments": 64},
    {"layers": 4},
    {"layers": 16},
    {"width": 128},
    {"width": 512, "segments": 16},
    {"documents": 4, "segments": 16},
    {"dtype": "bfloat16"},
    {"width": 64, "segment_length": 16, "segments": 64},
]
QUICK: list[dict[str, Any]] = [{"segment_length": 8, "segments": 4, "width": 64, "layers": 2}]
MODELS = {"a 1B Llama": 16, "an 8B Llama": 32}
"""Layers, for the arithmetic."""


class Operators(TorchDispatchMode):
    """Counts what is dispatched inside but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one operator and runs it."""
        self.count += not (func.is_view or "empty" in func.__name__ or "_unsafe_view" in func.__name__)
        return func(*args, **(kwargs or {}))


def document(lanes: int, segments: int, length: int) -> list[Segment]:
    """Random documents from their beginning on."""
    tokens = torch.randint(IDS - 1, (lanes, segments, length))
    resets = torch.zeros(lanes, segments, dtype=torch.bool)
    resets[:, 0] = True
    rollout = Rollout.of(tokens, torch.full((lanes, segments), length), resets)
    carry = Carry.empty(torch.zeros(lanes, 1, 1), length)
    return [rollout.segment(t, carry) for t in range(segments)]


@torch.no_grad()
def measure(case: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """The row of one case."""
    torch.manual_seed(0)
    length, count, lanes, dtype = case["segment_length"], case["segments"], case["documents"], case["dtype"]
    sizes = {
        "model_type": "llama",
        "hidden_size": case["width"],
        "intermediate_size": 3 * case["width"],
        "num_hidden_layers": case["layers"],
        "num_attention_heads": max(1, case["width"] // 64),
        "num_key_value_heads": max(1, case["width"] // 128),
        "max_position_embeddings": max(1024, 2 * length * count),
    }
    config = BackboneConfig(
        backbone=sizes, memory=MemoryConfig(), vocab_size=IDS, start_token_id=IDS - 1, segment_length=length
    )
    model, plain = Backbone(config).eval(), language_model(config).eval()
    for writer in model.memory.writers:  # type: ignore[union-attr]  # what is learned is no longer nought
        torch.nn.init.normal_(writer.value.weight, std=case["width"] ** -0.5)
    copy_weights(plain, model)
    model, plain = model.to(getattr(torch, dtype)), plain.to(getattr(torch, dtype))
    segments, initial = document(lanes, count, length), model.initial_memory(lanes)
    tokens = torch.cat([segment.target for segment in segments], 1)
    wavefront = BackboneWavefront(model)

    def in_turn() -> torch.Tensor:
        memory = initial
        for segment in segments:
            memory = model.advance(segment, memory)
        return memory

    ways: dict[str, Callable[[], Any]] = {
        "in turn": in_turn,
        "wavefront": lambda: wavefront.advance(segments, initial),
        "full attention": lambda: plain(tokens, use_cache=True, logits_to_keep=1),
    }
    with Operators() as turns:
        expected = in_turn()
    with Operators() as diagonals:
        found = wavefront.advance(segments, initial)
    times = interleaved_seconds(ways, repetitions, torch.device("cpu"), time.process_time)
    return {
        **case,
        "milliseconds": {way: 1e3 * statistics.median(each) for way, each in times.items()},
        "in_turn_by_wavefront": median_ratio(times["in turn"], times["wavefront"]),
        "full_by_wavefront": median_ratio(times["full attention"], times["wavefront"]),
        "operators": {"in turn": turns.count, "wavefront": diagonals.count},
        "difference": float((found - expected).abs().max() / expected.abs().max()),
    }


def cases(changes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Base sizes, each with a change."""
    for change in changes:
        yield {**BASE, **change}


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    table = [
        [
            *(row[name] for name in BASE),
            *(f"{row['milliseconds'][way]:.1f}" for way in ("in turn", "wavefront", "full attention")),
            f"{row['in_turn_by_wavefront']:.2f}",
            f"{row['full_by_wavefront']:.2f}",
            f"{row['operators']['in turn']:,} / {row['operators']['wavefront']:,}",
            f"{row['difference']:.0e}",
        ]
        for row in values["rows"]
    ]
    columns = ["N", "width", "S", "T", "documents", "numbers", "in turn (ms)", "wavefront (ms)", "full attention (ms)"]
    columns += ["in turn / wavefront", "full / wavefront", "operators, in turn / wavefront", "difference"]
    runs = []
    for name, layers in MODELS.items():
        for count in (32, 128, 1024):
            turns, steps = count * layers, count + layers - 1
            runs.append([name, layers, f"{count:,}", f"{turns:,}", f"{steps:,}", f"{turns / steps:.1f}"])
    return "\n".join(
        [
            *page_head("A document is read along the diagonals of segments and layers", values),
            "Llamas of N layers with a matrix at each, which is read and written in every segment; one to four "
            "documents of T segments of S tokens, read to their ends without logits. *Difference* is that of the "
            "memories, of the largest number. A quotient above 1 says that the wavefront is the faster one.",
            "",
            *([values["notes"], ""] if values.get("notes") else []),
            markdown_table(columns, table),
            "",
            "One core computes a product in about the same time whether it is one of a batch or not, so what a "
            "wavefront saves here is what an operator costs beside its numbers. On a GPU a small product leaves most "
            "of the device idle, and the start of a kernel is what it waits for. That is arithmetic here, not a "
            "measurement: runs of layers, one after another, that a document takes (a diagonal is one).",
            "",
            markdown_table(["model", "layers", "segments", "in turn", "wavefront", "quotient"], runs),
        ]
    )


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_measuring_options(parser, "one tiny model, one repetition")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repetitions = options.repetitions or (1 if options.quick else 3)
    values = {**provenance(torch.device("cpu")), "base": BASE, "repetitions": repetitions, "notes": options.notes}
    rows = []
    for case in cases(QUICK if options.quick else CHANGES):
        rows.append(measure(case, repetitions))
        print(rows[-1], file=sys.stderr, flush=True)
    values["rows"] = rows
    tell(values, page(values), options)


if __name__ == "__main__":
    sys.exit(main())
