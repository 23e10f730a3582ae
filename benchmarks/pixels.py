# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Images as sequences of pixels: the paper's Table 1 in kind, on Fashion-MNIST.

    make images peers                                     Debian's package of the images, and the peers
    python benchmarks/pixels.py --jobs 2                  a quarter of every length: under 30 minutes on 2 idle cores
    python benchmarks/pixels.py --quick --json            about a minute
    python benchmarks/pixels.py --scale full --device cuda     784 tokens an image, the paper's sizes, 20 epochs
    python benchmarks/pixels.py --out benchmarks/results/DATE-cpu-pixels

An image is one document of bytes, read row by row, two scaled rows a segment; `memformer data build` makes the data set
from the package's idx files. At scale `quarter` images are averaged to 14 x 14 pixels of 16 greys, the model is 64 wide
and all lengths (image, segment, slots, the peers' caches) are a quarter of the paper's; rows keep its names for the
memory's size.

Rows: Memformer 4+8, 4+4, 2+6 by memory slots, without sharpening (temperature 1), without forgetting, with one writer
head; Transformer-XL by cache and LSTM (`make peers`), and some at the parameters of Memformer 2+6. One loop, the same
images in the same order, the same optimizer; each model is trained at every one of `--learning-rates` and shown at the
one of the lowest training loss.
Perplexity is per pixel, on images never trained on. Operations of reading one image are counted while one is read.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, add_options, at_best_rate, run_cases, seeds_of, spread
from benchmarks.cases import Row as Result
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.flops import reading_flops
from benchmarks.peers.models import PEERS, Sizes, at_parameters, available
from benchmarks.peers.reader import MemformerReader, Reader, State, carried, losses_of, parameters
from benchmarks.training import Recipe, Rollout, chunks, train
from data_pipeline import DocumentIndex, ShardStore, build_dataset
from memformer import MemformerConfig

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"}
SIDE = 28


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a table. `divisor` divides every length of the paper's, `levels` are the greys of a pixel."""

    divisor: int
    levels: int
    width: int
    images: int
    batch: int
    test_images: int
    num_segments: int

    @property
    def length(self) -> int:
        """Pixels of an image."""
        return SIDE * SIDE // self.divisor

    @property
    def segment_length(self) -> int:
        """S: two rows of the image at its scale."""
        return 2 * math.isqrt(self.length)


SCALES = {
    "full": Scale(1, 256, 128, 1_200_000, 64, 10_000, 14),
    "quarter": Scale(4, 16, 64, 4_000, 16, 500, 7),
    "tiny": Scale(4, 16, 32, 320, 16, 64, 7),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table; sizes are the paper's, before the divisor.

    `paper` is what the paper reports for MNIST: (GFLOPs, perplexity). An `equal` peer has as many parameters as
    Memformer 2+6.
    """

    name: str
    paper: tuple[float, float] | None
    encoder_layers: int = 2
    decoder_layers: int = 6
    slots: int = 64
    changes: tuple[tuple[str, Any], ...] = ()
    peer: str | None = None
    memory: int = 0
    equal: bool = False


TABLE = (
    Row("Memformer 4+8", (5.0, 1.555), 4, 8),
    Row("Memformer 4+4", (3.6, 1.628), 4, 4),
    Row("Memformer 2+6, memory 64", (3.9, 1.594)),
    Row("Memformer 2+6, memory 32", (3.9, 1.600), slots=32),
    Row("Memformer 2+6, memory 16", (3.9, 1.604), slots=16),
    Row("Memformer 2+6, memory 1", (3.9, 1.627), slots=1),
    Row("Memformer 2+6 without memory", (1.8, 1.745), slots=0),
    Row("2+6, temperature 1", (3.9, 1.612), changes=(("memory_temperature", 1.0),)),
    Row("2+6 without forgetting", (3.9, 1.630), changes=(("memory_forgetting", False),)),
    Row("2+6, one writer head", (3.9, 1.626), changes=(("writer_heads", 1),)),
    Row("Transformer-XL, memory 56", (5.6, 1.650), peer="transformer-xl", memory=56),
    Row("Transformer-XL, memory 224", (15.6, 1.618), peer="transformer-xl", memory=224),
    Row("Transformer-XL, memory 784", (49.1, 1.611), peer="transformer-xl", memory=784),
    Row("LSTM", (52.5, 1.698), peer="lstm"),
    Row("Transformer-XL, memory 56, equal parameters", None, peer="transformer-xl", memory=56, equal=True),
    Row("Transformer-XL, memory 224, equal parameters", None, peer="transformer-xl", memory=224, equal=True),
    Row(
        "modern Transformer-XL, memory 56, equal parameters", None, peer="transformer-xl-modern", memory=56, equal=True
    ),
    Row("modern Memformer 2+6", None, changes=(("block", "modern"), ("memory_forgetting", "off"))),
    Row("backbone with a matrix, equal parameters", None, peer="backbone-associative", equal=True),
)


def images(directory: Path, part: str, scale: Scale, most: int) -> torch.Tensor:
    """Images as tokens, int64 [N, pixels], read through a data set that is built in a temporary directory.

    Raises:
        SystemExit: The package is not there.
    """
    source = directory / FILES[part]
    if not source.exists():
        raise SystemExit(
            f"{source} is not there: make images (apt-get install dataset-fashion-mnist), or name the directory of its "
            "idx files with --images"
        )
    with tempfile.TemporaryDirectory() as scratch:
        build_dataset([source], Path(scratch) / "data")
        index = DocumentIndex.load(Path(scratch) / "data")
        store = ShardStore(index)
        count = min(most, len(index))
        pixels = np.stack([store.read(document, 0, SIDE * SIDE) for document in range(count)]).astype(np.float64)
        store.close()
    factor = math.isqrt(scale.divisor)
    side = SIDE // factor
    pooled = pixels.reshape(count, side, factor, side, factor).mean(axis=(2, 4))
    greys = np.floor(pooled * scale.levels / 256)
    return torch.from_numpy(greys.astype(np.int64).reshape(count, side * side))


def make_reader(row: Row, scale: Scale, seed: int) -> Reader:
    """An untrained reader for a row."""
    torch.manual_seed(seed)
    changes = dict(row.changes)
    modern = changes.get("block") == "modern" or "modern" in (row.peer or "") or "backbone" in (row.peer or "")
    heads, ff = 4, round(2 * scale.width * (2 / 3 if modern else 1))
    if row.peer:
        layers = 8 if row.peer != "lstm" else 4
        sizes = Sizes(
            scale.levels + 1,
            scale.levels,
            scale.segment_length,
            scale.width,
            heads,
            layers,
            ff,
            row.memory // scale.divisor,
        )
        if row.equal:
            return at_parameters(row.peer, sizes, parameters(make_reader(Row("Memformer 2+6", None), scale, seed)))
        return PEERS[row.peer](sizes)
    slots = -(-row.slots // scale.divisor)
    config = MemformerConfig(
        row.encoder_layers,
        row.decoder_layers,
        d_model=scale.width,
        num_heads=heads,
        d_ff=ff,
        num_memory_slots=slots,
        vocab_size=scale.levels + 1,
        start_token_id=scale.levels,
        segment_length=scale.segment_length,
        **{"memory_forgetting": "paper", **changes},
    )
    return MemformerReader(config)


def batches(pixels: torch.Tensor, scale: Scale, seed: int) -> Iterator[Rollout]:
    """Endless rollouts: images in an order that the seed decides, `batch` at a time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(pixels), generator=generator).split(scale.batch):
            if len(chosen) == scale.batch:
                yield from chunks(pixels[chosen], scale.num_segments, scale.segment_length)


@torch.no_grad()
def perplexity(reader: Reader, pixels: torch.Tensor, scale: Scale, device: torch.device) -> float:
    """Per pixel."""
    total = 0.0
    for part in pixels.split(100):
        state = None
        for segment in part.to(device).split(scale.segment_length, dim=1):
            logits, state = reader.read(segment, state)
            total += float(losses_of(logits, segment).sum())
    return math.exp(total / pixels.numel())


@torch.no_grad()
def read_first(reader: Reader, pixels: torch.Tensor, scale: Scale) -> State:
    """What is left in memory of an image."""
    state = None
    for segment in pixels.split(scale.segment_length, dim=1):
        _, state = reader.read(segment, state)
    return state


def measure(scale: Scale, data: dict[str, torch.Tensor], device: torch.device, case: Case) -> list[Result]:
    """Trains and scores one row at one learning rate."""
    row, seed = next(row for row in TABLE if row.name == case["name"]), case["seed"]
    reader = make_reader(row, scale, seed)
    reader.module.to(device)
    steps = scale.images // scale.batch * -(-scale.length // (scale.num_segments * scale.segment_length))
    history = train(reader, batches(data["train"], scale, seed), Recipe(steps, case["learning_rate"]), print)
    values = {
        **case,
        "parameters": parameters(reader),
        "gflops_per_image": reading_flops(reader, data["test"][:1].to(device), scale.segment_length) / 1e9,
        "carried_numbers": carried(read_first(reader, data["test"][:1].to(device), scale)),
        "perplexity": perplexity(reader, data["test"], scale, device),
        "training_seconds": history.seconds,
        "training_losses": history.losses,
        "paper_gflops": row.paper[0] if row.paper else None,
        "paper_perplexity": row.paper[1] if row.paper else None,
    }
    print(f"{row.name} seed {seed}, rate {case['learning_rate']:g}: perplexity {values['perplexity']:.3f}", flush=True)
    return [values]


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes = values["sizes"]
    columns = (
        "model",
        "parameters",
        "GFLOPs an image",
        "perplexity",
        "spread",
        "learning rate",
        "carried numbers",
        "paper's GFLOPs",
        "paper's perplexity",
    )
    rows = []
    for name in dict.fromkeys(row["name"] for row in values["rows"]):
        found = at_best_rate([row for row in values["rows"] if row["name"] == name])
        each = [row["perplexity"] for row in found]
        first = found[0]
        rows.append(
            (name, f"{first['parameters']:,}", f"{first['gflops_per_image']:.4f}", statistics.fmean(each), spread(each),
             f"{first['learning_rate']:g}",
             f"{first['carried_numbers']:,}" if "carried_numbers" in first else "",
             *("" if first[key] is None else first[key] for key in ("paper_gflops", "paper_perplexity")))
        )  # fmt: skip
    return "\n".join(
        [
            *page_head("Images as sequences of pixels", values),
            f"Fashion-MNIST at scale `{sizes['scale']}`: {sizes['length']} pixels of {sizes['levels']} greys an image, "
            f"{sizes['segment_length']} a segment, width {sizes['width']}, slots and caches divided by "
            f"{sizes['divisor']}; trained on {sizes['images']:,} images, tested on {sizes['test_images']:,} others; "
            f"seeds {seeds_of(values['rows'])}. *Carried*: what an image leaves in memory between two segments. "
            "The paper's figures are of MNIST at full length and training: only the order of the rows can be compared.",
            "",
            markdown_table(columns, rows),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="quarter", help="default quarter")
    parser.add_argument("--images", type=Path, default=PACKAGE, metavar="DIR", help=f"idx files; default {PACKAGE}")
    parser.add_argument("--rows", nargs="+", default=[], metavar="WORD", help="only rows whose name contains a word")
    parser.add_argument("--learning-rates", nargs="+", type=float, help="peaks; default 5e-3 1e-2")
    parser.add_argument("--training-images", type=int, help="images trained on (default: the scale's)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    add_options(parser, "three rows at scale tiny")
    options = parser.parse_args(words)
    if options.quick:
        options.scale, options.rows = "tiny", ["2+6, memory 64", "2+6 without memory", "LSTM"]
    options.learning_rates = options.learning_rates or ([5e-3] if options.quick else [5e-3, 1e-2])
    return options


def chosen(words: Sequence[str]) -> list[Row]:
    """The rows that are asked for and whose library is installed; says which are left out."""
    rows = [row for row in TABLE if not words or any(word in row.name for word in words)]
    for row in rows:
        if row.peer and not available(row.peer):
            print(f"{row.name}: not run, its library is not installed (make peers)")
    return [row for row in rows if not row.peer or available(row.peer)]


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    device = torch.device(options.device)
    scale = SCALES[options.scale]
    if options.training_images:
        scale = dataclasses.replace(scale, images=options.training_images)
    data = {
        "train": images(options.images, "train", scale, scale.images),
        "test": images(options.images, "test", scale, scale.test_images),
    }
    sizes = {
        "scale": options.scale,
        "length": scale.length,
        "segment_length": scale.segment_length,
        **dataclasses.asdict(scale),
    }
    cases = [
        {"name": row.name, "seed": seed, "learning_rate": rate}
        for rate, seed, row in itertools.product(options.learning_rates, options.seeds, chosen(options.rows))
    ]
    of_case = functools.partial(measure, scale, data, device)
    values = run_cases(options, sizes, cases, of_case, page, device)
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
