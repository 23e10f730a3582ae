# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The parts of benchmarks/gpu.py that ask whether gradients are right, and the rollouts that other parts time."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import ROOT
from benchmarks.gpu_runs import Setting
from memformer import Memformer, MemformerConfig
from memformer.engine.compilation import compile_layers
from memformer.engine.precision import AUTOCAST
from memformer.replay import Carry, Rollout, RolloutResult, Segment, bptt_backward, memory_replay_backward


class InPrecision:
    """A cell whose segments are computed under autocast, as the engine computes them.

    Args:
        model: The cell.
        dtype: float32 and float64 run without autocast.
        device: Where the model lies.
    """

    def __init__(self, model: Memformer, dtype: torch.dtype, device: torch.device) -> None:
        self._model, self._kind = model, device.type
        self._autocast = functools.partial(torch.autocast, device.type, dtype, enabled=dtype in AUTOCAST.values())

    def __call__(self, segment: Segment, memory: torch.Tensor) -> Any:
        """The cell's step."""
        with self._autocast():
            return self._model(segment, memory)

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The memory's step."""
        with self._autocast():
            return self._model.advance(segment, memory)

    def encode_and_write(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's output and the memory's step."""
        with self._autocast():
            return self._model.encode_and_write(segment, memory)

    def score(self, segment: Segment, context: torch.Tensor) -> torch.Tensor:
        """The decoder."""
        with self._autocast():
            return self._model.score(segment, context)

    def backward(self, method: Callable[..., RolloutResult], rollout: Rollout, carry: Carry, **options: Any) -> Any:
        """A rollout by `memory_replay_backward` or another of its kind, its weights cast once as in the engine."""
        with torch.autocast(self._kind, enabled=False):
            return method(self, rollout, carry, **options)


def shape(setting: Setting, name: str) -> MemformerConfig:
    """The model of configs/model/NAME.yaml with a vocabulary of 32,768; a tiny one where sizes are small."""
    if setting.small:
        sizes = {"d_model": 32, "num_heads": 2, "d_ff": 64, "num_memory_slots": 8}
        return MemformerConfig(1, 1, **sizes, vocab_size=257, start_token_id=256)
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


def forward_passes() -> None:
    """A segment of the tiny model and size that runs are tried with, in float32 and in bf16."""
    device = torch.device("cuda")
    setting = Setting(device, True, Path(), Path())
    model = Memformer(shape(setting, "")).to(device)
    for ragged in (False, True):
        rollout, context = random_rollout(model.config, 8, 3, 16, device, broken=ragged)
        carry = carry_of(model, context)
        for dtype in (torch.float32, torch.bfloat16):
            cell, segment = InPrecision(model, dtype, device), rollout.segment(1, carry)
            with torch.no_grad():
                cell(segment, cell.advance(segment, carry.memory))
            cell(segment, carry.memory)


PRECISIONS: dict[str, tuple[torch.dtype, float]] = {
    "float64": (torch.float64, 1e-6),
    "float32": (torch.float32, 1e-5),
    "bf16": (torch.bfloat16, 3e-2),
    "bf16, stream in bf16": (torch.bfloat16, 3e-2),
    "fp16": (torch.float16, 1e-2),
}
"""What is computed in, and how far a gradient may be from the one in float64 on the host.

In float64 the tables of rotary positions, float32 in every precision, differ by a rounding of float32 between host and
device; float32 rounds at 6e-8 over sums of some thousand terms; bf16 at 4e-3 a product, fp16 at 5e-4.
"""


def correctness(setting: Setting) -> dict[str, Any]:
    """Replay on the device against full back-propagation in float64 on the host, with a reset and a ragged segment;
    and against full back-propagation on the device."""
    return against_host(setting, tuple(PRECISIONS), compiled=False) | same_as_bptt(setting)


def compiled_correctness(setting: Setting) -> dict[str, Any]:
    """The same of layers that are compiled, which is what runs on a GPU do."""
    return against_host(setting, ("float32", "bf16", "bf16, stream in bf16"), compiled=setting.compiles)


def tested_shape(setting: Setting) -> MemformerConfig:
    """A model whose gradient the host has soon."""
    if setting.small:
        return shape(setting, "")
    return MemformerConfig(
        2, 3, d_model=128, num_heads=4, d_ff=256, num_memory_slots=16, vocab_size=512, start_token_id=0
    )


def against_host(setting: Setting, names: Sequence[str], compiled: bool) -> dict[str, Any]:
    """Distances of gradients from that of the host, relative to it; with their bounds (`PRECISIONS`)."""
    config = tested_shape(setting)
    torch.manual_seed(0)
    reference = Memformer(config).double()
    sizes = setting.pick((4, 6, 64), (2, 3, 16))
    rollout, context = random_rollout(config, *sizes, torch.device("cpu"), broken=True)
    count = float(rollout.lengths.sum())
    wanted = bptt_backward(reference, rollout, carry_of(reference, context), denominator=count, seed=0)
    gradient, found = flat_gradient(reference), {}
    rollout, context = random_rollout(config, *sizes, setting.device, broken=True)
    for name in names:
        dtype, bound = PRECISIONS[name]
        stream: Any = "compute" if "stream" in name else "float32"
        model = Memformer(dataclasses.replace(config, residual_dtype=stream)).double()
        model.load_state_dict(reference.state_dict())
        model = model.to(setting.device, torch.float64 if dtype == torch.float64 else torch.float32)
        if compiled:
            compile_layers(model)
        cell, carry = InPrecision(model, dtype, setting.device), carry_of(model, context)
        # 2^10 keeps float16's small gradients from vanishing, as the engine's loss scale does.
        scale = 1024.0 if dtype == torch.float16 else 1.0
        result = cell.backward(memory_replay_backward, rollout, carry, denominator=count / scale, seed=0)
        error = float((flat_gradient(model) / scale - gradient).norm() / gradient.norm())
        loss = float(abs(result.segment_losses.double().sum().cpu() / wanted.segment_losses.sum() - 1))
        found[name] = {"gradient_error": error, "loss_error": loss, "bound": bound, "right": error <= bound}
    return found


def same_as_bptt(setting: Setting) -> dict[str, Any]:
    """Replay against full back-propagation, both on the device, where float64 only orders its sums otherwise."""
    config = tested_shape(setting)
    rollout, context = random_rollout(config, *setting.pick((4, 6, 64), (2, 3, 16)), setting.device, broken=True)
    count, found = float(rollout.lengths.sum()), {}
    for name, dropout, dtype, bound in (
        ("float64", 0.0, torch.float64, 1e-12),
        # Replay draws the masks of pass 1 again: with dropout it equals full back-propagation of the same seed.
        ("float64, dropout", 0.1, torch.float64, 1e-12),
        ("float32, dropout", 0.1, torch.float32, 1e-5),
    ):
        torch.manual_seed(0)
        model = Memformer(dataclasses.replace(config, dropout=dropout)).to(setting.device, dtype)
        gradients = []
        for backward in (bptt_backward, memory_replay_backward):
            model.zero_grad()
            backward(model, rollout, carry_of(model, context), denominator=count, seed=3)
            gradients.append(flat_gradient(model))
        error = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
        found[f"against BPTT, {name}"] = {"gradient_error": error, "bound": bound, "right": error <= bound}
    return found
