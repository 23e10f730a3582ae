# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memformer beside other architectures on books or code: equal parameters, equal tokens, one loop.

    make peers                                            installs the libraries
    python benchmarks/peers_text.py                       about an hour on one CPU core, half with --jobs 2
    python benchmarks/peers_text.py --quick --json        about a minute
    python benchmarks/peers_text.py --out benchmarks/results/DATE-cpu-peers-text

Every model has the parameters of the Memformer to within 3 %, its layers (encoder and decoder together) and heads, and
reads the same excerpts of books in the same order, byte by byte, S a segment, T segments an optimizer step, with one
optimizer and schedule; each is trained at every one of `--learning-rates` and shown at the one of the lowest training
loss. Memformer and RMT carry `--slots` vectors; Transformer-XL, the windowed and the Compressive
Transformer see S bytes before the segment, the last S/4 compressed ones more; the LSTM its state. The decoder of
memformer-overlap begins with the last S/4 bytes of the segment before, that of memformer-overlap-segment with all of
it; memformer-overlap-modern has modern blocks besides, of two thirds of the hidden width, and transformer-xl-modern the
same ones. transformer-xl-short and transformer-xl-modern-short keep so few tokens that they carry no more numbers than
the Memformer. backbone-slots is this project's other family, one modern decoder with a Memformer's slots and writer,
that begins with the last S/4 bytes too. backbone-associative has one matrix instead, the last 8 bytes, and first values
that fit its width (`initial_values: fan_in`), as transformer-xl-modern-fan-in has. Gradients pass from segment to
segment where the architecture is trained so: Memformer and both backbones (by replay), RMT, LSTM (by BPTT).

Perplexity a byte on books (or packages) never trained on; operations of reading are counted; `carried` is what a
document leaves in memory between two segments, in numbers (token ids left out).
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, add_options, at_best_rate, run_cases, seeds_of, spread
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.flops import reading_flops
from benchmarks.peers.models import KINDS, Sizes, at_parameters, available
from benchmarks.peers.reader import MemformerReader, MemoryReader, Reader, carried, parameters
from benchmarks.tasks.text import START
from benchmarks.texts import HELD_OUT_BOOKS, excerpts, losses_by_segment, rollouts, texts
from benchmarks.training import Recipe, train
from memformer import MemformerConfig

TEST_SEED = 1_000_000  # of the excerpts that are tested
OVERLAPS = {"memformer-overlap": 4, "memformer-overlap-segment": 1, "memformer-overlap-modern": 4}
"""Variants whose decoder begins with the last S/n bytes of the segment before, and their n."""
SHORT = {"transformer-xl-short": "transformer-xl", "transformer-xl-modern-short": "transformer-xl-modern"}
"""Variants that carry no more numbers than the Memformer, and what they are but for that."""
VARIANTS = ("memformer", *OVERLAPS, "memformer-no-forgetting", "memformer-no-slots", *KINDS[1:], *SHORT)


def make_reader(variant: str, options: argparse.Namespace, seed: int) -> Reader:
    """An untrained model; peers at the parameters of the Memformer."""
    torch.manual_seed(seed)
    modern = "-modern" in variant or variant.startswith("backbone")
    hidden = round(2 * options.width * (2 / 3 if modern else 1))
    config = MemformerConfig(
        options.encoder_layers,
        options.decoder_layers,
        d_model=options.width,
        num_heads=options.heads,
        d_ff=hidden,
        block="modern" if modern else "paper",
        num_memory_slots=0 if variant == "memformer-no-slots" else options.slots,
        memory_forgetting=variant != "memformer-no-forgetting",
        overlap=options.segment_length // OVERLAPS[variant] if variant in OVERLAPS else 0,
        vocab_size=START + 1,
        start_token_id=START,
        segment_length=options.segment_length,
    )
    reader = MemformerReader(config, name=variant)
    if variant.startswith("memformer"):
        return reader
    sizes = Sizes(
        START + 1,
        START,
        options.segment_length,
        options.width,
        options.heads,
        2 if variant == "lstm" else options.encoder_layers + options.decoder_layers,
        hidden,
        options.slots if variant in ("rmt", "backbone-slots") else options.segment_length,
        options.slots * options.width if variant in SHORT else None,
    )
    return at_parameters(SHORT.get(variant, variant), sizes, parameters(reader))


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains and scores one model."""
    variant = case["variant"]
    reader = make_reader(variant, options, case["seed"])
    documents = texts(options.texts)
    data = rollouts(
        documents.trained, options.lanes, options.length, options.num_segments, options.segment_length, case["seed"]
    )
    recipe = Recipe(options.steps, case["learning_rate"], "wsd")
    history = train(reader, data, recipe, lambda line: print(line, flush=True))
    test = excerpts(documents.held_out, options.documents, options.test_length, np.random.default_rng(TEST_SEED))
    means, _ = losses_by_segment(reader, test, options.segment_length)
    first = losses_by_segment(reader, test[:1], options.segment_length)[1]
    row = {
        **case,
        "parameters": parameters(reader),
        "training_tokens": options.steps * options.lanes * options.num_segments * options.segment_length,
        "perplexity": math.exp(float(means.mean())),
        "by_segment": means.tolist(),
        "flops_per_token": reading_flops(reader, test[:1], options.segment_length) / options.test_length,
        "carried_numbers": carried(first),
        "training_seconds": history.seconds,
        "training_losses": history.losses,
    }
    if isinstance(reader, MemoryReader) and variant != "memformer-no-slots":
        reader.memory_reset = True
        row["perplexity_memory_reset"] = math.exp(
            float(losses_by_segment(reader, test, options.segment_length)[0].mean())
        )
    print(
        f"{variant} seed {row['seed']}, rate {row['learning_rate']:g}: perplexity {row['perplexity']:.3f}", flush=True
    )
    return [row]


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    source, others = "books", f"{len(HELD_OUT_BOOKS)} other books"
    if sizes.get("texts") == "packages":
        source, others = "code", "other installed packages"
    table = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = at_best_rate([row for row in rows if row["variant"] == variant])
        each = [row["perplexity"] for row in found]
        first = found[0]
        reset = [row["perplexity_memory_reset"] for row in found if "perplexity_memory_reset" in row]
        table.append(
            (
                variant,
                f"{first['parameters']:,}",
                statistics.fmean(each),
                len(each),
                spread(each),
                f"{first['learning_rate']:g}",
                f"{statistics.fmean(reset):.3f}" if reset else "",
                f"{first['flops_per_token'] / 1e6:.2f}",
                f"{first['carried_numbers']:,}",
                f"{statistics.fmean(row['training_seconds'] for row in found):.0f}",
            )
        )
    columns = (
        "model", "parameters", "perplexity", "seeds", "spread", "learning rate", "memory reset", "MFLOPs a byte",
        "carried numbers", "training (s of one core)",
    )  # fmt: skip
    return "\n".join(
        [
            *page_head(f"Peers on {source}, segments of {sizes['segment_length']}, {sizes['steps']} steps", values),
            f"{rows[0]['training_tokens'] / 1e6:.2f} M bytes in {sizes['steps']} steps; segments of "
            f"{sizes['segment_length']} bytes, T = {sizes['num_segments']}, excerpts of {sizes['length']} bytes; "
            f"tested on {sizes['documents']} excerpts of {sizes['test_length']} bytes from {others}; "
            f"seeds {seeds_of(rows)}. All parameters within 3 % of Memformer's; "
            "its own variants keep its sizes, modern blocks two thirds of its hidden width.",
            "",
            markdown_table(columns, table),
            *rates_tried(rows),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def rates_tried(rows: list[Row]) -> list[str]:
    """A table of the models that were trained at several rates, on the seeds that have seen them all."""
    table = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [row for row in rows if row["variant"] == variant]
        rates = sorted({row["learning_rate"] for row in found})
        for seed in sorted({row["seed"] for row in found}):
            by_rate = {row["learning_rate"]: row for row in found if row["seed"] == seed}
            if len(rates) > 1 and len(by_rate) == len(rates):
                shown = ", ".join(
                    f"{rate:g}: {by_rate[rate]['training_losses'][-1]:.3f} and {by_rate[rate]['perplexity']:.3f}"
                    for rate in rates
                )
                table.append((variant, str(seed), shown))
    columns = ("model", "seed", "rate: training loss of the last tenth (nats), and perplexity")
    return ["", markdown_table(columns, table)] if table else []


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--texts", choices=("books", "packages"), default="books", help="or the code of installed ones")
    parser.add_argument("--steps", type=int, help="optimizer steps; default 1200")
    parser.add_argument("--learning-rates", nargs="+", type=float, help="peaks; default 5e-3 1e-2")
    parser.add_argument("--lanes", type=int, default=8, help="B; default 8")
    parser.add_argument("--num-segments", type=int, default=8, help="T; default 8")
    parser.add_argument("--segment-length", type=int, default=32, help="S in bytes; default 32")
    parser.add_argument("--length", type=int, default=2048, help="bytes of a training excerpt; default 2048")
    parser.add_argument("--documents", type=int, default=32, help="excerpts of the test; default 32")
    parser.add_argument("--test-length", type=int, default=4096, help="bytes of each; default 4096")
    parser.add_argument("--encoder-layers", type=int, default=1, help="of Memformer; default 1")
    parser.add_argument("--decoder-layers", type=int, default=3, help="of Memformer; default 3")
    parser.add_argument("--width", type=int, default=64, help="of Memformer; default 64")
    parser.add_argument("--heads", type=int, default=4, help="default 4")
    parser.add_argument("--slots", type=int, default=16, help="slots K, and RMT's memory tokens; default 16")
    add_options(parser, "10 steps, 4 test excerpts of 512 bytes")
    options = parser.parse_args(words)
    if options.quick:
        options.documents, options.test_length = 4, 512
    options.learning_rates = options.learning_rates or ([5e-3] if options.quick else [5e-3, 1e-2])
    options.steps = options.steps or (10 if options.quick else 1200)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    names = (
        "steps", "lanes", "num_segments", "segment_length", "length", "documents", "test_length",
        "encoder_layers", "decoder_layers", "width", "heads", "slots",
    )  # fmt: skip
    for variant in options.variants:
        if not available(variant):
            print(f"{variant}: not run, its library is not installed (make peers)")
    cases = [
        {"variant": variant, "seed": seed, "learning_rate": rate}
        for rate, seed, variant in itertools.product(
            options.learning_rates, options.seeds, filter(available, options.variants)
        )
    ]
    # Files of before there was a choice are of books.
    sizes = {name: getattr(options, name) for name in names} | (
        {"texts": options.texts, "digest": texts(options.texts).digest} if options.texts != "books" else {}
    )
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
