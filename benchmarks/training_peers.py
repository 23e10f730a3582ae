# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Training: tokens a second and peak memory of memory replay by rollout length, beside other implementations' replay.

    make peers && python benchmarks/training_peers.py          about 15 minutes on one CPU core
    python benchmarks/training_peers.py --quick --json         under 1 minute; the last line is one JSON object
    python benchmarks/training_peers.py --out benchmarks/results/DATE-cpu-training-peers

What takes turns, at the same lanes, segments and tokens, forward and backward of one rollout, no optimizer:

* this project's memory replay (MRBP), full back-propagation through time (BPTT), per-segment gradient checkpointing.
* RMT: `recurrent-memory-transformer-pytorch`, its own memory replay; fused attention on, the memories of
  Transformer-XL off (with them its gradients are wrong); its depth is our encoder and decoder layers together, the
  same width, memory tokens = our slots, and once more 10 memory tokens, as its paper has.
* memformer (PyPI): its own replay, which scores the last segment alone; and the same with every segment scored, which
  is what a language model needs. As many encoder and decoder layers, the same width and slots; its feed-forward is
  four times as wide as the model, whatever one asks.

Tokens a second count every token that is read, scored or not. Peak memory: the most bytes of all tensors alive, less
parameters and gradients; on a GPU the allocator's.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.activations import LiveTensors
from benchmarks.common import (
    interleaved_seconds,
    keep_freed_memory,
    markdown_table,
    page_head,
    provenance,
    synchronize,
    write_results,
)
from benchmarks.peers import namesake
from benchmarks.peers.models import available
from benchmarks.replay import CheckpointedCell
from memformer import Memformer, MemformerConfig
from memformer.replay import Carry, Rollout, bptt_backward, memory_replay_backward

VOCABULARY = 512
SEGMENTS = {"4+8, width 128": [1, 2, 4, 8, 16, 32, 64], "4+12, width 256": [1, 4]}
SIZES = {
    "4+8, width 128": MemformerConfig(
        4, 8, d_model=128, num_heads=4, d_ff=512, num_memory_slots=32, vocab_size=VOCABULARY, start_token_id=0
    ),
    "4+12, width 256": MemformerConfig(
        4, 12, d_model=256, num_heads=4, d_ff=1024, num_memory_slots=32, vocab_size=VOCABULARY, start_token_id=0
    ),
}
MRBP, BPTT, CHECKPOINTING = "MRBP", "BPTT", "checkpointing"
RMT, RMT_10, LAST, EVERY = "RMT", "RMT, 10 memory tokens", "memformer (PyPI)", "memformer (PyPI), every segment"
METHODS = (MRBP, BPTT, CHECKPOINTING, RMT, RMT_10, LAST, EVERY)
PAPER = {
    "bptt": {"megabytes": 16177, "speed": 1.0},
    "checkpointing": {"megabytes": 9885, "speed": 0.48},
    "mrbp": {"megabytes": 7229, "speed": 0.9},
    "megabytes_from_4_to_16_segments": 62,
}
"""The paper's table: 12 layers, 8 heads, hidden 512, memory 32, horizon 4."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One implementation: its model, and what computes the gradients of one rollout."""

    model: nn.Module
    backward: Callable[[], object]


def ours(config: MemformerConfig, tokens: torch.Tensor) -> dict[str, Method]:
    """Our three ways; tokens are int64 [B, 1 + T, S], the first segment is the carry."""
    torch.manual_seed(0)
    model = Memformer(config).to(tokens.device)
    lanes, segments, length = tokens.shape[0], tokens.shape[1] - 1, tokens.shape[2]
    lengths, resets = torch.full((lanes, segments), length), torch.zeros(lanes, segments, dtype=torch.bool)
    rollout = Rollout.of(tokens[:, 1:].cpu(), lengths, resets, tokens.device)
    full = torch.full((lanes,), length, device=tokens.device)
    carry = Carry(model.initial_memory(lanes).detach().clone(), tokens[:, 0], full, ragged=False)
    count = float(rollout.tokens.numel())
    checkpointed = CheckpointedCell(model)
    return {
        MRBP: Method(model, lambda: memory_replay_backward(model, rollout, carry, denominator=count)),
        BPTT: Method(model, lambda: bptt_backward(model, rollout, carry, denominator=count)),
        CHECKPOINTING: Method(model, lambda: bptt_backward(checkpointed, rollout, carry, denominator=count)),
    }


def recurrent_memory(config: MemformerConfig, tokens: torch.Tensor, memory_tokens: int) -> Method:
    """RMT with its own replay."""
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        transformer = RecurrentMemoryTransformer(
            dim=config.d_model,
            num_tokens=VOCABULARY,
            depth=config.num_encoder_layers + config.num_decoder_layers,
            num_memory_tokens=memory_tokens,
            seq_len=tokens.shape[2],
            dim_head=config.d_model // config.num_heads,
            heads=config.num_heads,
            ff_mult=config.d_ff // config.d_model,
            use_flash_attn=True,
            use_xl_memories=False,
            add_write_to_next_write_mem=True,
            next_write_mem_stop_grad=False,
            num_residual_streams=1,
        )
    model = RecurrentMemoryTransformerWrapper(transformer).to(tokens.device)
    # One token more: it shifts inputs and targets itself.
    text = torch.cat([tokens[:, 1:].flatten(1), tokens[:, 0, :1]], dim=1)
    return Method(model, lambda: model(text, memory_replay_backprop=True))


def pypi_memformer(config: MemformerConfig, tokens: torch.Tensor) -> dict[str, Method]:
    """lucidrains' memformer with its own replay, and with every segment scored."""
    torch.manual_seed(0)
    package, length = namesake.load(), tokens.shape[2]
    model = package.Memformer(
        dim=config.d_model,
        num_memory_slots=config.num_memory_slots,
        mem_update_attn_heads=config.num_heads,
        enc_num_tokens=VOCABULARY,
        enc_depth=config.num_encoder_layers,
        enc_heads=config.num_heads,
        enc_max_seq_len=length,
        dec_num_tokens=VOCABULARY,
        dec_depth=config.num_decoder_layers,
        dec_heads=config.num_heads,
        dec_max_seq_len=length,
    ).to(tokens.device)
    source = tokens[:, :-1].contiguous()
    targets = [torch.cat([tokens[:, t, -1:], tokens[:, t + 1]], dim=1) for t in range(tokens.shape[1] - 1)]
    segments = list(source.unbind(1))
    return {
        LAST: Method(model, lambda: package.memory_replay_backprop(model, source.flatten(1), targets[-1])),
        EVERY: Method(model, lambda: namesake.replay_scoring_every_segment(model, segments, targets)),
    }


def methods(config: MemformerConfig, tokens: torch.Tensor) -> dict[str, Method]:
    """All that is installed."""
    found = ours(config, tokens)
    if available("rmt"):
        found[RMT] = recurrent_memory(config, tokens, config.num_memory_slots)
        found[RMT_10] = recurrent_memory(config, tokens, 10)
    if namesake.available():
        found.update(pypi_memformer(config, tokens))
    return found


def allocated_bytes(method: Method, device: torch.device) -> int:
    """Peak of all tensors above parameters, gradients and inputs."""
    method.backward()  # gradients are there from now on
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        method.backward()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with LiveTensors() as live:
        method.backward()
    return live.meter.peak_bytes


def measure(name: str, segments: int, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """One row for each method."""
    config = SIZES[name]
    generator = torch.Generator().manual_seed(1)
    shape = (options.lanes, segments + 1, options.segment_length)
    tokens = torch.randint(1, VOCABULARY, shape, generator=generator).to(device)
    chosen = {method: each for method, each in methods(config, tokens).items() if method in options.methods}
    count = options.lanes * segments * options.segment_length
    clock = time.perf_counter if device.type == "cuda" or options.threads > 1 else time.process_time
    seconds = interleaved_seconds(
        {method: functools.partial(each.backward) for method, each in chosen.items()},
        options.repetitions,
        device,
        clock,
    )
    rows = []
    base = statistics.median(seconds[MRBP])
    for method, each in chosen.items():
        middle = statistics.median(seconds[method])
        row = {
            "size": name,
            "num_segments": segments,
            "method": method,
            "parameters": sum(p.numel() for p in each.model.parameters()),
            "tokens_per_second": count / middle,
            "spread": (max(seconds[method]) - min(seconds[method])) / middle,
            "allocated_bytes": allocated_bytes(each, device),
            "our_speed_over_its": middle / base,
        }
        each.model.zero_grad()
        rows.append(row)
        print(
            f"{name} T={segments:<3} {method:<32} {row['tokens_per_second']:9,.0f} tok/s (MRBP is "
            f"{row['our_speed_over_its']:.2f} times as fast), {row['allocated_bytes'] / 2**20:8.1f} MiB",
            flush=True,
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ratios by name, such as speed_over_RMT_4_8_T16, and the memory that 12 more segments cost."""
    short = {
        RMT: "rmt",
        RMT_10: "rmt_10",
        LAST: "pypi",
        EVERY: "pypi_every",
        BPTT: "bptt",
        CHECKPOINTING: "checkpointing",
    }
    named: dict[str, float] = {}
    for row in rows:
        size = row["size"].partition(",")[0].replace("+", "_")
        if row["method"] in short:
            name = f"speed_over_{short[row['method']]}_{size}_T{row['num_segments']}"
            named[name] = round(row["our_speed_over_its"], 3)
        else:
            named[f"mebibytes_{size}_T{row['num_segments']}"] = round(row["allocated_bytes"] / 2**20, 3)
    return named


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes = values["sizes"]
    parts = [
        *page_head("Training: replay by rollout length, beside other implementations", values),
        f"{sizes['lanes']} lanes, {sizes['segment_length']} tokens a segment, fp32, medians of {sizes['repetitions']} "
        "interleaved repetitions; *spread* is (slowest - fastest) / median. Forward and backward of one rollout. "
        "`benchmarks/training_peers.py` begins with what each row is. *memformer (PyPI)* scores the last segment "
        "alone, as it is published: no language model can be trained with it.",
    ]
    for note in values["notes"]:
        parts += ["", note]
    columns = ["T", "method", "parameters (M)", "tokens/s", "spread", "speed of MRBP / its", "peak memory (MiB)"]
    for size in dict.fromkeys(row["size"] for row in values["rows"]):
        cells = [
            [
                row["num_segments"],
                row["method"],
                f"{row['parameters'] / 1e6:.2f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['spread']:.2f}",
                f"{row['our_speed_over_its']:.2f}",
                f"{row['allocated_bytes'] / 2**20:.1f}",
            ]
            for row in values["rows"]
            if row["size"] == size
        ]
        parts += ["", f"## {size}", "", markdown_table(columns, cells)]
    paper = values["paper"]
    cells = [
        [name, f"{paper[name]['megabytes']:,}", paper[name]["speed"]] for name in ("bptt", "checkpointing", "mrbp")
    ]
    parts += ["", "## The paper's own figures (T = 4, 12 layers, width 512, GPU)", ""]
    parts += [markdown_table(["method", "MB", "speed"], cells), ""]
    parts += [f"From 4 to 16 segments MRBP needs {paper['megabytes_from_4_to_16_segments']} MB more there."]
    return "\n".join(parts)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all; MRBP is always in"
    )
    parser.add_argument("--segments", nargs="+", type=int, help="T; default 1 to 64, of the larger size 1 and 4")
    parser.add_argument("--lanes", type=int, help="B; default 2 on a CPU, 32 on a GPU")
    parser.add_argument("--segment-length", type=int, help="S in tokens; default 64 on a CPU, 512 on a GPU")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each method (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU; default 1, the least noisy")
    parser.add_argument("--quick", action="store_true", help="the small size, T = 1 and 4")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object with the ratios")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--notes", nargs="*", default=[], help="remarks for the result files")
    options = parser.parse_args(words)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.sizes, options.segments = list(SIZES)[:1], [1, 4]
    options.methods = {MRBP, *options.methods}
    options.lanes = options.lanes or (2 if options.device == "cpu" else 32)
    options.segment_length = options.segment_length or (64 if options.device == "cpu" else 512)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    warnings.filterwarnings("ignore", category=FutureWarning)  # RMT's use of an older name in torch
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    values: dict[str, Any] = provenance(device)
    print(f"{values['hardware']}; torch {values['torch']}; commit {values['commit']}")
    values["sizes"] = {name: getattr(options, name) for name in ("lanes", "segment_length", "repetitions", "threads")}
    values |= {"rows": [], "paper": PAPER, "notes": options.notes}
    for name in options.sizes:
        for segments in options.segments or SEGMENTS[name]:
            values["rows"] += measure(name, segments, options, device)
            values["summary"] = summary(values["rows"])
            if options.out:  # after every length: the next may take long on a busy machine
                write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps({**values["summary"], "hardware": values["hardware"], "commit": values["commit"]}))


if __name__ == "__main__":
    main()
