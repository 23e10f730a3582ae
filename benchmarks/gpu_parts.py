# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of benchmarks/gpu.py, each of which runs in a process of its own and leaves one JSON object.

    python benchmarks/gpu_parts.py PART --out FILE.json [--device cpu --small]

`--small` shrinks every size, so that the same lines run on a CPU in seconds: nothing that is measured there is meant to
be quoted. A part that finds a wrong number exits with 1; what it measured stands in its file all the same.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, interleaved_seconds, synchronize
from benchmarks.gpu_runs import PARTS as RUNS
from benchmarks.gpu_runs import Setting
from benchmarks.peers.cached_decoder import CachedDecoder, KeyValueReader
from memformer import Memformer, MemformerConfig
from memformer.engine.compilation import compile_layers
from memformer.engine.precision import AUTOCAST
from memformer.models.memformer.reader import MemformerReader
from memformer.replay import Carry, Rollout, Segment, bptt_backward, memory_replay_backward


class InPrecision:
    """A cell whose segments are computed under autocast, as the engine computes them.

    Args:
        model: The cell.
        dtype: float32 runs without autocast.
        device: Where the model lies.
    """

    def __init__(self, model: Memformer, dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._autocast = functools.partial(torch.autocast, device.type, dtype, enabled=dtype in AUTOCAST.values())

    def __call__(self, segment: Segment, memory: torch.Tensor) -> Any:
        """The cell's step."""
        with self._autocast():
            return self._model(segment, memory)

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The memory's step."""
        with self._autocast():
            return self._model.advance(segment, memory)


def shape(setting: Setting, name: str) -> MemformerConfig:
    """The model of configs/model/NAME.yaml with a vocabulary of 32,768; a tiny one where sizes are small."""
    if setting.small:
        return MemformerConfig(
            2, 3, d_model=64, num_heads=4, d_ff=128, num_memory_slots=8, vocab_size=512, start_token_id=0
        )
    values = yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text())["model"]
    return MemformerConfig(**values, vocab_size=32768, start_token_id=0)


def random_rollout(
    config: MemformerConfig, lanes: int, segments: int, length: int, device: torch.device, broken: bool = False
) -> tuple[Rollout, torch.Tensor]:
    """A rollout of random tokens, and the tokens before it; `broken`: with a reset, and a segment that is not full."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, config.vocab_size or 2, (lanes, segments + 1, length), generator=generator)
    lengths = torch.full((lanes, segments), length)
    resets = torch.zeros(lanes, segments, dtype=torch.bool)
    if broken:
        lengths[0, segments // 2], resets[0, segments // 2 + 1] = length // 2, True
    return Rollout.of(tokens[:, 1:], lengths, resets, device), tokens[:, 0].to(device)


def carry_of(model: Memformer, context: torch.Tensor) -> Carry:
    """A lane in the middle of its document."""
    full = torch.full((len(context),), context.shape[1], device=context.device)
    return Carry(model.initial_memory(len(context)).detach().clone(), context, full, ragged=False)


def flat_gradient(model: Memformer) -> torch.Tensor:
    """All gradients in one vector, float64 on the host."""
    return torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])


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


def correctness(setting: Setting) -> dict[str, Any]:
    """Replay on the device against full back-propagation in float64 on the host, with a reset and a ragged segment.

    Bounds: in float64 the tables of rotary positions, float32 in every precision, differ by a rounding of float32
    between host and device; float32 rounds at 6e-8 over sums of some thousand terms; bf16 at 4e-3 a product. `against
    BPTT` has both on the device, where float64 only orders its sums otherwise.
    """
    config = MemformerConfig(
        2, 3, d_model=128, num_heads=4, d_ff=256, num_memory_slots=16, vocab_size=512, start_token_id=0
    )
    torch.manual_seed(0)
    reference = Memformer(config).double()
    sizes = setting.pick((4, 6, 64), (2, 3, 16))
    rollout, context = random_rollout(config, *sizes, torch.device("cpu"), broken=True)
    count = float(rollout.lengths.sum())
    wanted = bptt_backward(reference, rollout, carry_of(reference, context), denominator=count, seed=0)
    gradient, found = flat_gradient(reference), {}
    rollout, context = random_rollout(config, *sizes, setting.device, broken=True)
    for name, dtype, bound in (
        ("float64", torch.float64, 1e-6),
        ("float32", torch.float32, 1e-5),
        ("bf16", torch.bfloat16, 3e-2),
        ("fp16", torch.float16, 1e-2),
    ):
        torch.manual_seed(0)
        model = Memformer(config).double()
        model.load_state_dict(reference.state_dict())
        model = model.to(setting.device, torch.float64 if dtype == torch.float64 else torch.float32)
        cell, carry = InPrecision(model, dtype, setting.device), carry_of(model, context)
        # 2^10 keeps float16's small gradients from vanishing, as the engine's loss scale does.
        scale = 1024.0 if dtype == torch.float16 else 1.0
        result = memory_replay_backward(cell, rollout, carry, denominator=count / scale, seed=0)
        error = float((flat_gradient(model) / scale - gradient).norm() / gradient.norm())
        loss = float(abs(result.segment_losses.double().sum().cpu() / wanted.segment_losses.sum() - 1))
        found[name] = {"gradient_error": error, "loss_error": loss, "bound": bound, "right": error <= bound}
    for name, dropout, dtype, bound in (
        ("against BPTT, float64", 0.0, torch.float64, 1e-12),
        # Replay draws the masks of pass 1 again: with dropout it equals full back-propagation of the same seed.
        ("against BPTT, float64, dropout", 0.1, torch.float64, 1e-12),
        ("against BPTT, float32, dropout", 0.1, torch.float32, 1e-5),
    ):
        torch.manual_seed(0)
        model = Memformer(dataclasses.replace(config, dropout=dropout)).to(setting.device, dtype)
        gradients = []
        for backward in (bptt_backward, memory_replay_backward):
            model.zero_grad()
            backward(model, rollout, carry_of(model, context), denominator=count, seed=3)
            gradients.append(flat_gradient(model))
        error = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
        found[name] = {"gradient_error": error, "bound": bound, "right": error <= bound}
    return found


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
    """Where a rollout's time goes, 350M in bf16, without and with torch.compile: seconds of kernels by kind."""
    config, found = shape(setting, "350m"), {}
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        model = Memformer(config).to(setting.device)
        if name == "compiled":
            if setting.small:
                continue
            compile_layers(model)
        cell = InPrecision(model, torch.bfloat16, setting.device)
        rollout, context = random_rollout(config, 8, 8, setting.pick(1024, 32), setting.device)
        run = functools.partial(
            memory_replay_backward, cell, rollout, carry_of(model, context), denominator=65536.0, seed=0
        )
        for _ in range(2):
            run()
        seconds = statistics.median(interleaved_seconds({name: run}, 3, setting.device)[name])
        activities = [torch.profiler.ProfilerActivity.CPU]
        if setting.device.type == "cuda":
            activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as recorded:
            run()
            synchronize(setting.device)
        kinds: dict[str, float] = {}
        kernels, by_name = 0, {}
        for event in recorded.key_averages():
            time_us = event.device_time_total if setting.device.type == "cuda" else event.self_cpu_time_total
            lower = event.key.lower()
            kind = next((kind for kind, words in KINDS if any(word in lower for word in words)), "others")
            kinds[kind] = kinds.get(kind, 0.0) + time_us / 1e6
            by_name[event.key[:120]] = round(time_us / 1e6, 5)
            kernels += event.count
        found[name] = {
            "seconds": seconds,
            "busy_seconds": sum(kinds.values()),
            "kernels": kernels,
            "seconds_by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1])),
            "longest": dict(sorted(by_name.items(), key=lambda item: -item[1])[:25]),
        }
        del model, cell, run
    return found


def flat(setting: Setting) -> dict[str, Any]:
    """Memory and time of a rollout in bf16 by its segments T, of the 350M model; full back-propagation beside."""
    config = shape(setting, "350m")
    torch.manual_seed(0)
    model = Memformer(config).to(setting.device)
    cell, rows = InPrecision(model, torch.bfloat16, setting.device), []
    lanes, length = setting.pick(2, 1), setting.pick(1024, 32)
    rollout, context = random_rollout(config, lanes, 1, length, setting.device)
    for _ in range(2):  # gradients lie there from now on, and so do the work spaces
        bptt_backward(cell, rollout, carry_of(model, context), denominator=1.0, seed=0)
    for segments in setting.pick((1, 8, 64, 256), (1, 4, 16)):
        rollout, context = random_rollout(config, lanes, segments, length, setting.device)
        row: dict[str, Any] = {"num_segments": segments, "tokens": lanes * segments * length}
        for name, backward in (("replay", memory_replay_backward), ("bptt", bptt_backward)):
            if name == "bptt" and segments > 8:
                continue
            before = allocated(setting.device, reset=True)
            began = time.perf_counter()
            backward(cell, rollout, carry_of(model, context), denominator=float(row["tokens"]), seed=0)
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
    config = shape(setting, "350m")
    torch.manual_seed(0)
    model = Memformer(config).to(setting.device, torch.bfloat16).eval()
    length, tokens = setting.pick(1024, 32), setting.pick(1_000_000, 1_000)
    rows = []
    for name in ("scored", "memory alone"):
        memory = model.initial_memory(1).clone()
        full = torch.full((1,), length, device=setting.device)
        flag = torch.zeros(1, dtype=torch.bool, device=setting.device)
        context = torch.randint(1, config.vocab_size or 2, (1, length), device=setting.device)
        before, done = allocated(setting.device, reset=True), 0
        synchronize(setting.device)
        started, marks = time.perf_counter(), {}
        while done < tokens:
            target = torch.randint(1, config.vocab_size or 2, (1, length), device=setting.device)
            segment = Segment(context, full, target, full, flag, ragged=False)
            if name == "scored":
                _, memory = model.losses(segment, memory)
            else:
                memory = model.advance(segment, memory)
            context, done = target, done + length
            if done // length in (8, -(-tokens // length)):
                synchronize(setting.device)
                marks[done] = peak(setting.device) - before
        seconds = time.perf_counter() - started
        rows.append({"what": name, "tokens": done, "tokens_per_second": done / seconds, "peak_bytes_by_tokens": marks})
    return {"segment_length": length, "rows": rows}


def generation(setting: Setting) -> dict[str, Any]:
    """Milliseconds a token, beside a decoder of as many layers with a KV cache of 1k to 128k tokens, in bf16."""
    config = dataclasses.replace(shape(setting, "350m"), segment_length=setting.pick(1024, 32))
    layers = config.num_encoder_layers + config.num_decoder_layers
    torch.manual_seed(0)
    ours = Memformer(config).to(setting.device, torch.bfloat16).eval()
    peer = CachedDecoder(config, layers).to(setting.device, torch.bfloat16).eval()
    rows = []
    for batch in setting.pick((1, 16), (1,)):
        reader = MemformerReader(ours, batch)
        first = torch.randint(1, config.vocab_size or 2, (batch, setting.pick(1500, 50)), device=setting.device)
        reader.read(first)
        variants: dict[str, Callable[[], object]] = {"Memformer": functools.partial(write, reader, 32)}
        caches = {"Memformer": 2 * reader.segment_length * layers}
        for context in setting.pick((1_000, 16_000, 131_000), (100,)):
            size = 2 * layers * batch * context * config.d_model * 2
            if size > 40e9:
                continue
            cache = KeyValueReader(peer, batch, 1, context, seen=context + 1)
            variants[f"KV cache of {context:,}"] = functools.partial(write_cached, cache, 32)
            caches[f"KV cache of {context:,}"] = size
        seconds = interleaved_seconds(variants, 3, setting.device)
        for name, times in seconds.items():
            rows.append(
                {
                    "batch": batch,
                    "model": name,
                    "milliseconds_a_token": 1e3 * statistics.median(times) / 32,
                    "ratio": statistics.median(times) / statistics.median(seconds["Memformer"]),
                }
            )
    return {"layers": layers, "segment_length": config.segment_length, "rows": rows}


def write(reader: MemformerReader, tokens: int) -> None:
    """The most likely tokens, one after another."""
    for _ in range(tokens):
        reader.read(reader.logits.argmax(-1, keepdim=True))


def write_cached(reader: KeyValueReader, tokens: int) -> None:
    """The same with a cache."""
    last = torch.zeros(reader.keys[0].shape[0], 1, dtype=torch.int64, device=reader.keys[0].device)
    for _ in range(tokens):
        last = reader.read(last)[:, -1].argmax(-1, keepdim=True)


def replay(setting: Setting) -> dict[str, Any]:
    """`benchmarks/replay.py` on this device."""
    out = setting.work / "replay"
    sizes = setting.pick(
        ["--shapes", "4_16", "--segments", "1", "8", "16", "--lanes", "8", "--segment-length", "512"],
        ["--shapes", "4_8", "--quick"],
    )
    command = [sys.executable, "benchmarks/replay.py", "--device", setting.device.type, "--out", str(out)]
    subprocess.run([*command, *sizes, "--repetitions", "3"], cwd=ROOT, check=True)
    return dict(json.loads(out.with_suffix(".json").read_text()))


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "ceilings": ceilings,
    "correctness": correctness,
    "profile": profile,
    "flat": flat,
    "reading": reading,
    "generation": generation,
    "replay": replay,
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
    parser.add_argument("--data", type=Path, help="a data set (memformer data build), for the parts that train")
    parser.add_argument("--small", action="store_true", help="tiny sizes: to see that it runs")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    setting = Setting(torch.device(options.device), options.small, options.out.parent, options.data)
    found = {**PARTS, **RUNS}[options.part](setting)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 0 if right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
