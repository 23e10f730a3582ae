# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The cost model against one process: what autograd keeps of a segment; and what plans say of themselves.

Covers: memformer/planning/arrangement.py, memformer/planning/memory.py, memformer/planning/search.py,
memformer/planning/segment_trace.py
"""

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.activations import LiveTensors, SavedActivations
from data_pipeline import UserError
from memformer import Memformer, MemformerConfig
from memformer.config.schema import Config, parse_config
from memformer.engine.precision import AUTOCAST
from memformer.models import scoring
from memformer.models.registry import family_of
from memformer.models.scoring import Head
from memformer.models.sizes import count_parameters, hardware_flops_per_token
from memformer.planning import cost_model, make_plan
from memformer.planning.arrangement import arrange
from memformer.planning.cost_model import KERNELS, LAUNCH_SECONDS
from memformer.planning.devices import CALL_SECONDS, DEVICES, NETWORK_HOP_SECONDS, NODE_HOP_SECONDS
from memformer.planning.memory import moments, stage_memory
from memformer.planning.search import search
from memformer.planning.segment_trace import LOGITS, WEIGHT_COPIES, Execution, recomputation_peak, trace_parts
from memformer.planning.traffic import stage_calls, stage_traffic
from memformer.replay import Carry, ReplayBuffer, Rollout, Segment, grouped_replay_backward

LANES, LENGTH = 3, 32
MODEL = MemformerConfig(
    num_encoder_layers=3,
    num_decoder_layers=4,
    d_model=64,
    num_heads=4,
    d_ff=256,
    num_memory_slots=8,
    vocab_size=301,
    start_token_id=300,
)


def measured_bytes(config: MemformerConfig, precision: str, recompute: bool) -> tuple[int, int]:
    """(kept after the forward, most that is kept at any time) in bytes, each storage once, without parameters."""
    torch.manual_seed(0)
    model = Memformer(config)
    if recompute:
        for layer in (*model.encoder, *model.decoder):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=True)
    tokens, full = torch.randint(0, 300, (LANES, LENGTH)), torch.full((LANES,), LENGTH)
    segment = Segment(tokens, full, tokens, full, torch.zeros(LANES, dtype=torch.bool), False)
    memory = model.initial_memory(LANES).detach().clone().requires_grad_()
    with SavedActivations([*model.parameters(), tokens]) as saved:
        with torch.autocast("cpu", dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, _, following = model(segment, memory)
        kept = saved.live_bytes
        (loss + following.sum()).backward()
    return kept, saved.peak_bytes


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("precision", "recompute", "changes"),
    [
        *(
            (precision, again, {"overlap": 5, "block": "modern"})
            for precision in ("fp32", "bf16")
            for again in (False, True)
        ),
        ("fp32", True, {"num_memory_slots": 0}),
        ("bf16", False, {"num_memory_slots": 0}),
    ],
    ids=str,
)
def test_activations_of_a_segment(precision: str, recompute: bool, changes: dict[str, Any]) -> None:
    """To the byte for what is kept after the forward; the peak of recomputation within 10 %."""
    config = dataclasses.replace(MODEL, **changes)
    counts = {"num_encoder_layers": 3, "num_decoder_layers": 4}
    how = Execution(LANES, LENGTH, 1, precision, recompute)
    saved = trace_parts(config, how).of(counts).saved
    kept, peak = measured_bytes(config, precision, recompute)
    if not recompute:
        assert sum(saved.values()) == kept == peak
        return
    plain = trace_parts(config, dataclasses.replace(how, recompute=False)).stacks
    copies = {stack: layer.saved[WEIGHT_COPIES] for stack, layer in plain.items()}
    # The layers' 16-bit copies are dropped after the forward, and made again for the layer that is recomputed.
    assert sum(saved.values()) - sum(counts[stack] * size for stack, size in copies.items()) == kept
    again = recomputation_peak(config, how, counts) + copies["num_decoder_layers"]
    assert again == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"num_memory_slots": 0}, {"tie_embeddings": False}])
def test_every_part_outside_the_layers_has_a_stage(changes: dict[str, Any]) -> None:
    parts = trace_parts(dataclasses.replace(MODEL, **changes), Execution(LANES, LENGTH, 1, "fp32")).rest_parameters
    stages = family_of(MODEL).stages
    assert stages is not None and set(parts) <= set(stages.home)
    assert set(stages.home.values()) == {"first", "writer", "last"}


def config_of(**sections: object) -> Config:
    values: dict[str, object] = {
        "run_dir": "unused",
        "precision": "fp32",  # half the operations to trace of those under autocast
        "model": MODEL.to_dict(),
        "data": {"path": "not/there", "num_lanes": 16, "segment_length": LENGTH, "num_segments": 4},
    }
    return parse_config({**values, **sections}, "test")


def test_states_of_muon_and_in_16_bits_are_as_small_as_they_are() -> None:
    """One number for each of Muon's, two for AdamW's; its matrices go to their owners and back."""
    matrices = sum(
        p.numel() for name, p in Memformer(MODEL).named_parameters() if name.endswith(".weight") and p.dim() == 2
    )
    matrices -= MODEL.d_model * (MODEL.vocab_size or 0)
    for zero_stage, name, dtype, width in (
        (0, "muon", "float32", 4),
        (1, "muon", "bfloat16", 2),
        (1, "adamw", "bfloat16", 2),
    ):
        optimizer = {"name": name, "state_dtype": dtype}
        config = config_of(precision="bf16", optimizer=optimizer, parallel={"zero_stage": zero_stage})
        run = arrange(config, MODEL, 8)
        numbers = 2 * count_parameters(MODEL) - (matrices if name == "muon" else 0)
        assert stage_memory(run, 0)[0]["optimizer states"] == width * numbers / (8 if zero_stage else 1)
        sent = stage_traffic(run, 0)["data"]["all_to_all"]
        assert sent == (2 * 2 * matrices // 8 if name == "muon" and zero_stage else 0)


def test_a_plan_adds_up() -> None:
    config = config_of(parallel={"zero_stage": 1})
    plan = make_plan(config, config.model, 1, 8, "h100")
    parts = {name: size for name, size in plan.device_memory.items() if name != "total"}
    assert plan.parameters == count_parameters(MODEL) and sum(parts.values()) == plan.device_memory["total"]
    assert parts["optimizer states"] == plan.parameters
    assert parts["weights"] == parts["gradients"] == 4 * plan.parameters
    assert parts["replay buffer"] == 4 * 3 * 2 * 8 * 64
    assert plan.step_seconds == plan.compute_seconds + sum(plan.communication_seconds.values())
    assert plan.fits and not plan.host_memory and 0 < plan.mfu < 0.5
    assert plan.tokens == 16 * 4 * LENGTH


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("mode", ["none", "full"])
def test_the_memory_of_a_decoder_batch(mode: str) -> None:
    """Of 4 segments, 2 lanes each, 2 are decoded at once: what autograd keeps at most, within 5 %; 10 % recomputed."""
    config = config_of(
        precision="fp32",
        training={"segments_per_decoder_batch": 2},
        parallel={"zero_stage": 1},
        activation_checkpointing={"mode": mode},
    )
    memory = moments(arrange(config, MODEL, 8), 0)["rollout"]
    torch.manual_seed(0)
    model = Memformer(MODEL)
    if mode == "full":
        for layer in model.layers():
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=True)
    tokens, full = torch.randint(0, 300, (2, 4, LENGTH)), torch.full((2, 4), LENGTH)
    rollout = Rollout.of(tokens, full, torch.zeros(2, 4, dtype=torch.bool))
    carry = Carry(model.initial_memory(2).detach(), tokens[:, 0], full[:, 0], ragged=False)
    buffer = ReplayBuffer()
    inputs = [rollout.tokens, rollout.lengths, rollout.resets, carry.memory]
    with SavedActivations([*model.parameters(), *inputs]) as saved:
        grouped_replay_backward(model, rollout, carry, denominator=1.0, buffer=buffer, group=2)
    planned = memory["activations"] + memory["logits"] / 2  # its other half is the gradient
    assert planned == pytest.approx(saved.peak_bytes, rel=0.05 if mode == "none" else 0.1)
    assert memory["replay buffer"] == buffer.peak_bytes == 4 * 2 * 8 * 64
    assert memory["decoder batch"] == 4 * 2 * 2 * (3 * LENGTH + 8) * 64


def test_a_small_segment_takes_as_long_as_its_kernels_and_larger_batches_start_fewer() -> None:
    plans = [
        make_plan(config, config.model, 1, 1, "h100")
        for config in (config_of(training={"segments_per_decoder_batch": batch}) for batch in (1, 2, 4))
    ]
    # Encoders without a graph 3, 4 and 3 times, encoders with one 4 times, decoders 4, 2 and 1 times.
    passes = [advances * 3 + 3 * (4 * 3 + decoders * 4) for advances, decoders in ((3, 4), (4, 2), (3, 1))]
    assert [plan.compute_seconds for plan in plans] == pytest.approx([n * KERNELS * LAUNCH_SECONDS for n in passes])


def test_collectives_between_nodes_use_the_adapters_of_all_their_members_there() -> None:
    """The same 8 processes on one node, on 2 and on 8: NVLink, 4 adapters a ring up to it, one adapter."""
    config = config_of(parallel={"zero_stage": 1})
    seconds = [make_plan(config, config.model, n, 8 // n, "h100").communication_seconds["data"] for n in (1, 2, 8)]
    device = DEVICES["h100"]
    assert seconds[1] / seconds[0] == pytest.approx(device.node_bandwidth / (4 * device.network_bandwidth))
    assert seconds[2] / seconds[1] == pytest.approx(4)


def test_t_times_more_segments_take_t_times_the_latency() -> None:
    """But for what does not grow with T: an advance less than T, and a pipeline's embedding."""
    tensor = []
    for segments in (2, 4, 12):
        data = {"path": "not/there", "num_lanes": 16, "segment_length": LENGTH, "num_segments": segments}
        run = config_of(parallel={"zero_stage": 1, "tensor": 2}, data=data)
        plan = make_plan(run, run.model, 1, 2, "h100")
        assert plan.communication_seconds["tensor"] > plan.latency_seconds["tensor"]
        tensor.append(plan.latency_seconds["tensor"])
        run = config_of(parallel={"zero_stage": 1, "pipeline": 2, "pipeline_layers": [3, 4]}, data=data)
        calls = stage_calls(arrange(run, run.model, 2), 0)["pipeline"]
        assert calls == {"context": 2 * segments, "shared_weight": 1}  # of two groups of lanes
    assert tensor[0] > 0 and tensor[2] - tensor[1] == pytest.approx(4 * (tensor[1] - tensor[0]))


def test_latency_is_that_of_calls_and_of_the_steps_of_their_rings() -> None:
    def latency(nodes: int, gpus: int, axis: str, ranks: int) -> float:
        config = config_of(parallel={"zero_stage": 1, axis: ranks}, training={"lanes_per_micro_batch": 4})
        return make_plan(config, config.model, nodes, gpus, "h100").latency_seconds[axis]

    # Four groups of lanes on four ranks: a rank sends a memory of each but one, and a gradient of each but one.
    assert latency(1, 4, "segment", 4) == pytest.approx(6 * (CALL_SECONDS + NODE_HOP_SECONDS))
    assert latency(4, 1, "segment", 4) == pytest.approx(6 * (CALL_SECONDS + NETWORK_HOP_SECONDS))
    for ranks, places in ((2, ((1, 2), (2, 1))), (4, ((2, 2),))):
        config = config_of(parallel={"tensor": ranks}, training={"lanes_per_micro_batch": 4})
        calls = stage_calls(arrange(config, MODEL, ranks), 0)["tensor"]
        for nodes, gpus in places:
            # A ring goes from each node to the next but once, and a sum goes twice round.
            once = (ranks - nodes) * NODE_HOP_SECONDS + (nodes - 1) * NETWORK_HOP_SECONDS
            expected = calls["all_reduce"] * 2 * once + calls["all_gather"] * once + calls.total() * CALL_SECONDS
            assert latency(nodes, gpus, "tensor", ranks) == pytest.approx(expected)


@pytest.mark.parametrize("stack", ["num_encoder_layers", "num_decoder_layers"])
def test_sums_over_tensor_ranks_are_two_a_branch(stack: str) -> None:
    """What one layer more adds: three branches, forward and backward; the encoder's once more in pass 1; and the
    gradient of the memory that an encoder layer reads."""
    counts = []
    for model in (MODEL, dataclasses.replace(MODEL, **{stack: getattr(MODEL, stack) + 1})):
        config = config_of(model=model.to_dict(), parallel={"tensor": 2})
        counts.append(stage_calls(arrange(config, model, 2), 0)["tensor"]["all_reduce"])
    segments, advances, branches = 4, 3, 3
    sums = {"num_encoder_layers": 2 * branches + 1, "num_decoder_layers": 2 * branches}[stack] * segments
    assert counts[1] - counts[0] == sums + (advances * branches if stack == "num_encoder_layers" else 0)


def test_settings_move_memory_where_they_say() -> None:
    def memory(**parallel: object) -> tuple[dict[str, float], dict[str, float]]:
        config = config_of(parallel=parallel)
        plan = make_plan(config, config.model, 1, 4, "h100")
        return plan.device_memory, plan.host_memory

    whole, _ = memory(zero_stage=0)
    spread, _ = memory(zero_stage=3)
    assert spread["weights"] == whole["weights"] / 4 and "gathered parameters" in spread
    device, host = memory(zero_stage=3, offload_optimizer="cpu", offload_parameters="cpu")
    assert host["optimizer states"] == spread["optimizer states"] and "weights" not in device
    tensor, _ = memory(zero_stage=1, tensor=2)
    assert tensor["weights"] < 0.52 * whole["weights"]


def test_pipelines_take_bubble_and_graphs_from_the_schedule() -> None:
    config = config_of(parallel={"pipeline": 4, "zero_stage": 1}, training={"lanes_per_micro_batch": 2})
    plan = make_plan(config, config.model, 1, 8, "h100")
    assert plan.topology["pipeline"] == 4 and plan.topology["data"] == 2
    assert 0 < plan.bubble < 0.6 and plan.traffic["pipeline"]


def test_what_does_not_fit_is_told_with_a_mend() -> None:
    large = dataclasses.replace(MODEL, d_model=8192, num_heads=64, d_ff=32768, num_decoder_layers=60, vocab_size=32768)
    config = config_of(model=large.to_dict(), parallel={"zero_stage": 1})
    plan = make_plan(config, config.model, 2, 8, "h100")
    assert not plan.fits and "does not fit" in plan.warnings[0] and "try" in plan.warnings[0]
    assert plan.device_memory["total"] > 80e9


def test_search_finds_what_fits_fastest_first() -> None:
    config = config_of()
    found = search(config, config.model, 1, 2, "h100", keep=3)
    assert len(found) == 3 and all(plan.fits for _, plan in found)
    seconds = [plan.step_seconds for _, plan in found]
    assert seconds == sorted(seconds)
    # A small segment, whose kernels take longest to start.
    assert found[0][0]["training.segments_per_decoder_batch"] == 4


def test_search_lists_nothing_twice() -> None:
    """One lane is one group, said or not; stages of ZeRO above 1 need someone to share with."""
    values = {"path": "d", "num_lanes": 2, "segment_length": 32, "num_segments": 4}
    config = config_of(data=values, parallel={"zero_stage": 3, "zero3_gather": "segment"})
    found = search(config, config.model, 1, 2, "h100", keep=10**6)
    alone = [settings for settings, _ in found if settings["parallel.tensor"] * settings["parallel.pipeline"] == 2]
    assert {settings["parallel.zero_stage"] for settings in alone} == {0, 1}
    for settings, _ in found:
        shared = settings["parallel.tensor"] * settings["parallel.pipeline"] * settings["parallel.segment"]
        assert settings["training.lanes_per_micro_batch"] is None or shared > 1, "a lane for each process"
    assert {3} < {settings["parallel.zero_stage"] for settings, _ in found}, "with the gathering that the stage has"
    config = config_of(parallel={"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"})
    ((settings, _),) = search(config, config.model, 1, 1, "h100", keep=1)
    assert settings["parallel.zero_stage"] == 3, "alone, but for what is in host memory"


def test_search_leaves_out_nothing_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gives up by its weights alone, before its time is known, is what would not fit."""
    config = config_of()
    everything = search(config, config.model, 1, 2, "h100", keep=10**6)
    sizes = sorted(plan.device_memory["total"] for _, plan in everything)
    capacity = sizes[len(sizes) // 2]
    planned: list[object] = []
    monkeypatch.setattr(cost_model, "RESERVED", DEVICES["h100"].memory - capacity)
    plan_of = cost_model.plan_of
    monkeypatch.setattr("memformer.planning.search.plan_of", lambda *a: planned.append(a) or plan_of(*a))
    found = search(config, config.model, 1, 2, "h100", keep=10**6)
    expected = [(settings, plan) for settings, plan in everything if plan.device_memory["total"] <= capacity]
    assert [(settings, plan.step_seconds) for settings, plan in found] == [
        (settings, plan.step_seconds) for settings, plan in expected
    ]
    assert len(found) <= len(planned) < len(everything)
    for (settings, plan), (others, other) in itertools.pairwise(everything):
        if plan.step_seconds == other.step_seconds:
            assert settings["parallel.zero_stage"] <= others["parallel.zero_stage"], "the simpler one is first"


@pytest.mark.parametrize(
    ("world", "device", "parallel", "words"),
    [
        (8, "h1000", {}, "choose one of v100, a10g, a100"),
        (8, "v100", {}, "--device v100: no peak is known for precision bf16: set precision to fp16 or fp32"),
        (6, "h100", {"tensor": 4}, "--nodes 1 x --gpus-per-node 6 = 6 is not parallel.tensor 4"),
        (32, "h100", {}, "data.num_lanes is 16, which 32 data-parallel processes cannot share"),
    ],
)
def test_what_cannot_be_planned_is_refused(world: int, device: str, parallel: dict[str, object], words: str) -> None:
    config = config_of(precision="auto", parallel=parallel)
    with pytest.raises(UserError, match=words):
        make_plan(config, config.model, 1, world, device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_that_are_never_whole(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps, to the byte; what exists of the logits while the head scores and goes back, within 10 %.

    That is all that exists at most, the gradient of the weight as well, less the weight in 16 bits, and the head's
    input and its gradient; but for numbers a token.
    """
    tokens, ids, width = LANES * LENGTH, 301, 64
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * 48 * ids)
    traces = trace_parts(MODEL, Execution(LANES, LENGTH, 1, precision))
    saved = traces.of({"num_encoder_layers": 3, "num_decoder_layers": 4}).saved
    assert saved[LOGITS] == 0
    copy = 2 * ids * width * (precision == "bf16")  # is made again in the backward, and not kept until then
    assert sum(saved.values()) - copy == measured_bytes(MODEL, precision, recompute=False)[0]

    head, dtype = Head(width, ids, bias=False), AUTOCAST.get(precision)
    x, targets = torch.randn(LANES, LENGTH, width, requires_grad=True), torch.randint(0, ids, (LANES, LENGTH))
    with LiveTensors() as live:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            losses = head(x, targets)
        losses.sum().backward()
    rest = copy + tokens * width * 4
    assert traces.chunk_bytes == pytest.approx(live.meter.peak_bytes - rest, rel=0.1)


def test_a_plan_counts_a_chunk_of_logits_and_the_heads_product_once_more() -> None:
    """512 tokens of 200,000 ids, 410 MB: two chunks. Two lanes, which are traced, have 64 tokens, as the head has
    inputs: its weight is not taken for logits."""
    plans = []
    for ids in (100_000, 200_000):
        model = dataclasses.replace(MODEL, vocab_size=ids, start_token_id=0)
        config = config_of(precision="bf16", model=model.to_dict())
        plans.append((model, make_plan(config, model, 1, 1, "h100")))
    assert [plan.device_memory["logits"] for _, plan in plans] == [2 * 4 * 512 * 100_000, 8 * 256 * 200_000]
    again = [
        plan.flops - plan.tokens * hardware_flops_per_token(model, LENGTH, 4, "mrbp", "none") for model, plan in plans
    ]
    assert again == [0, plans[1][1].tokens * 2 * 64 * 200_000]
