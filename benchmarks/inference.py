# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Inference: peak memory and time a token against Transformer-XL and a Transformer with a KV cache.

    python benchmarks/inference.py                       about 20 minutes on one CPU core
    python benchmarks/inference.py --quick --json        about 1 minute; the last line is one JSON object
    python benchmarks/inference.py --out benchmarks/results/DATE-cpu-inference

Definitions (the paper gives none for its 8.1 times less memory and 3.2 times faster):

* equal layers and width: the peers have as many decoder layers as this model has encoder and decoder layers together,
  the same width, heads, feed-forward width and vocabulary, and are built of the same modules.
* reading: a document is scored in segments of S tokens. generating: one token after another, each the most likely one;
  timed over whole segments, so that each includes its share of what this model does once a segment.
* peak memory: the most bytes of all tensors alive while reading or generating, what is carried from token to token
  included, the parameters (about as many in all) not; on a GPU the allocator's peak less the parameters. The ratio is
  the peer's over ours. Tables also give what is carried alone, and the ratio with the parameters on both sides.
* time a token: median of interleaved repetitions, in processor time of one thread on a CPU; the ratio is the peer's
  over ours.
* this model's state at a context of n tokens is what really reading n tokens leaves. The peers' caches of n tokens are
  filled with random numbers, on which neither time nor memory depends. A cache above the memory budget is not built;
  its size stands in the table as arithmetic.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.activations import LiveTensors
from benchmarks.common import interleaved_seconds, markdown_table, page_head, provenance, synchronize, write_results
from benchmarks.peers.cached_decoder import CachedDecoder, HiddenStateReader, KeyValueReader
from memformer import Memformer, MemformerConfig
from memformer.inference.generation import choose
from memformer.models.memformer.reader import MemformerReader
from memformer.replay import Segment


@dataclasses.dataclass(frozen=True)
class Case:
    """One size of the models, and what is measured with it."""

    model: MemformerConfig
    memories: tuple[int, ...]  # of Transformer-XL: those of the paper
    contexts: tuple[int, ...]
    batches: tuple[int, ...]  # documents read or generated side by side

    @property
    def layers(self) -> int:
        """Of the peers."""
        return self.model.num_encoder_layers + self.model.num_decoder_layers


SEGMENT, MEBI = 64, 2**20
# As many ids as grey values for the paper's model of images, a small vocabulary of words for its model of text.
_BYTES: dict[str, Any] = {"vocab_size": 257, "start_token_id": 256, "segment_length": SEGMENT}
_WORDS: dict[str, Any] = {"vocab_size": 8192, "start_token_id": 8191, "segment_length": SEGMENT}
CASES = {
    "4+8, width 128": Case(
        MemformerConfig(4, 8, d_model=128, num_heads=4, d_ff=256, num_memory_slots=64, **_BYTES),
        memories=(56, 224, 784),
        contexts=(1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000),
        batches=(1,),
    ),
    "4+12, width 512": Case(
        MemformerConfig(4, 12, d_model=512, num_heads=8, d_ff=2048, num_memory_slots=32, **_WORDS),
        memories=(32, 128, 256, 512, 1024, 1600),
        contexts=(1_000, 4_000, 16_000),
        batches=(1, 8),
    ),
}
OURS, XL, XL_HIDDEN, CACHE = "Memformer", "Transformer-XL, keys and values kept", "Transformer-XL", "KV cache"


class Reader(Protocol):
    """One document (or several side by side) being read or written."""

    def tensors(self) -> list[torch.Tensor]:
        """All that is carried to the next call."""

    def step(self) -> None:
        """One segment."""


class MemformerReading:
    """Scores segment after segment, as evaluation does."""

    def __init__(self, model: Memformer, batch: int) -> None:
        length = model.config.reading_length(None)
        self.model, self.length = model, torch.full((batch,), length, device=device_of(model))
        self.context = torch.zeros(batch, length, dtype=torch.int64, device=device_of(model))
        self.reset = torch.ones(batch, dtype=torch.bool, device=device_of(model))
        with torch.no_grad():
            self.memory = model.initial_memory(batch).clone()

    def tensors(self) -> list[torch.Tensor]:
        """Memory and previous segment."""
        return [self.memory, self.context]

    @torch.no_grad()
    def step(self) -> None:
        """Scores random tokens."""
        target = torch.randint(256, self.context.shape, device=self.context.device)
        first = bool(self.reset[0])
        segment = Segment(self.context, self.length, target, self.length, self.reset, ragged=first)
        _, _, self.memory = self.model(segment, self.memory)
        self.context, self.reset = target, torch.zeros_like(self.reset)


class MemformerWriting:
    """Generates a segment token by token, through `memformer.inference.generation`."""

    def __init__(self, model: Memformer, batch: int) -> None:
        self.generator = MemformerReader(model, batch)

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor of the generator."""
        return self.generator.tensors()

    def step(self) -> None:
        """One segment."""
        for _ in range(SEGMENT):
            self.generator.read(self.generator.logits.argmax(-1, keepdim=True))


class PeerReading:
    """Scores segment after segment."""

    def __init__(self, reader: KeyValueReader | HiddenStateReader, batch: int) -> None:
        self.reader, self.tensors = reader, reader.tensors
        self.shape = (batch, SEGMENT)

    @torch.no_grad()
    def step(self) -> None:
        """Scores random tokens."""
        weight = self.reader.model.embedding.weight
        tokens = torch.randint(256, self.shape, device=weight.device)
        logits = self.reader.read(tokens)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


class PeerWriting:
    """Generates token by token; `tokens` a step are enough where every token costs the same."""

    def __init__(self, reader: KeyValueReader | HiddenStateReader, batch: int, tokens: int) -> None:
        self.reader, self.tokens = reader, tokens
        self.last = torch.zeros(batch, 1, dtype=torch.int64, device=reader.model.embedding.weight.device)

    def tensors(self) -> list[torch.Tensor]:
        """The cache."""
        return [*self.reader.tensors(), self.last]

    def step(self) -> None:
        """A few tokens."""
        for _ in range(self.tokens):
            self.last = self.reader.read(self.last)[:, -1].argmax(-1, keepdim=True)


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def storage_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def parameter_bytes(model: torch.nn.Module) -> int:
    return storage_bytes(list(model.parameters()))


def peak_bytes(reader: Reader, device: torch.device) -> int:
    """The most bytes alive during two steps, the carried ones included, parameters not."""
    if device.type == "cuda":
        state = storage_bytes(reader.tensors())
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in range(2):
            reader.step()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before + state
    with LiveTensors(also=reader.tensors()) as live:
        for _ in range(2):
            reader.step()
    return live.meter.peak_bytes


def measure(
    readers: dict[Any, tuple[Reader, int, torch.nn.Module]], repetitions: int, device: torch.device
) -> dict[Any, dict[str, float]]:
    """Time a token and bytes of each reader; readers are (reader, tokens a step, model)."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    steps: dict[Any, Callable[[], object]] = {name: reader.step for name, (reader, _, _) in readers.items()}
    seconds = interleaved_seconds(steps, repetitions, device, clock)
    return {
        name: {
            "milliseconds_a_token": 1e3 * statistics.median(seconds[name]) / tokens,
            "spread": (max(seconds[name]) - min(seconds[name])) / statistics.median(seconds[name]),
            "state_bytes": storage_bytes(reader.tensors()),
            "peak_bytes": peak_bytes(reader, device),
            "parameter_bytes": parameter_bytes(model),
        }
        for name, (reader, tokens, model) in readers.items()
    }


def cache_bytes(case: Case, tokens: int, batch: int = 1) -> int:
    """Keys and values of all layers, fp32."""
    return case.layers * 2 * batch * tokens * case.model.d_model * 4


def against_transformer_xl(name: str, case: Case, options: argparse.Namespace, device: torch.device) -> list[Any]:
    """Both tasks, each memory length of the paper; all readers of a task take turns."""
    torch.manual_seed(0)
    ours, peer = Memformer(case.model).to(device).eval(), CachedDecoder(case.model, case.layers).to(device).eval()
    rows = []
    for task, batch in itertools.product(("reading", "generating"), case.batches):
        own: Reader = MemformerReading(ours, batch) if task == "reading" else MemformerWriting(ours, batch)
        readers: dict[tuple[str, int], tuple[Reader, int, torch.nn.Module]] = {(OURS, 0): (own, SEGMENT, ours)}
        for memory in case.memories:
            if task == "reading":
                hidden = HiddenStateReader(peer, batch, SEGMENT, memory, seen=memory)
                readers[XL_HIDDEN, memory] = (PeerReading(hidden, batch), SEGMENT, peer)
                kept = KeyValueReader(peer, batch, SEGMENT, memory, seen=memory + SEGMENT)
                readers[XL, memory] = (PeerReading(kept, batch), SEGMENT, peer)
            else:
                kept = KeyValueReader(peer, batch, 1, memory, seen=memory + 1)
                readers[XL, memory] = (PeerWriting(kept, batch, 16), 16, peer)
        found = measure(readers, options.repetitions, device)
        base = found[OURS, 0]
        own_bytes = base["peak_bytes"] + base["parameter_bytes"]
        for (model, memory), figures in found.items():
            row = {"size": name, "task": task, "batch": batch, "memory": memory, "model": model, **figures}
            row["memory_ratio"] = figures["peak_bytes"] / base["peak_bytes"]
            row["memory_ratio_with_parameters"] = (figures["peak_bytes"] + figures["parameter_bytes"]) / own_bytes
            row["time_ratio"] = figures["milliseconds_a_token"] / base["milliseconds_a_token"]
            rows.append(row)
            print(
                f"{name}, {task} x {batch}: {model:<36} {memory:>5}: {figures['peak_bytes'] / 2**20:8.2f} MiB, "
                f"{row['memory_ratio']:6.2f} times ours; {figures['milliseconds_a_token']:8.3f} ms a token, "
                f"{row['time_ratio']:5.2f} times ours",
                flush=True,
            )
    return rows


def by_context(name: str, case: Case, options: argparse.Namespace, device: torch.device) -> list[Any]:
    """Reading with 1k to 1M tokens of context; ours has really read them."""
    torch.manual_seed(0)
    ours, peer = Memformer(case.model).to(device).eval(), CachedDecoder(case.model, case.layers).to(device).eval()
    reading, rows, done = MemformerReading(ours, 1), [], 0
    for context in case.contexts:
        while done < context:
            reading.step()
            done += SEGMENT
        readers: dict[Any, tuple[Reader, int, torch.nn.Module]] = {OURS: (reading, SEGMENT, ours)}
        longest = max(case.memories)
        kept = KeyValueReader(peer, 1, SEGMENT, longest, seen=context)
        readers[f"{XL} ({longest})"] = (PeerReading(kept, 1), SEGMENT, peer)
        size = cache_bytes(case, context + SEGMENT)
        fits = size <= options.budget_gib * 2**30
        if fits:
            whole = KeyValueReader(peer, 1, SEGMENT, context, seen=context)
            readers[CACHE] = (PeerReading(whole, 1), SEGMENT, peer)
        found = measure(readers, options.repetitions, device)
        done += SEGMENT * (options.repetitions + 3)
        if not fits:
            found[CACHE] = {"state_bytes": size, "does_not_fit": True}
        for model, figures in found.items():
            rows.append({"size": name, "context": context, "model": model, **figures})
            time_a_token = figures.get("milliseconds_a_token")
            print(
                f"{name}, context {context:>9,}: {model:<44} "
                + (
                    f"{figures['peak_bytes'] / 2**20:9.1f} MiB, {time_a_token:8.3f} ms a token"
                    if time_a_token
                    else f"{size / 2**20:9.1f} MiB by arithmetic: above the budget of {options.budget_gib:g} GiB"
                ),
                flush=True,
            )
    return rows


MILLION_MODEL = MemformerConfig(1, 1, d_model=64, num_heads=2, d_ff=128, num_memory_slots=16, **_BYTES)


def generate_here(tokens: int, written: int, device: torch.device) -> dict[str, Any]:
    """One document of `tokens` tokens, the last `written` of them generated, and this process's memory on the way.

    The memory is what is resident in the process, on a GPU what its allocator has given out.
    """
    from benchmarks.checkpoint import resident

    torch.manual_seed(0)
    model = Memformer(MILLION_MODEL).to(device).eval()
    reader, source = MemformerReader(model), torch.Generator(device=device).manual_seed(0)
    started, marks, done = time.perf_counter(), [], 0
    places = [place for place in (1_000, 10_000, 100_000) if place < tokens - written]
    for place in [*places, tokens - written, tokens]:
        if place <= tokens - written:
            while done < place:
                piece = torch.randint(256, (1, min(10_000, place - done)), device=device)
                reader.read(piece)
                done += piece.shape[1]
        else:
            for _ in range(written):
                reader.read(choose(reader.logits, generator=source)[:, None])
        in_use = torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else resident("VmRSS")
        marks.append({"tokens": place, "megabytes": in_use, "seconds": time.perf_counter() - started})
    parameters = sum(p.numel() for p in model.parameters())
    return {"tokens": tokens, "written": written, "parameters": parameters, "marks": marks}


def generate_in_fresh_process(tokens: int, written: int, device: torch.device) -> dict[str, Any]:
    """The same, with nothing else in the process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--generate", str(tokens), "--device", device.type]
    command += ["--written", str(written)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    marks = ", ".join(f"{mark['tokens']:,}: {mark['megabytes']:.1f} MB" for mark in result["marks"])
    print(f"one document read and generated, memory of the process after tokens {marks}", flush=True)
    return result


def summary(values: dict[str, Any]) -> dict[str, float]:
    """The ratios by name, such as memory_ratio_4_12_reading_1600."""
    named = {}
    for row in values["rows"]:
        if row["model"] == OURS:
            continue
        size = row["size"].partition(",")[0].replace("+", "_")
        kept = "_kept" if row["model"] == XL else ""
        case = f"{size}_{row['task']}{row['batch'] if row['batch'] > 1 else ''}{kept}_{row['memory']}"
        named[f"memory_ratio_{case}"] = round(row["memory_ratio"], 3)
        named[f"time_ratio_{case}"] = round(row["time_ratio"], 3)
    return named


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    written = values["generation"]
    parts = [
        *page_head("Inference: memory and time against Transformer-XL and a KV cache", values),
        f"Peers of equal layers and width, made of the same modules; segments of {values['sizes']['segment_length']} "
        "tokens; fp32. *Peak* counts every tensor alive while reading or generating, parameters apart; *carried* is "
        "what must be kept from token to token. *Transformer-XL* caches hidden states and computes keys and values "
        "anew for each segment, as published; *keys and values kept* is a stronger form of it. Ratios are the peer's "
        "over ours. `benchmarks/inference.py` begins with all definitions.",
        "",
        "The paper says 8.1 times less memory and 3.2 times faster, without a derivation; its plot of GPU memory reads "
        "about 20.9 GB against 3.2 GB at a memory of 2048.",
    ]
    for note in values["notes"]:
        parts += ["", note]
    for size in dict.fromkeys(row["size"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["size"] == size]
        parts += ["", f"## Against Transformer-XL at the paper's memory lengths: {size}", "", peers_table(rows)]
    for size in dict.fromkeys(row["size"] for row in values["contexts"]):
        rows = [row for row in values["contexts"] if row["size"] == size]
        parts += ["", f"## Reading by context: {size}", "", contexts_table(rows)]
    parts += ["", "\\* by arithmetic: above the memory budget, not run.", "", "## One document, read and generated", ""]
    if written is None:
        return "\n".join([*parts, "Not run."])
    parts += [
        f"A model of {written['parameters']:,} parameters in a fresh process: "
        f"{written['tokens'] - written['written']:,} tokens are read and {written['written']:,} generated "
        "by `memformer.inference.generation`, one after another.",
        "",
        markdown_table(
            ["tokens", "memory of the process (MB)", "seconds since its start"],
            [[f"{m['tokens']:,}", f"{m['megabytes']:.1f}", f"{m['seconds']:.0f}"] for m in written["marks"]],
        ),
    ]
    return "\n".join(parts)


def peers_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every reader of one size."""
    columns = (
        "task", "model", "its memory", "ms a token", "carried (MiB)", "peak (MiB)", "peak / ours", "with parameters",
        "time / ours",
    )  # fmt: skip
    cells = [
        [
            row["task"] + (f" x {row['batch']}" if row["batch"] > 1 else ""),
            row["model"],
            row["memory"] or "",
            row["milliseconds_a_token"],
            f"{row['state_bytes'] / MEBI:.2f}",
            f"{row['peak_bytes'] / MEBI:.2f}",
            f"{row['memory_ratio']:.2f}",
            f"{row['memory_ratio_with_parameters']:.2f}",
            f"{row['time_ratio']:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, cells)


def contexts_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a context, two columns a model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = []
    for context in sorted({row["context"] for row in rows}):
        line: list[Any] = [f"{context:,}"]
        for model in models:
            row = next(row for row in rows if (row["context"], row["model"]) == (context, model))
            if "peak_bytes" in row:
                line += [f"{row['peak_bytes'] / MEBI:.2f}", row["milliseconds_a_token"]]
            else:
                line += [f"{row['state_bytes'] / MEBI:.2f} \\*", "not run"]
        cells.append(line)
    heads = [head for model in models for head in (f"{model}, peak (MiB)", "ms a token")]
    return markdown_table(["context", *heads], cells)


def keep(values: dict[str, Any], out: Path | None) -> None:
    """Writes what there is so far: the rest may take an hour on a busy machine."""
    values["summary"] = summary(values)
    if out:
        write_results(out, values, page(values))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    parser.add_argument("--sizes", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--budget-gib", type=float, help="largest cache that is built; default 2 on a CPU, 40 on a GPU")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of the document written on (default 1,000,000)")
    parser.add_argument("--written", type=int, default=100_000, help="how many of them are generated (default 100,000)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU; default 1, the least noisy")
    parser.add_argument("--quick", action="store_true", help="small size, short contexts, a document of 2,000 tokens")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object with the ratios")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--notes", nargs="*", default=[], help="remarks for the result files")
    parser.add_argument("--generate", type=int, metavar="N", help="only that document, of N tokens")
    options = parser.parse_args(words)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.budget_gib is None:
        options.budget_gib = 2.0 if options.device == "cpu" else 40.0
    if options.quick:
        options.sizes, options.repetitions, options.tokens, options.written = list(CASES)[:1], 3, 2_000, 500
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if options.generate:
        print(json.dumps(generate_here(options.generate, options.written, device)))
        return
    values: dict[str, Any] = provenance(device)
    print(f"{values['hardware']}; torch {values['torch']}; commit {values['commit']}")
    cases = {name: CASES[name] for name in options.sizes}
    if options.quick:
        cases = {name: dataclasses.replace(case, contexts=case.contexts[:2]) for name, case in cases.items()}
    values["sizes"] = {"segment_length": SEGMENT, "repetitions": options.repetitions, "budget_gib": options.budget_gib}
    values |= {"rows": [], "contexts": [], "generation": None, "notes": options.notes}
    for key, part in (("rows", against_transformer_xl), ("contexts", by_context)):
        for name, case in cases.items():
            values[key] += part(name, case, options, device)
            keep(values, options.out)
    values["generation"] = generate_in_fresh_process(options.tokens, options.written, device)
    keep(values, options.out)
    if options.json:
        print(json.dumps({**values["summary"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
