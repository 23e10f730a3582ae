# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What partitioned activations and memories really occupy, counted on two tensor-parallel processes.

Covers: memformer/parallel/activation_checkpointing.py
"""

import dataclasses
import functools
import gc
import hashlib
import time
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.activations import LiveTensors
from memformer.engine.replay_engine import ReplayEngine
from memformer.parallel.activation_checkpointing import _partitioned, replay_buffer
from memformer.processes.group import World
from memformer.replay import ReplayBuffer
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import (
    LANES,
    LENGTH,
    MODEL,
    SEGMENTS,
    STEPS,
    Case,
    config_of,
    flat,
    model_of,
    rollout_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WHOLE = LANES * (MODEL.num_memory_slots * MODEL.d_model) * 4
"""Bytes of one memory."""
INPUT = LANES * LENGTH * MODEL.d_model * 4
"""Bytes of the input of one layer."""
LAYERS = MODEL.num_encoder_layers + MODEL.num_decoder_layers
PLAIN = Case(0, data=1, tensor=2, mode="full")
CASES = {
    "plain": PLAIN,
    "reentrant": dataclasses.replace(PLAIN, mode="none"),  # its layers are wrapped in `measure`
    "partitioned": dataclasses.replace(PLAIN, partition_activations=True),
    "contiguous": dataclasses.replace(PLAIN, partition_activations=True, contiguous_checkpointing=True),
    "memories alone": dataclasses.replace(PLAIN, mode="none", partition_activations=True),
}


def measure(world: World) -> dict[str, dict[str, Any]]:
    world = world.arranged(2, 1)
    found: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        model = model_of(case)
        for layer in model.layers() if name == "reentrant" else []:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=True)
        engine = ReplayEngine(model, config_of(case), world, "fp32")
        carry, rollout = engine.empty_carry(LANES), rollout_of(0)
        with torch.no_grad():  # makes what is made once and kept for all segments: tables of positions
            engine(rollout.segment(1, carry), carry.memory)
        with LiveTensors() as live:
            loss, _, _ = engine(rollout.segment(1, carry), carry.memory)
            # What waits in a cycle of references (about one memory in one of three runs), or is still in the hands of a
            # collective's thread (one input in some dozen runs of a busy machine), is not kept.
            time.sleep(0.1)
            gc.collect()
            kept = live.meter.live_bytes
            engine.deepspeed.backward(loss)
        losses = []
        for step in range(STEPS):
            rollout = rollout_of(step)
            result = engine.rollout_backward(rollout, carry, int(rollout.lengths.sum()), seed=step)
            losses.append(float(result.segment_losses.sum()))
            engine.step(1e-3)
        weights = hashlib.sha256(flat(engine.model).numpy().tobytes()).hexdigest()
        found[name] = {"kept": kept, "buffer": engine.replay_buffer_bytes, "losses": losses, "weights": weights}
        engine.close()
    found["order"] = {"buffer": keep_and_return(world)}
    found["autocast"] = {"dtypes": dtypes_of_both_runs()}
    return found


def dtypes_of_both_runs() -> list[str]:
    """What a partitioned layer computes in under autocast: at first, and again in its backward."""
    import deepspeed

    found = []
    linear = torch.nn.Linear(8, 8)

    def layer(x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        out = linear(x) + shared
        found.append(str(linear(x).dtype))
        return out

    x = torch.ones(2, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = _partitioned(layer, deepspeed.checkpointing.checkpoint, x, torch.zeros(2, 8))
    out.sum().backward()
    return found


def keep_and_return(world: World) -> list[int]:
    """Bytes after each push and pop of a partitioned buffer, which returns what it was given, newest first."""
    buffer = replay_buffer(config_of(CASES["partitioned"]), world)
    memories = [torch.full((LANES, 5, 32), float(i)) for i in range(4)]
    sizes = []
    for memory in memories:
        buffer.push(memory)
        sizes.append(buffer.stored_bytes)
    buffer.fetch()
    for memory in reversed(memories):
        assert torch.equal(buffer.pop(), memory)
        sizes.append(buffer.stored_bytes)
    with pytest.raises(IndexError):
        buffer.pop()
    return sizes


@pytest.fixture(scope="module")
def measured() -> list[dict[str, dict[str, Any]]]:
    return run_distributed(measure, 2)


def test_the_replay_buffer_is_divided_by_the_tensor_parallel_processes(measured: list[dict[str, Any]]) -> None:
    """T*B*K*D numbers divided by them, less the last segment's, whose memory is not kept; a whole one is in flight."""
    for rank in measured:
        assert rank["plain"]["buffer"] == (SEGMENTS - 1) * WHOLE
        for name in ("partitioned", "contiguous", "memories alone"):
            assert rank[name]["buffer"] == (SEGMENTS - 1) * WHOLE // 2
        # Three stay while the fourth is on its way; each pop sends for the next.
        assert rank["order"]["buffer"] == [n * WHOLE // 2 for n in (1, 2, 3, 4, 2, 1, 0, 0)]


def test_a_layer_keeps_its_part_of_its_input(measured: list[dict[str, Any]]) -> None:
    """Half of each layer's input is gone after the forward; nothing else was added."""
    for rank in measured:
        saved = rank["plain"]["kept"] - rank["partitioned"]["kept"]
        assert saved == pytest.approx(LAYERS * INPUT / 2, abs=0.1 * INPUT), rank


def test_a_partitioned_layer_is_computed_again_in_the_same_precision(measured: list[dict[str, Any]]) -> None:
    assert measured[0]["autocast"]["dtypes"] == ["torch.bfloat16"] * 2


def test_partitioning_changes_no_bit(measured: list[dict[str, Any]]) -> None:
    """Neither of losses nor of weights, where the same numbers are added in the same order.

    The encoder's output gets a gradient from the keys and from the values of each decoder layer. Reentrant checkpoints,
    torch's and DeepSpeed's, add up those of a layer and then the layers; autograd alone adds one after another, and so
    do torch's other checkpoints.
    """
    for rank in measured:
        for name, same in (("partitioned", "reentrant"), ("contiguous", "reentrant"), ("memories alone", "plain")):
            assert rank[name]["losses"] == rank[same]["losses"], name
            assert rank[name]["weights"] == rank[same]["weights"], name


def test_partitioning_gives_the_plain_losses(measured: list[dict[str, Any]]) -> None:
    """To the order of summation in float32 (seen: 7e-8)."""
    for rank in measured:
        for name in CASES:
            assert rank[name]["losses"] == pytest.approx(rank["plain"]["losses"], rel=1e-6), name


def test_an_unpartitioned_buffer_returns_the_same_tensors() -> None:
    buffer, memories = ReplayBuffer(), [torch.zeros(1), torch.ones(1)]
    for memory in memories:
        buffer.push(memory)
    assert buffer.stored_bytes == buffer.peak_bytes == 8
    assert buffer.pop() is memories[1] and buffer.pop() is memories[0] and buffer.stored_bytes == 0
