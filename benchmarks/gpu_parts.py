# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of benchmarks/gpu.py, each of which runs in a process of its own and leaves one JSON object.

    python benchmarks/gpu_parts.py PART --out FILE.json --data DATA [--device cpu --small]

`--small` shrinks every size, so that the same lines run on a CPU in seconds: nothing that is measured there is meant to
be quoted. A part that finds a wrong number exits with 1; what it measured stands in its file all the same. On a
simulated GPU no number is right or wrong.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import programs
from benchmarks.common import interleaved_seconds, synchronize
from benchmarks.gpu_gradients import (
    InPrecision,
    carry_of,
    compiled_correctness,
    correctness,
    flat_gradient,
    random_rollout,
    shape,
)
from benchmarks.gpu_runs import PARTS as RUNS
from benchmarks.gpu_runs import Setting
from benchmarks.peers.cached_decoder import CachedDecoder, KeyValueReader
from benchmarks.simulated_gpu import library
from memformer import Memformer
from memformer.engine.compilation import compile_layers
from memformer.engine.weight_copies import WeightCopies
from memformer.models.graphed import PLAIN_CALLS, Graphed, graphs_run
from memformer.models.memformer.reader import MemformerReader
from memformer.replay import (
    Carry,
    Rollout,
    Segment,
    bptt_backward,
    grouped_replay_backward,
    memory_replay_backward,
)
from memformer.replay.backward import autograd_backward


def ceilings(setting: Setting) -> dict[str, Any]:
    """What the device does at best, taken in the same run: a bf16 matrix product, and a copy."""
    size, dtype = setting.pick(8192, 256), torch.bfloat16
    a, b = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    numbers = torch.empty(setting.pick(1 << 30, 1 << 20), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(numbers)
    seconds = interleaved_seconds(
        {"product": lambda: [a @ b for _ in range(10)], "copy": lambda: [target.copy_(numbers) for _ in range(10)]},
        5,
        setting.device,
    )
    return {
        "matmul_tflops": 10 * 2 * size**3 / statistics.median(seconds["product"]) / 1e12,
        "copy_gb_per_second": 10 * 2 * numbers.numel() / statistics.median(seconds["copy"]) / 1e9,
    }


KINDS = (
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "splitk")),
    ("attention", ("flash", "fmha", "sdpa", "attention", "cudnn")),
    ("layer norms", ("layer_norm", "layernorm", "gammabeta")),
    ("fused by torch.compile", ("triton",)),
    ("optimizer", ("multi_tensor", "fusedadam", "adam")),
    ("copies and casts", ("copy", "memcpy", "memset", "cat", "fill")),
    ("softmax and loss", ("softmax", "nll_loss")),
    ("embedding", ("embedding", "index", "gather", "scatter", "sort")),
    ("sums", ("reduce",)),
    ("elementwise", ("elementwise",)),
)
"""Kernels by a part of their names, in lower case; the first match counts."""


def profile(setting: Setting) -> dict[str, Any]:
    """Where a rollout's time goes, 350M in bf16, without and with torch.compile: seconds of kernels by kind.

    With copies of the weights, as the engine trains it. And what the device waits: in `idle_share` of the seconds no
    kernel runs, and the host needs `launch_seconds` until it has asked for all of them. Where these are nearly all of
    the seconds, the host is what the rollout waits for.
    """
    config, found = shape(setting, "350m"), {}
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        model = Memformer(config).to(setting.device)
        if name == "compiled":
            if not setting.compiles:
                continue
            compile_layers(model)
        cell = InPrecision(model, torch.bfloat16, setting.device)
        rollout, context = random_rollout(config, *setting.pick((8, 8, 1024), (2, 2, 16)), setting.device)
        run = functools.partial(
            _as_trained, WeightCopies(model, torch.bfloat16), cell, rollout, carry_of(model, context)
        )
        for _ in range(2):
            run()
        times = [launched(run, setting.device) for _ in range(setting.repetitions)]
        seconds, launch_seconds = (statistics.median(each) for each in zip(*times, strict=True))
        # The host's are left out where the device can be watched alone.
        there = torch.profiler.supported_activities()
        gpu = torch.profiler.ProfilerActivity.CUDA
        activities = [gpu] if gpu in there else list(there)
        with torch.profiler.profile(activities=activities) as recorded:
            run()
            synchronize(setting.device)
        kernels = in_kernels(recorded.key_averages(), gpu in there)
        found[name] = {"seconds": seconds, "launch_seconds": launch_seconds, **kernels}
        if gpu in there:
            found[name]["idle_share"] = 1 - kernels["busy_seconds"] / seconds
        del model, cell, run
    return found


def _as_trained(copies: WeightCopies, cell: InPrecision, rollout: Rollout, carry: Carry) -> None:
    def backward(objective: torch.Tensor, remaining: int) -> None:
        with copies.adding_together():
            autograd_backward(objective, remaining)

    with copies.in_place():
        cell.backward(memory_replay_backward, rollout, carry, backward=backward, denominator=65536.0, seed=0)


def launched(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds that it takes, and seconds after which the host has asked for all of it."""
    synchronize(device)
    began = time.perf_counter()
    run()
    asked = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - began, asked - began


def in_kernels(events: Iterable[Any], on_gpu: bool) -> dict[str, Any]:
    """What a profile has of kernels: seconds in all, by kind and of the longest, and how many.

    Args:
        events: Of torch's profiler, averaged by name.
        on_gpu: A GPU's own are asked for: the calls that launch them take no time of it, and a span that it was told of
            is the time of kernels which stand there too. Otherwise all are of the host, without what is inside of each.
    """
    kinds, by_name, count = dict[str, float](), dict[str, float](), 0
    for event in events:
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if on_gpu and (event.device_type == DeviceType.CPU or event.is_user_annotation or not time_us):
            continue
        kind = next((kind for kind, words in KINDS if any(word in event.key.lower() for word in words)), "others")
        kinds[kind] = kinds.get(kind, 0.0) + time_us / 1e6
        by_name[event.key[:120]] = by_name.get(event.key[:120], 0.0) + time_us / 1e6
        count += event.count
    longest = sorted(by_name.items(), key=lambda item: -item[1])[:25]
    return {
        "busy_seconds": sum(kinds.values()),
        "kernels": count,
        "seconds_by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "longest": {name: round(seconds, 5) for name, seconds in longest},
    }


def flat(setting: Setting) -> dict[str, Any]:
    """Memory and time of a rollout in bf16 by its segments T, of the 350M model; full back-propagation beside."""
    config = shape(setting, "350m")
    torch.manual_seed(0)
    model = Memformer(config).to(setting.device)
    cell, rows = InPrecision(model, torch.bfloat16, setting.device), []
    lanes, length = setting.pick(2, 1), setting.pick(1024, 32)
    rollout, context = random_rollout(config, lanes, 1, length, setting.device)
    for _ in range(2):  # gradients lie there from now on, and so do the work spaces
        cell.backward(bptt_backward, rollout, carry_of(model, context), denominator=1.0, seed=0)
    for segments in setting.pick((1, 8, 64, 256), (1, 2)):
        rollout, context = random_rollout(config, lanes, segments, length, setting.device)
        row: dict[str, Any] = {"num_segments": segments, "tokens": lanes * segments * length}
        for name, backward in (("replay", memory_replay_backward), ("bptt", bptt_backward)):
            if name == "bptt" and segments > 8:
                continue
            before = allocated(setting.device, reset=True)
            began = time.perf_counter()
            cell.backward(backward, rollout, carry_of(model, context), denominator=float(row["tokens"]), seed=0)
            synchronize(setting.device)
            row[f"{name}_seconds"] = time.perf_counter() - began
            row[f"{name}_bytes"] = peak(setting.device) - before
        rows.append(row)
    return {"lanes": lanes, "segment_length": length, "rows": rows}


def allocated(device: torch.device, reset: bool = False) -> int:
    """Bytes of the device's tensors; `reset`: the peak counts from here."""
    if device.type != "cuda":
        return 0
    synchronize(device)
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def peak(device: torch.device) -> int:
    """The most bytes since the reset."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


@torch.no_grad()
def reading(setting: Setting) -> dict[str, Any]:
    """One document of 1,000,000 tokens scored, and read for its memory alone: the 350M model in bf16."""
    config = dataclasses.replace(shape(setting, "350m"), segment_length=setting.pick(1024, 32))
    torch.manual_seed(0)
    model = Memformer(config).to(setting.device, torch.bfloat16).eval()
    length, tokens = setting.pick(1024, 32), setting.pick(1_000_000, 320)
    rows = []
    for name in ("scored", "memory alone", "memory alone, no graph"):
        memory = model.initial_memory(1).clone()
        reader = (WithoutGraph if name.endswith("no graph") else MemformerReader)(model)
        full = torch.full((1,), length, device=setting.device)
        flag = torch.zeros(1, dtype=torch.bool, device=setting.device)
        context = torch.randint(1, config.vocab_size or 2, (1, length), device=setting.device)
        before, done = allocated(setting.device, reset=True), 0
        synchronize(setting.device)
        started, marks = time.perf_counter(), {}
        while done < tokens:
            target = torch.randint(1, config.vocab_size or 2, (1, length), device=setting.device)
            if name == "scored":
                _, memory = model.losses(Segment(context, full, target, full, flag, ragged=False), memory)
            else:
                reader.read(target)
            context, done = target, done + length
            if done // length in (8, -(-tokens // length)):
                synchronize(setting.device)
                marks[done] = peak(setting.device) - before
        seconds = time.perf_counter() - started
        rows.append({"what": name, "tokens": done, "tokens_per_second": done / seconds, "peak_bytes_by_tokens": marks})
        del reader
    return {"segment_length": length, "rows": rows}


def generation(setting: Setting) -> dict[str, Any]:
    """Milliseconds a token, beside a decoder of as many layers with a KV cache of 1k to 128k tokens, in bf16.

    On a GPU a token of each is one CUDA graph; of ours also as its layers are written.
    """
    config = dataclasses.replace(shape(setting, "350m"), segment_length=setting.pick(1024, 16))
    layers = config.num_encoder_layers + config.num_decoder_layers
    torch.manual_seed(0)
    ours = Memformer(config).to(setting.device, torch.bfloat16).eval()
    peer = CachedDecoder(config, layers).to(setting.device, torch.bfloat16).eval()
    rows, graphs, written = [], [], setting.pick(32, 2)
    for batch in setting.pick((1, 16), (1,)):
        first = torch.randint(1, config.vocab_size or 2, (batch, setting.pick(1500, 50)), device=setting.device)
        readers = {"Memformer": MemformerReader(ours, batch), "Memformer, no graph": WithoutGraph(ours, batch)}
        for reader in readers.values():
            reader.read(first)
        rows_of_logits = [next_logits(reader, first[:, : 2 * PLAIN_CALLS]) for reader in readers.values()]
        error = float((rows_of_logits[0] - rows_of_logits[1]).norm() / rows_of_logits[1].norm())
        graphs.append({"batch": batch, "logits_error": error, "bound": 3e-2, "right": error <= 3e-2})
        variants: dict[str, Callable[[], object]] = {
            name: functools.partial(write, reader, written) for name, reader in readers.items()
        }
        for context in setting.pick((1_000, 16_000, 131_000), (100,)):
            size = 2 * layers * batch * context * config.d_model * 2
            if size > 40e9:
                continue
            cache = KeyValueReader(peer, batch, 1, context, seen=context + 1)
            step = Graphed(cache.step) if graphs_run(setting.device) else cache.step
            variants[f"KV cache of {context:,}"] = functools.partial(write_cached, cache, step, written)
        seconds = interleaved_seconds(variants, setting.repetitions, setting.device)
        for name, times in seconds.items():
            rows.append(
                {
                    "batch": batch,
                    "model": name,
                    "milliseconds_a_token": 1e3 * statistics.median(times) / written,
                    "ratio": statistics.median(times) / statistics.median(seconds["Memformer"]),
                }
            )
    return {"layers": layers, "segment_length": config.segment_length, "rows": rows, "graphs": graphs}


def next_logits(reader: MemformerReader, tokens: torch.Tensor) -> torch.Tensor:
    """Logits behind some more tokens, in float32, each read when those before were answered."""
    logits = reader.logits
    for token in tokens.T:
        reader.read(token[:, None])
        logits = reader.logits
    return logits.float()


class WithoutGraph(MemformerReader):
    """A reader whose tokens are launched kernel by kernel."""

    fixed = False


@torch.no_grad()
def write(reader: MemformerReader, tokens: int) -> None:
    """The most likely tokens, one after another."""
    for _ in range(tokens):
        reader.read(reader.logits.argmax(-1, keepdim=True))


@torch.no_grad()
def write_cached(reader: KeyValueReader, step: Callable[..., torch.Tensor], tokens: int) -> None:
    """The same with a cache that is full."""
    last = torch.zeros(reader.keys[0].shape[0], 1, dtype=torch.int64, device=reader.keys[0].device)
    for _ in range(tokens):
        now = torch.tensor([reader.seen], device=last.device)
        last, reader.seen = step(last, now)[:, -1].argmax(-1, keepdim=True), reader.seen + 1


def replay(setting: Setting) -> dict[str, Any]:
    """`benchmarks/replay.py` on this device, for T = 1 to 64: 64 graphs of 4+16 layers and 1,024 tokens fit 80 GB."""
    out, log = setting.work / "replay", setting.work / "replay.log"
    sizes = setting.pick(
        ["4_16", "--segments", "1", "4", "16", "64", "--lanes", "2", "--segment-length", "512", "--repetitions", "3"],
        ["1_1", "--segments", "2", "--lanes", "8", "--segment-length", "16", "--repetitions", "1"],
    )
    words = ["benchmarks/replay.py", "--device", setting.device.type, "--out", str(out), "--shapes", *sizes]
    programs.finish(programs.start(words, log), log)
    return dict(json.loads(out.with_suffix(".json").read_text()))


def groups(setting: Setting) -> dict[str, Any]:
    """A rollout of one lane with the decoder of 1 to 8 segments as one batch: 350M in bf16, segments of 512 tokens."""
    config = shape(setting, "350m")
    torch.manual_seed(0)
    model = Memformer(config).to(setting.device)
    cell, rows = InPrecision(model, torch.bfloat16, setting.device), []
    segments, length = setting.pick(8, 2), setting.pick(512, 16)
    rollout, context = random_rollout(config, 1, segments, length, setting.device)
    given = {"denominator": float(segments * length), "seed": 0}
    ways: dict[int, Callable[[], Any]] = {}
    for group in setting.pick((1, 2, 4, 8), (1, 2)):
        plain = functools.partial(grouped_replay_backward, group=group) if group > 1 else memory_replay_backward
        ways[group] = functools.partial(cell.backward, plain, rollout, carry_of(model, context), **given)
    gradients, peaks = {}, {}
    ways[1]()  # gradients lie there from now on, and so do the work spaces
    for group, way in ways.items():
        model.zero_grad(set_to_none=False)
        before = allocated(setting.device, reset=True)
        way()
        synchronize(setting.device)
        peaks[group] = peak(setting.device) - before
        gradients[group] = flat_gradient(model)
    seconds = interleaved_seconds({str(group): way for group, way in ways.items()}, setting.repetitions, setting.device)
    for group, times in seconds.items():
        error = float((gradients[int(group)] - gradients[1]).norm() / gradients[1].norm())
        rows.append(
            {
                "group": int(group),
                "seconds": statistics.median(times),
                "peak_bytes": peaks[int(group)],
                "gradient_error": error,
                "bound": 3e-2,
                "right": error <= 3e-2,  # products of 16 bits in other batches
            }
        )
    return {"num_segments": segments, "segment_length": length, "rows": rows}


def wavefront(setting: Setting) -> dict[str, Any]:
    """One lane of a backbone with a matrix at each layer along the diagonals of segments and layers, beside replay.

    Gradients are compared in float32, times taken of weights in bf16.
    """
    from benchmarks.backbone_wavefront_training import IDS, config_of, gradient_of, ways_of
    from memformer.models.backbone import Backbone

    case = setting.pick(
        {"layers": 16, "width": 1024, "segment_length": 128, "segments": 16, "lanes": 1},
        {"layers": 2, "width": 64, "segment_length": 8, "segments": 2, "lanes": 1},
    )
    torch.manual_seed(0)
    model = Backbone(config_of(case)).to(setting.device)
    lanes, count, length = case["lanes"], case["segments"], case["segment_length"]
    resets = torch.zeros(lanes, count, dtype=torch.bool)
    resets[:, 0] = True
    tokens = torch.randint(IDS - 1, (lanes, count, length))
    rollout = Rollout.of(tokens, torch.full((lanes, count), length), resets, setting.device)
    windows = setting.pick([4, count], [count])
    ways = ways_of(model, rollout, Carry.empty(model.initial_memory(lanes), length), windows)
    gradients = {name: gradient_of(model, way) for name, way in ways.items()}
    expected = gradients["replay"]
    model.zero_grad()
    model = model.to(torch.bfloat16)
    ways = ways_of(model, rollout, Carry.empty(model.initial_memory(lanes), length), windows)
    seconds, rows = interleaved_seconds(ways, setting.repetitions, setting.device), []
    for name, times in seconds.items():
        error = float((gradients[name] - expected).norm() / expected.norm())
        rows.append(
            {
                "way": name,
                "tokens_per_second": lanes * count * length / statistics.median(times),
                "gradient_error": error,
                "bound": 1e-4,
                "right": error <= 1e-4,
            }
        )
    return {**case, "rows": rows}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "ceilings": ceilings,
    "correctness": correctness,
    "correctness-compiled": compiled_correctness,
    "profile": profile,
    "flat": flat,
    "reading": reading,
    "generation": generation,
    "replay": replay,
    "groups": groups,
    "wavefront": wavefront,
}


def right(found: Any) -> bool:
    """Whether nothing below says that it is not."""
    if isinstance(found, dict):
        return found.get("right", True) is True and all(right(value) for value in found.values())
    return all(map(right, found)) if isinstance(found, list) else True


def main() -> int:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, *RUNS])
    parser.add_argument(
        "--out", type=Path, required=True, help="the JSON file; its directory also takes what runs leave"
    )
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--data", type=Path, required=True, help="a data set (memformer data build)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: to see that it runs")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    setting = Setting(torch.device(options.device), options.small, options.out.parent, options.data)
    found = {**PARTS, **RUNS}[options.part](setting)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 0 if right(found) or library.loaded() else 1


if __name__ == "__main__":
    sys.exit(main())
