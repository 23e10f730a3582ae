# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A pretrained language model on books: with a memory, with it reset, and alone, at the same overlap, by position.

    make backbone
    python benchmarks/backbone_books.py --quick                   a look: 3 steps, two short excerpts
    python benchmarks/backbone_books.py --device cuda --out benchmarks/results/DATE-gpu-backbone-books
    python benchmarks/backbone_books.py --out benchmarks/results/DATE-cpu-backbone-books        hours on a CPU core

`--pretrained` is a directory as transformers saves it. Books of corpora/books are read in segments, each of which sees
a start token and the last quarter of the segment before; three books are held out whole and read in excerpts, from an
empty memory. Variants: `pretrained`, the model as it is; `associative` and `slots`, whose memory alone is trained, so
that with its memory reset (*) the first says what `pretrained` says; `plain`, the model alone trained further on the
same tokens; `associative-all` and `slots-all`, both trained, to be held against `plain`.

A memory helps in two ways: it tells what this book has said, and that this is such a book. Every excerpt is therefore
also read with its memory *exchanged*: that of an excerpt of another held-out book, which has read as far. What this
gains over the reset memory any book's would give; what is gained beyond it is the document's own.

(*) At step 0 both give the model's own logits; an untrained writer is never read.
"""

import argparse
import dataclasses
import functools
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

from benchmarks.cases import Case, Row, add_options, run_cases, seeds_of
from benchmarks.common import ROOT, markdown_table, page_head
from benchmarks.long_text import bands
from benchmarks.peers.backbone import MEMORY_NAMES, load, plain
from benchmarks.peers.reader import MemoryReader, Reader, losses_of
from benchmarks.texts import Texts, losses_by_excerpt, rollouts, texts
from benchmarks.training import Recipe, train
from data_pipeline.errors import UserError
from data_pipeline.hf_tokenizer import HFTokenizer, import_tokenizer
from memformer.models.backbone.config import MemoryConfig

VARIANTS = ("pretrained", "plain", "associative", "associative-all", "slots", "slots-all")


@functools.cache
def books(directory: str) -> tuple[HFTokenizer, Texts]:
    """The model's own tokenizer, and the books as its tokens."""
    tokenizer = import_tokenizer(directory)
    found = texts("books")

    def tokens(documents: list[np.ndarray]) -> list[np.ndarray]:
        return [tokenizer.encode(document.tobytes().decode("utf-8")) for document in documents]

    return tokenizer, Texts(found.name, tokens(found.trained), tokens(found.held_out))


def held_out(documents: Sequence[np.ndarray], length: int, most: int | None) -> tuple[torch.Tensor, list[int]]:
    """The documents cut into excerpts of `length` tokens, taking turns.

    Returns:
        The excerpts, int64 [excerpts, length], and the number of each one's document.
    """
    cut = [document[: len(document) // length * length].reshape(-1, length) for document in documents]
    turns = [(number, i) for i in range(max(map(len, cut), default=0)) for number, c in enumerate(cut) if i < len(c)]
    if not turns:
        raise SystemExit(f"no held-out book has {length:,} tokens: lower --test-length")
    turns = turns[:most]
    found = np.stack([cut[number][i] for number, i in turns]).astype(np.int64)
    return torch.from_numpy(found), [number for number, _ in turns]


def partners(documents: Sequence[int]) -> list[int] | None:
    """For each excerpt the next one of another document, past the end from the beginning; None: all are of one."""
    if len(set(documents)) < 2:
        return None
    count = len(documents)
    after = ([(at + step) % count for step in range(1, count)] for at in range(count))
    return [next(other for other in each if documents[other] != documents[at]) for at, each in enumerate(after)]


def make_reader(options: argparse.Namespace, case: Case) -> MemoryReader:
    """The pretrained model with a new memory, or alone."""
    kind = case["variant"].removesuffix("-all")
    memory = MemoryConfig("slots", layers=(0,), num_slots=1)
    if kind in ("associative", "slots"):
        memory = MemoryConfig(kind, layers=tuple(options.layers), d_key=options.d_key, num_slots=options.slots)
    torch.manual_seed(case["seed"])
    tokenizer, _ = books(options.pretrained)
    model = load(options.pretrained, tokenizer, memory, options.segment_length, torch.device(options.device))
    reader = MemoryReader(model, case["variant"]) if kind in ("associative", "slots") else plain(model)
    reader.name = case["variant"]
    if options.precision == "bf16":
        reader.precision = functools.partial(torch.autocast, torch.device(options.device).type, torch.bfloat16)
    return reader


def recipe_of(options: argparse.Namespace, variant: str) -> Recipe:
    """The memory learns at the full rate, the backbone at a share of it or not at all."""
    share = options.backbone_rate if variant.endswith("-all") or variant == "plain" else 0.0
    rates = (*((name, 1.0) for name in MEMORY_NAMES), ("", share))
    return Recipe(options.steps, options.learning_rate, "wsd", seconds=options.seconds, rates=rates)


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains and scores one variant."""
    reader, (_, found) = make_reader(options, case), books(options.pretrained)
    row: Row = {**case, "steps": 0, "training_tokens": 0, "training_losses": (), "training_seconds": 0.0}
    if case["variant"] != "pretrained":
        data = rollouts(
            found.trained, options.lanes, options.length, options.segments, options.segment_length, case["seed"]
        )
        history = train(reader, data, recipe_of(options, case["variant"]), lambda line: print(line, flush=True))
        tokens = history.steps * options.lanes * options.segments * options.segment_length
        row |= {"steps": history.steps, "training_tokens": tokens, "training_losses": history.losses}
        row["training_seconds"] = history.seconds
    reader.module.eval()
    test, documents = held_out(found.held_out, options.test_length, options.excerpts)
    alone, others = reader.memory_reset, partners(documents)
    kept = scored(reader, test, options)
    exchanged = None if alone or others is None else scored(reader, test, options, test[others])
    reader.memory_reset = True
    reset = kept if alone else scored(reader, test, options)
    rows, width = reader.module.config.memory_shape
    row |= {
        "memory_numbers": 0 if alone else rows * width,
        "test_tokens": test.numel(),
        "perplexity": math.exp(float(kept.mean())),
        "perplexity_memory_reset": math.exp(float(reset.mean())),
        "gain_nats": float((reset - kept).mean()),
        "gain_error": float((reset - kept).mean(1).std() / math.sqrt(len(kept))) if len(kept) > 1 else None,
        "by_position": bands(kept.mean(0), reset.mean(0), options.segment_length),
        "by_excerpt": kept.mean(1).tolist(),
    }
    said = ""
    if exchanged is not None:
        own = exchanged - kept
        row |= {"perplexity_memory_exchanged": math.exp(float(exchanged.mean())), "own_nats": float(own.mean())}
        row["own_error"] = float(own.mean(1).std() / math.sqrt(len(own)))
        for place, each in zip(
            row["by_position"], bands(exchanged.mean(0), exchanged.mean(0), options.segment_length), strict=True
        ):
            place["perplexity_memory_exchanged"] = each["perplexity"]
        said = f", exchanged {row['perplexity_memory_exchanged']:.3f} ({row['own_nats']:+.4f} the document's own)"
    print(
        f"{reader.name} seed {case['seed']}: perplexity {row['perplexity']:.3f}, memory reset "
        f"{row['perplexity_memory_reset']:.3f}, {row['gain_nats']:+.4f} nats a token gained{said}",
        flush=True,
    )
    return [row]


def scored(
    reader: Reader, test: torch.Tensor, options: argparse.Namespace, others: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean loss of each segment of each excerpt, float64 [excerpts, segments]; a few excerpts at a time.

    Args:
        reader: The model.
        test: The excerpts.
        options: Where, how many at a time, in which segments.
        others: An excerpt for each, whose memory it is read with (`losses_with_memory_of`); None: its own.
    """
    parts = []
    for number, part in enumerate(test.to(options.device).split(options.test_lanes)):
        if others is None:
            losses, _ = losses_by_excerpt(reader, part, options.segment_length)
        else:
            writing = others.to(options.device).split(options.test_lanes)[number]
            losses = losses_with_memory_of(reader, part, writing, options.segment_length)
        parts.append(losses)
    return torch.cat(parts).double().cpu()


@torch.no_grad()
def losses_with_memory_of(
    reader: Reader, tokens_BL: torch.Tensor, others_BL: torch.Tensor, segment_length: int
) -> torch.Tensor:
    """Mean loss of each segment, [B, segments], read with what others have written up to there; the overlap is its own.

    The others' memory goes on with their own text: what is read here is never written into it.
    """
    state, writing, means = None, None, []
    for segment, other in zip(tokens_BL.split(segment_length, 1), others_BL.split(segment_length, 1), strict=True):
        mixed = None if state is None else dataclasses.replace(state, memory=writing.memory)
        logits, state = reader.read(segment, mixed)
        writing = reader.skip(other, writing)
        means.append(losses_of(logits, segment).mean(1))
    return torch.stack(means, 1)


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    named: dict[str, list[Row]] = {}
    for row in rows:
        named.setdefault(row["variant"], []).append(row)
    table, places = [], []
    for name, found in named.items():
        mean = functools.partial(_mean, found)
        has = bool(found[0]["memory_numbers"])
        exchanged = all("own_nats" in row for row in found)
        errors = [row["gain_error"] for row in found if row["gain_error"] is not None]
        gain = f"{mean('gain_nats'):+.4f}" + (f" ± {statistics.fmean(errors):.4f}" if errors else "")
        table.append([
            name,
            f"{mean('steps'):.0f}",
            f"{mean('training_tokens') / 1e6:.2f} M",
            f"{found[0]['memory_numbers']:,}" if has else "",
            mean("perplexity"),
            mean("perplexity_memory_reset") if has else "",
            gain if has else "",
            mean("perplexity_memory_exchanged") if exchanged else "",
            f"{mean('own_nats'):+.4f} ± {mean('own_error'):.4f}" if exchanged else "",
        ])  # fmt: skip
        labels = {"perplexity": (name, True), "perplexity_memory_reset": (f"{name}, reset", has)}
        labels["perplexity_memory_exchanged"] = (f"{name}, exchanged", exchanged)
        for key, (label, shown) in labels.items():
            if shown:
                each = zip(*(row["by_position"] for row in found), strict=True)
                places.append([label, *(statistics.fmean(place[key] for place in at) for at in each)])
    heads = [f"{place['from']:,} to {place['to'] - 1:,}" for place in rows[0]["by_position"]]
    columns = ["variant", "steps", "tokens trained on", "numbers a lane", "perplexity", "memory reset", "gain, nats"]
    exchange = ""
    if any("own_nats" in row for row in rows):
        columns += ["memory exchanged", "of the gain its own, nats"]
        exchange = (
            " *Memory exchanged*: that of an excerpt of another of these books, which has read as far; *its own*: what "
            "the document's own memory gains over that."
        )
    return "\n".join(
        [
            *page_head("A pretrained language model with a memory on books", values),
            f"{sizes['model']}; segments of {sizes['segment_length']} tokens, each with a start token and the last "
            f"{sizes['segment_length'] // 4} of the segment before in view, {sizes['lanes']} lanes, replay through "
            f"{sizes['segments']} segments, excerpts of {sizes['length']:,} tokens of {sizes['trained']} books, "
            f"{sizes['precision']}; peak rate of the memory {sizes['learning_rate']:g}, of the backbone, where it is "
            f"trained, {sizes['backbone_rate']:g} of that; memory at layers {sizes['layers']}. Tested on "
            f"{rows[0]['test_tokens']:,} tokens of {sizes['held_out']} other books in excerpts of "
            f"{sizes['test_length']:,}; seeds {seeds_of(rows)}. *Memory reset*: the same model, its memory taken away "
            "at every segment; *gain*: nats a token between the two, ± its standard error over "
            f"excerpts.{exchange} Only rows of one overlap stand here: what a memory gives beyond the last words.",
            "",
            markdown_table(columns, [line[: len(columns)] for line in table]),
            "",
            "Perplexity by position in the excerpt, in tokens:",
            "",
            markdown_table(["variant", *heads], places),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pretrained", default=str(ROOT / "models" / "smollm2-135m"), metavar="DIR", help="of `make backbone`")
    add("--variants", nargs="+", choices=VARIANTS, help="default: pretrained, associative, plain, associative-all")
    add("--device", default="cpu", help="cpu or cuda; default cpu")
    add("--precision", choices=["fp32", "bf16"], help="default: bf16 on a GPU")
    add("--steps", type=int, help="optimizer steps; default 400 on a GPU, 60 on a CPU")
    add("--seconds", type=float, help="wall time of each variant's training; fewer steps where it will not do")
    add("--lanes", type=int, help="B; default 16 on a GPU, 1 on a CPU")
    add("--segments", type=int, default=8, help="T of a step; default 8")
    add("--segment-length", type=int, help="S in tokens; default 256 on a GPU, 64 on a CPU")
    add("--length", type=int, help="tokens of a training excerpt; default 2 T segments")
    add("--test-length", type=int, help="tokens of a test excerpt; default 32 segments")
    add("--excerpts", type=int, help="of the test at most; default all on a GPU, 6 on a CPU")
    add("--test-lanes", type=int, default=16, help="excerpts scored side by side; default 16")
    add("--layers", nargs="+", type=int, default=[6, 12, 18, 24], help="that have a memory; default 6 12 18 24")
    add("--d-key", type=int, default=16, help="of associative; default 16")
    add("--slots", type=int, default=32, help="of slots; default 32")
    add("--learning-rate", type=float, default=1e-3, help="peak, of the memory; default 1e-3")
    add("--backbone-rate", type=float, default=0.03, help="of the backbone, as a share of that; default 0.03")
    add_options(parser, "pretrained and associative, 3 steps, two excerpts")
    options = parser.parse_args(words)
    gpu = torch.device(options.device).type == "cuda"
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    quick = ["pretrained", "associative"]
    options.variants = options.variants or (quick if options.quick else [*quick, "plain", "associative-all"])
    options.steps = options.steps or (3 if options.quick else 400 if gpu else 60)
    options.lanes = options.lanes or (16 if gpu else 1)
    options.segment_length = options.segment_length or (256 if gpu else 64)
    if options.quick:
        options.segments = 2
    options.length = options.length or 2 * options.segments * options.segment_length
    options.test_length = options.test_length or (4 if options.quick else 32) * options.segment_length
    options.excerpts = options.excerpts or (2 if options.quick else None if gpu else 6)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    names = (
        "steps", "seconds", "lanes", "segments", "segment_length", "length", "test_length", "excerpts", "precision",
        "layers", "d_key", "slots", "learning_rate", "backbone_rate",
    )  # fmt: skip
    try:
        _, found = books(options.pretrained)
    except UserError as error:
        raise SystemExit(f"--pretrained: {error} (make backbone)") from None
    sizes = {"model": Path(options.pretrained).name, "trained": len(found.trained), "held_out": len(found.held_out)}
    sizes |= {name: getattr(options, name) for name in names}
    cases = [{"variant": variant, "seed": seed} for seed in options.seeds for variant in options.variants]
    measured = functools.partial(measure, options)
    values = run_cases(options, sizes, cases, measured, page, torch.device(options.device))
    if options.json:
        print(json.dumps({name: values[name] for name in ("sizes", "rows", "hardware", "commit")}))


if __name__ == "__main__":
    main()
