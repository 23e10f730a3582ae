# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Plans of backbones against one process: what autograd keeps of a segment, and what a run really holds."""

import copy
import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.activations import SavedActivations
from memformer.config.schema import Config, parse_config
from memformer.engine.precision import AUTOCAST
from memformer.models.backbone import Backbone, BackboneConfig, MemoryConfig
from memformer.models.backbone.flops import segment_flops
from memformer.models.backbone.stage import BackboneStage
from memformer.models.backbone.wavefront import BackboneWavefront
from memformer.planning import make_plan
from memformer.planning.arrangement import arrange
from memformer.planning.memory import stage_memory
from memformer.planning.search import search
from memformer.planning.segment_trace import LOGITS, WEIGHT_COPIES, Execution, recomputation_peak, trace_parts
from memformer.replay import (
    Carry,
    ReplayBuffer,
    Rollout,
    Segment,
    memory_replay_backward,
    windowed_replay_backward,
)
from tests.memformer.examples import ragged_rollout
from tests.memformer.models.backbone.examples import SIZES, START, VOCABULARY

LANES, LENGTH = 3, 20
MEMORIES = {
    "associative": MemoryConfig(d_key=4, num_write_tokens=3, layers=(1, 3)),
    "slots": MemoryConfig(kind="slots", num_slots=5, layers=(0, 2), write_layer=3, forgetting="written"),
    "tokens": MemoryConfig(kind="tokens", num_slots=4),
}


def config_of(kind: str, memory: str) -> BackboneConfig:
    """A backbone that lacks the last id of the data, the start token."""
    sizes = SIZES[kind] | {"n_layer" if kind == "gpt2" else "num_hidden_layers": 4, "vocab_size": START}
    return BackboneConfig(
        backbone=sizes,
        memory=MEMORIES[memory],
        vocab_size=VOCABULARY,
        start_token_id=START,
        bos_token_id=0,
        overlap=3,
    )


def measured_bytes(config: BackboneConfig, precision: str, recompute: bool) -> tuple[int, int]:
    """(kept after the forward, most that is kept at any time) in bytes, each storage once, without parameters."""
    torch.manual_seed(0)
    model = Backbone(config)
    for layer in model.layers() if recompute else []:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=True)
    tokens, full = torch.randint(0, START, (LANES, LENGTH)), torch.full((LANES,), LENGTH)
    segment = Segment(tokens, full, tokens, full, torch.zeros(LANES, dtype=torch.bool), False, False)
    memory = model.initial_memory(LANES).detach().clone().requires_grad_()
    with SavedActivations([*model.parameters(), tokens]) as saved:
        with torch.autocast("cpu", dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, _, following = model(segment, memory)
        kept = saved.live_bytes
        (loss + following.sum()).backward()
    return kept, saved.peak_bytes


CASES = [
    ("llama", "associative", "fp32", False),
    ("llama", "slots", "bf16", False),
    ("llama", "slots", "bf16", True),
    ("gpt2", "tokens", "fp32", True),
]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("kind", "memory", "precision", "recompute"), CASES)
def test_activations_of_a_segment(kind: str, memory: str, precision: str, recompute: bool) -> None:
    """To the byte for what is kept after the forward; the peak of recomputation within 2 %."""
    config = config_of(kind, memory)
    how, counts = Execution(LANES, LENGTH, 1, precision, recompute), config.layer_counts()
    traces = trace_parts(config, how)
    kept, peak = measured_bytes(config, precision, recompute)
    assert traces.of(counts).saved[LOGITS] == 4 * LANES * LENGTH * START
    if not recompute:
        assert sum(traces.of(counts).saved.values()) == kept == peak
        return
    copies = {stack: layer.saved[WEIGHT_COPIES] for stack, layer in traces.stacks.items()}
    # The layers' 16-bit copies are dropped after the forward, and made again for the layer that is recomputed.
    linear = sum(2 * each.weight.numel() for each in _linear_maps(config))
    dropped = linear if precision in AUTOCAST else 0
    assert sum(traces.of(counts).saved.values()) - dropped == kept
    again = recomputation_peak(config, how, counts) + max(copies.values())
    assert again == pytest.approx(peak, rel=0.02)


def _linear_maps(config: BackboneConfig) -> list[nn.Linear]:
    """Those of the layers."""
    return [each for layer in Backbone(config).layers() for each in layer.modules() if isinstance(each, nn.Linear)]


def run_of(training: dict[str, Any] | None = None, precision: str = "auto", **checkpointing: Any) -> Config:
    model = {"family": "backbone", **config_of("llama", "associative").to_dict()}
    data = {"path": "not/there", "num_lanes": 2 * LANES, "segment_length": LENGTH, "num_segments": 8}
    values = {"run_dir": "unused", "model": model, "data": data, "parallel": {"zero_stage": 0}}
    more = {"training": training or {}, "precision": precision, "activation_checkpointing": checkpointing}
    return parse_config(values | more, "test")


@pytest.mark.parametrize("interval", [1, 3])
def test_the_replay_buffer_is_what_a_replay_keeps(interval: int) -> None:
    """Weights, gradients and states follow from the parameters; the memories are counted in a real replay."""
    run = run_of(memory_interval=interval)
    plan = make_plan(run, run.model, 1, 2, "h100")
    torch.manual_seed(0)
    model = Backbone(config_of("llama", "associative"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert plan.parameters == count
    found = [plan.device_memory[name] for name in ("weights", "gradients", "optimizer states")]
    assert found == [4 * count, 4 * count, 8 * count]
    buffer, rollout = ReplayBuffer(interval=interval), ragged_rollout(LANES, 8, LENGTH)
    carry = Carry.empty(model.initial_memory(LANES), LENGTH)
    memory_replay_backward(model, rollout, carry, denominator=1.0, buffer=buffer)
    assert plan.device_memory["replay buffer"] == buffer.peak_bytes


def test_what_is_computed_again_is_in_the_flops_and_in_the_memory() -> None:
    """Layers that are recomputed cost their forward once more, and keep less."""
    plain, full, thrice = (
        make_plan(run, run.model, 1, 2, "h100") for run in (run_of(), run_of(mode="full"), run_of(memory_interval=3))
    )
    flops = segment_flops(config_of("llama", "associative"), LENGTH)
    segments = 2 * LANES * 8
    assert full.flops - plain.flops == pytest.approx(segments * flops.layers)
    assert thrice.flops - plain.flops == pytest.approx(segments * flops.advance * 2 / 8)  # 5 of 7 memories are kept
    assert full.device_memory["activations"] < 0.6 * plain.device_memory["activations"]


@pytest.mark.parametrize(("kind", "pipeline_layers"), [("llama", (1, 3)), ("gpt2", (2, 2)), ("qwen2", (3, 1))])
def test_a_plan_of_stages_counts_what_each_of_them_has(kind: str, pipeline_layers: tuple[int, ...]) -> None:
    """Parameters and memories are those of the stages themselves; pass 1 ends with the last layer that has a memory."""
    model = dataclasses.replace(config_of(kind, "associative"), memory=MemoryConfig(d_key=4, layers=(1, 2)))
    values = run_of().values()
    values |= {"model": {"family": "backbone", **model.to_dict()}}
    values["parallel"] |= {"pipeline": 2, "pipeline_layers": list(pipeline_layers)}
    run = arrange(parse_config(values, "test"), model, 2)
    whole, spans = Backbone(model), (range(pipeline_layers[0]), range(pipeline_layers[0], 4))
    for number, span in enumerate(spans):
        stage = BackboneStage(copy.deepcopy(whole), span)
        planned = sum(shape.numel * count for shape, count in run.parameters(number).items())
        assert planned == sum(parameter.numel() for parameter in stage.parameters())
        assert run.memory_numbers(number) == math.prod(stage.memory.shape)
        assert sum(run.layers[number].values()) == len(span)
        assert sum(run.advanced(number).values()) == len([layer for layer in span if layer < 3])
        kept = dict(stage_memory(run, number)[0])
        assert kept.get("replay buffer", 0) == 4 * 7 * 2 * LANES * run.memory_numbers(number)
        assert kept.get("copies of the embedding", 0) == (8 * run.embedding if number and model.tied() else 0)


def test_a_search_tries_stages_of_a_backbone() -> None:
    run = run_of()
    found = search(run, run.model, 1, 2, "h100", keep=100)
    assert {settings["parallel.pipeline"] for settings, _ in found} == {1, 2}


@pytest.mark.parametrize(("window", "precision"), [(3, "fp32"), (8, "bf16")])
def test_the_memory_of_windows_is_what_a_replay_by_windows_keeps(window: int, precision: str) -> None:
    """Within 8 % of what autograd keeps of a window, without the gradient of the logits; borders to the byte."""
    run = run_of(training={"wavefront_window": window}, precision=precision)
    planned = make_plan(run, run.model, 1, 2, "h100").device_memory
    model = Backbone(config_of("llama", "associative"))
    lengths = torch.full((LANES, 8), LENGTH)
    rollout = Rollout.of(torch.randint(0, START, (LANES, 8, LENGTH)), lengths, torch.zeros_like(lengths).bool())
    carry, buffer = Carry.empty(model.initial_memory(LANES), LENGTH), ReplayBuffer()
    wavefront = BackboneWavefront(model)
    wavefront.side_by_side()

    def backward(objective: torch.Tensor, remaining: int) -> None:
        with torch.autocast("cpu", enabled=False):
            objective.backward()

    given = {"denominator": 1.0, "window": window, "buffer": buffer}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with SavedActivations([*model.parameters(), rollout.tokens, carry.memory, carry.tokens]) as saved, autocast:
        windowed_replay_backward(wavefront, rollout, carry, backward, **given)  # type: ignore[arg-type]
    kept = ("activations", "memories of diagonals", "16-bit weights")
    assert sum(planned[name] for name in kept) + planned["logits"] / 2 == pytest.approx(saved.peak_bytes, rel=0.08)
    assert planned["replay buffer"] == buffer.peak_bytes
    assert ("gradients of a window" in planned) == (window < 8)


def test_windows_start_fewer_kernels_and_advance_all_but_the_last() -> None:
    """Of 8 segments by 4 layers with matrices at the second and the fourth; a backward counts as two forwards."""
    layers = 4
    passes = {}
    for window in (0, 3, 8):
        run = run_of(training={"wavefront_window": window})
        passes[window] = arrange(run, run.model, 2).layer_passes(0)
    assert passes[0] == (7 + 3 * 8) * layers
    assert passes[8] == 3 * (8 + layers - 1)
    assert passes[3] == (2 + 3 + 2 * (layers - 1)) + 3 * (8 + 3 * (layers - 1))
    plain, windows = (
        make_plan(run, run.model, 1, 2, "h100") for run in (run_of(), run_of(training={"wavefront_window": 3}))
    )
    advance = segment_flops(config_of("llama", "associative"), LENGTH).advance
    assert plain.flops - windows.flops == pytest.approx(2 * LANES * (7 - 5) * advance)
    assert windows.compute_seconds < 0.6 * plain.compute_seconds


def test_search_tries_windows() -> None:
    """Of segments this small the longest window is fastest: it starts the fewest kernels."""
    run = run_of(precision="fp32")
    found = search(run, run.model, 1, 1, "h100", keep=1)
    assert found[0][0]["training.wavefront_window"] == 8
