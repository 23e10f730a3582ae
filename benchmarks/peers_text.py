# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memformer beside other architectures on books: equal parameters, equal tokens, one loop.

    make peers                                            installs the libraries
    python benchmarks/peers_text.py                       about a quarter of an hour on one CPU core
    python benchmarks/peers_text.py --quick --json        about a minute
    python benchmarks/peers_text.py --out benchmarks/results/DATE-cpu-peers-text

Every model has the parameters of the Memformer to within 3 %, its layers (encoder and decoder together) and heads, and
reads the same excerpts of books in the same order, byte by byte, S a segment, T segments an optimizer step, with one
optimizer and schedule. Memformer and RMT carry `--slots` vectors; Transformer-XL, the windowed and the Compressive
Transformer see S bytes before the segment, the last S/4 compressed ones more; the LSTM its state. Gradients pass from
segment to segment where the architecture is trained so: Memformer (by replay), RMT, LSTM (by BPTT).

Perplexity a byte on books never trained on; operations of reading are counted; `carried` is what a document leaves in
memory between two segments, in numbers (token ids left out).
"""

import argparse
import dataclasses
import gzip
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import markdown_table, page_head, provenance, write_results
from benchmarks.peers.flops import reading_flops
from benchmarks.peers.models import KINDS, Sizes, at_parameters, available
from benchmarks.peers.reader import MemformerReader, Reader, State, losses_of, parameters
from benchmarks.tasks.text import BOOKS, START
from benchmarks.training import Recipe, Rollout, chunks, train
from memformer import MemformerConfig

VARIANTS = ("memformer", "memformer-no-forgetting", "memformer-no-slots", *KINDS[1:])
HELD_OUT = ("austen_persuasion", "shakespeare_winters_tale", "shakespeare_hamlet")


def books(held_out: bool) -> list[np.ndarray]:
    """The books that are trained on, or the others, as bytes."""
    chosen = [path for path in sorted(BOOKS.glob("*.txt.gz")) if path.name.startswith(HELD_OUT) == held_out]
    return [np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8) for path in chosen]


def excerpts(texts: list[np.ndarray], count: int, length: int, random: np.random.Generator) -> torch.Tensor:
    """Excerpts of `length` bytes from random places, longer books more often, int64 [count, length]."""
    sizes = np.array([len(text) - length for text in texts])
    chosen = random.choice(len(texts), size=count, p=sizes / sizes.sum())
    parts = [texts[i][at : at + length] for i, at in ((i, int(random.integers(sizes[i]))) for i in chosen)]
    return torch.from_numpy(np.stack(parts).astype(np.int64))


def rollouts(options: argparse.Namespace, seed: int) -> Iterator[Rollout]:
    """Endless rollouts of T segments; a batch of excerpts is read to its end."""
    texts, random = books(held_out=False), np.random.default_rng(seed)
    while True:
        batch = excerpts(texts, options.lanes, options.length, random)
        yield from chunks(batch, options.num_segments, options.segment_length)


def make_reader(variant: str, options: argparse.Namespace, seed: int) -> Reader:
    """An untrained model; peers at the parameters of the Memformer."""
    torch.manual_seed(seed)
    config = MemformerConfig(
        options.encoder_layers,
        options.decoder_layers,
        d_model=options.width,
        num_heads=options.heads,
        d_ff=2 * options.width,
        num_memory_slots=0 if variant == "memformer-no-slots" else options.slots,
        memory_forgetting=variant != "memformer-no-forgetting",
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
        2 * options.width,
        options.slots if variant == "rmt" else options.segment_length,
    )
    return at_parameters(variant, sizes, parameters(reader))


def carried(state: State) -> int:
    """Floating-point numbers of a document's state."""
    if isinstance(state, torch.Tensor):
        return state.numel() if state.is_floating_point() else 0
    if dataclasses.is_dataclass(state):
        return sum(carried(getattr(state, field.name)) for field in dataclasses.fields(state))
    if isinstance(state, (list, tuple)):
        return sum(map(carried, state))
    return 0


@torch.no_grad()
def losses_by_position(reader: Reader, tokens_BL: torch.Tensor, segment_length: int) -> tuple[torch.Tensor, State]:
    """Mean loss of each segment in nats, [segments], and the last state."""
    state, means = None, []
    for segment in tokens_BL.split(segment_length, dim=1):
        logits, state = reader.read(segment, state)
        means.append(losses_of(logits, segment).mean())
    return torch.stack(means), state


def measure(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one model."""
    reader = make_reader(variant, options, seed)
    recipe = Recipe(options.steps, options.learning_rate, "wsd")
    history = train(reader, rollouts(options, seed), recipe, lambda line: print(line, flush=True))
    test = excerpts(books(held_out=True), options.documents, options.test_length, np.random.default_rng(10**6))
    means, _ = losses_by_position(reader, test, options.segment_length)
    first = losses_by_position(reader, test[:1], options.segment_length)[1]
    row = {
        "variant": variant,
        "seed": seed,
        "parameters": parameters(reader),
        "training_tokens": options.steps * options.lanes * options.num_segments * options.segment_length,
        "perplexity": math.exp(float(means.mean())),
        "by_segment": means.tolist(),
        "flops_per_token": reading_flops(reader, test[:1], options.segment_length) / options.test_length,
        "carried_numbers": carried(first),
        "training_seconds": history.seconds,
        "training_losses": history.losses,
    }
    if variant.startswith("memformer") and variant != "memformer-no-slots":
        reader.memory_reset = True  # type: ignore[attr-defined]
        row["perplexity_memory_reset"] = math.exp(
            float(losses_by_position(reader, test, options.segment_length)[0].mean())
        )
    print(f"{variant} seed {seed}: perplexity {row['perplexity']:.3f}, {row['parameters']:,} parameters", flush=True)
    return row


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    table = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [row for row in rows if row["variant"] == variant]
        each = [row["perplexity"] for row in found]
        first = found[0]
        reset = [row["perplexity_memory_reset"] for row in found if "perplexity_memory_reset" in row]
        table.append(
            (
                variant,
                f"{first['parameters']:,}",
                statistics.fmean(each),
                f"{min(each):.3f} to {max(each):.3f}" if len(each) > 1 else "",
                f"{statistics.fmean(reset):.3f}" if reset else "",
                f"{first['flops_per_token'] / 1e6:.2f}",
                f"{first['carried_numbers']:,}",
                f"{statistics.fmean(row['training_seconds'] for row in found):.0f}",
            )
        )
    columns = (
        "model", "parameters", "perplexity", "spread", "memory reset", "MFLOPs a byte", "carried numbers",
        "training (s of one core)",
    )  # fmt: skip
    return "\n".join(
        [
            *page_head("Peers on books", values),
            f"{rows[0]['training_tokens'] / 1e6:.2f} M bytes in {sizes['steps']} steps; segments of "
            f"{sizes['segment_length']} bytes, T = {sizes['num_segments']}, excerpts of {sizes['length']} bytes; "
            f"tested on {sizes['documents']} excerpts of {sizes['test_length']} bytes from {len(HELD_OUT)} other "
            f"books; seeds {seeds}. All parameters within 3 % of Memformer's; "
            "its own variants keep its sizes.",
            "",
            markdown_table(columns, table),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, help="optimizer steps; default 400")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak, of all; default 2e-3")
    parser.add_argument("--lanes", type=int, default=8, help="B; default 8")
    parser.add_argument("--num-segments", type=int, default=4, help="T; default 4")
    parser.add_argument("--segment-length", type=int, default=64, help="S in bytes; default 64")
    parser.add_argument("--length", type=int, default=2048, help="bytes of a training excerpt; default 2048")
    parser.add_argument("--documents", type=int, default=32, help="excerpts of the test; default 32")
    parser.add_argument("--test-length", type=int, default=4096, help="bytes of each; default 4096")
    parser.add_argument("--encoder-layers", type=int, default=2, help="of Memformer; default 2")
    parser.add_argument("--decoder-layers", type=int, default=4, help="of Memformer; default 4")
    parser.add_argument("--width", type=int, default=64, help="of Memformer; default 64")
    parser.add_argument("--heads", type=int, default=4, help="default 4")
    parser.add_argument("--slots", type=int, default=16, help="slots K, and RMT's memory tokens; default 16")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument("--quick", action="store_true", help="10 steps, 4 test excerpts of 512 bytes")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--notes", default="", help="a remark for the result files")
    options = parser.parse_args(words)
    if options.quick:
        options.documents, options.test_length = 4, 512
    options.steps = options.steps or (10 if options.quick else 400)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    torch.set_num_threads(options.threads)
    values: dict[str, Any] = provenance(torch.device("cpu"))
    values["sizes"] = {
        name: value for name, value in vars(options).items() if isinstance(value, int) and name not in ("json", "quick")
    } | {"learning_rate": options.learning_rate}
    values["notes"], values["rows"] = options.notes, []
    for variant in options.variants:
        if not available(variant):
            print(f"{variant}: not run, its library is not installed (make peers)")
            continue
        for seed in options.seeds:
            values["rows"].append(measure(variant, seed, options))
            if options.out:  # as far as it has come
                write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
