# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Every ZeRO stage on two real processes against one process with full back-propagation through time.

Tolerances: tests/distributed/short_runs.py.

Covers: memformer/engine/base.py, memformer/engine/partitions.py, memformer/engine/replay_engine.py,
memformer/engine/zero.py
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from memformer.engine.making import make_engine
from memformer.engine.optimizer import make_optimizer
from memformer.engine.zero import parameters_gathered
from memformer.models.memformer import Memformer, MemformerConfig
from memformer.planning import make_plan
from memformer.processes.group import World
from memformer.replay import Carry, Segment, bptt_backward
from tests.distributed.collectives import counted
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import (
    LANES,
    LENGTH,
    Case,
    Trained,
    assert_equals_reference,
    assert_traffic_as_planned,
    config_of,
    flat,
    model_of,
    rollout_of,
    trained_when_asked,
)

WORLD = 2

SEGMENT_IN_BF16 = Case(1, "bf16", gradient_reduction="segment")
CASES = [Case(stage, precision) for stage, precision in itertools.product(range(4), ("fp32", "bf16", "fp16"))]
CASES += [Case(stage, clipping=0.05) for stage in range(4)]
CASES += [Case(stage, mode="full") for stage in (0, 1, 3)]
CASES += [Case(stage, gradient_reduction="segment") for stage in (1, 2, 3)] + [SEGMENT_IN_BF16]
CASES += [Case(stage, lanes_per_micro_batch=1, growing=True) for stage in range(4)]
CASES += [Case(stage, offload="optimizer", clipping=0.05) for stage in (1, 2, 3)]
CASES += [Case(stage, offload="optimizer", gradient_reduction="segment") for stage in (2, 3)]
CASES += [Case(3, offload="parameters"), Case(3, offload="parameters", zero3_gather="segment", mode="full")]
CASES += [Case(3, precision, zero3_gather="segment") for precision in ("fp32", "bf16")]
CASES += [Case(2, replay="bptt"), Case(3, replay="bptt")]
CASES += [Case(stage, memory_interval=2, segments=6) for stage in (0, 1, 2)]
CASES += [Case(3, memory_interval=2, segments=6, zero3_gather="segment", dropout=0.2)]
CASES += [Case(stage, weighted=True, lanes_per_micro_batch=1 if stage == 1 else None) for stage in (0, 1, 3)]
FROZEN = [Case(stage, precision, train="memory") for stage in range(3) for precision in ("fp32", "bf16")]
FROZEN += [Case(3, "bf16", train="memory"), Case(3, train="memory", mode="full", memory_learning_rate=3e-3)]
FROZEN += [Case(3, backbone="late slots", train="memory", mode="full")]
RATES = [Case(stage, memory_learning_rate=4e-3) for stage in (0, 2)]
CASES += FROZEN + RATES
CASES += [Case(3, "bf16", chunked=True), Case(1, "fp16", chunked=True), Case(3, train="memory", chunked=True)]
GROUPED = [Case(stage, decoder_batch=2, dropout=0.2) for stage in range(4)]
GROUPED += [Case(stage, gradient_reduction="segment", decoder_batch=3) for stage in (2, 3)]
GROUPED += [Case(3, offload="parameters", decoder_batch=2)]
_FEW = Case(3, "bf16", decoder_batch=2, zero3_gather="segment", mode="full", dropout=0.2, segments=5)
GROUPED += [dataclasses.replace(_FEW, residual_dtype="compute")]
GROUPED += [Case(1, "fp16", decoder_batch=3, growing=True), Case(0, decoder_batch=2, lanes_per_micro_batch=1)]
GROUPED += [Case(1, decoder_batch=3, weighted=True, mode="full", chunked=True)]
CASES += GROUPED
CASES += [Case(1, "bf16", sums="bfloat16", lanes_per_micro_batch=1), Case(3, "bf16", sums="bfloat16", mode="full")]
CASES += [Case(2, "bf16", sums="bfloat16", offload="optimizer", clipping=0.05)]


@pytest.fixture(scope="module")
def trained() -> Iterator[Trained]:
    with trained_when_asked() as results:
        yield results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_one_process_with_full_bptt(case: Case, trained: Trained) -> None:
    assert_equals_reference(case, trained(case))


COUNTED = [Case(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]
COUNTED += [SEGMENT_IN_BF16, Case(2, replay="bptt"), Case(3, mode="full"), *FROZEN, *RATES, *GROUPED[:4]]


@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_bytes_are_those_of_the_plan(case: Case, trained: Trained) -> None:
    assert_traffic_as_planned(case, trained(case))


def count_one_step(world: World, stage: int, segments: int) -> dict[str, list[int]]:
    """Collectives of the second step, by kind."""
    case = Case(stage)
    engine = make_engine(model_of(case), config_of(case), world, "fp32")
    own = LANES // world.size
    carry = Carry.empty(engine.initial_memory(own), LENGTH)
    for step in range(2):
        rollout = rollout_of(step, segments)
        with counted() as counts:
            result = engine.rollout_backward(
                rollout.lanes(world.rank * own, (world.rank + 1) * own), carry, int(rollout.lengths.sum()), seed=step
            )
            engine.step(1e-3)
        carry = result.carry
    if stage in (1, 2):
        assert not engine.deepspeed.optimizer._grad_acc_hooks, "each backward calls Python for each parameter"
    engine.close()
    return counts


def reduced_by(world: World, **keys: Any) -> tuple[set[str], torch.Tensor, bool]:
    """With keys of `deepspeed.zero_optimization`: the large calls of a step, the weights after it, if all are whole."""
    case = Case(2, "bf16", clipping=0.05)
    config = config_of(case)
    config = config.model_copy(update={"deepspeed": {"zero_optimization": keys}})
    engine = make_engine(model_of(case), config, world, "bf16")
    own, rollout = LANES // world.size, rollout_of(0)
    with counted() as calls:
        lanes = rollout.lanes(world.rank * own, (world.rank + 1) * own)
        carry = Carry.empty(engine.initial_memory(own), LENGTH)
        engine.rollout_backward(lanes, carry, int(rollout.lengths.sum()), seed=0)
        engine.step(1e-3)
    sent = flat(engine.module)
    with engine.master_weights():
        whole = flat(engine.module)
    rounded = (sent == whole.bfloat16()) & (sent != whole)
    assert rounded.any() and ((sent == whole) | rounded).all(), "weights are sent in bf16 or as they are"
    pieces = [(piece.name, piece.region, piece.weight) for piece in engine.parameter_state().pieces()]
    named = dict(engine.module.named_parameters())
    kept = all(torch.equal(named[name].view(-1)[at.start : at.stop], weight) for name, at, weight in pieces)
    engine.close()
    return {kind for kind, (_, size) in calls.items() if size > 1000}, whole, kept


def gathered_bytes(world: World) -> int:
    """What the parameters that ZeRO 3 has gathered under bf16 take on this process."""
    case = Case(3, "bf16")
    engine = make_engine(model_of(case), config_of(case), world, "bf16")
    with parameters_gathered(engine.module):
        storages = [parameter.untyped_storage() for parameter in engine.module.parameters()]
        size = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    engine.close()
    return size


def count_all(world: World) -> dict[tuple[int, int], dict[str, list[int]]]:
    counts = {(stage, t): count_one_step(world, stage, t) for stage in range(4) for t in (2, 5)}
    assert "deepspeed.runtime.zero.muon.original_muon" in sys.modules, "the reason for compiled_when_called"
    assert "torch._inductor.compile_fx" not in sys.modules, "the compiler is imported where nothing is compiled"
    assert "mlflow" not in sys.modules, "DeepSpeed's autotuner has imported it"
    (ours, weights, kept), (chunks, *same), (theirs, *as_well) = (
        reduced_by(world, **keys) for keys in ({}, {"reduce_bucket_size": 1000}, {"reduce_scatter": False})
    )
    assert ours == chunks == {"reduce_scatter_tensor", "all_gather_into_tensor"} and "all_reduce" in theirs
    assert kept and same[1] and as_well[1], "float32 weights are the owners'"
    assert torch.equal(weights, same[0]) and torch.allclose(weights, as_well[0], rtol=0, atol=1e-7)
    # As `plan` counts them: sent in 16 bits, they lie in 32.
    config = config_of(Case(3, "bf16"))
    planned = make_plan(config, config.model, 1, WORLD, "h100").device_memory["gathered parameters"]
    assert planned == pytest.approx(gathered_bytes(world)), "the gathered parameters of the plan"
    return counts


def test_one_reduction_a_rollout_whatever_its_length() -> None:
    """Bytes by kind are the same for 2 and 5 segments, and the gradient crosses the network once."""
    model_bytes = 4 * flat(model_of(Case(0))).numel()
    counts = run_distributed(count_all, WORLD)[0]
    for stage in range(4):
        assert counts[stage, 2] == counts[stage, 5], f"stage {stage}"
        reduced = sum(size for kind, (_, size) in counts[stage, 5].items() if "reduce" in kind)
        # Norms and flags are a few bytes; ZeRO-3 pads each partition to the number of processes.
        assert model_bytes <= reduced < 1.02 * model_bytes + 256, (stage, counts[stage, 5])


class SometimesMore(Memformer):
    """With a parameter that takes part in the loss of some steps only."""

    weight_of_extra = 0.0

    def __init__(self, config: MemformerConfig) -> None:
        super().__init__(config)
        self.extra = torch.nn.Parameter(torch.arange(1.0, 5.0))

    def forward(self, segment: Segment, memory_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        loss, count, memory_BKD = super().forward(segment, memory_BKD)
        if self.weight_of_extra:
            loss = loss + self.weight_of_extra * self.extra.square().sum()
        return loss, count, memory_BKD


def extra_after_two_steps(world: World | None, stage: int, offload: str, reduction: str) -> list[float]:
    """The parameter after a step with it and one without; without a world, by plain AdamW in one process."""
    case = Case(stage, offload=offload, gradient_reduction=reduction)
    config = config_of(case)
    torch.manual_seed(0)
    model = SometimesMore(config.model)
    size, rank = (world.size, world.rank) if world else (1, 0)
    own = LANES // size
    engine = make_engine(model, config, world, "fp32") if world else None
    optimizer = make_optimizer(model, config.optimizer, torch.device("cpu"))
    carry = Carry.empty(engine.initial_memory(own) if engine else model.initial_memory(own), LENGTH)
    for step, weight in enumerate((3.0, 0.0)):
        rollout = rollout_of(step)
        count = int(rollout.lengths.sum())
        if engine:
            engine.module.weight_of_extra = weight
            lanes = rollout.lanes(rank * own, (rank + 1) * own)
            carry = engine.rollout_backward(lanes, carry, count, seed=step).carry
            engine.step(config.optimizer.learning_rate)
        else:
            model.weight_of_extra = WORLD * weight  # each process has its own copy of the term
            optimizer.zero_grad()
            carry = bptt_backward(model, rollout, carry, denominator=count).carry
            if model.extra.grad is None:
                model.extra.grad = torch.zeros_like(model.extra)
            optimizer.step()
    if not engine:
        return list(model.extra.tolist())
    with engine.whole_model():
        found = list(engine.module.extra.tolist())
    engine.close()
    return found


def extra_all(world: World) -> list[list[float]]:
    return [extra_after_two_steps(world, *each) for each in EXTRA]


EXTRA = [(3, *each) for each in itertools.product(("none", "optimizer", "parameters"), ("rollout", "segment"))]
EXTRA += [(1, "none", "rollout"), (1, "optimizer", "rollout"), (2, "optimizer", "rollout"), (2, "optimizer", "segment")]


def test_a_gradient_is_not_applied_twice() -> None:
    """DeepSpeed keeps those of parameters that a step does not use, at stage 3 and with offload: they are zeroed."""
    expected = extra_after_two_steps(None, 0, "none", "rollout")
    for found in run_distributed(extra_all, WORLD):
        for settings, values in zip(EXTRA, found, strict=True):
            assert values == pytest.approx(expected, rel=1e-6), settings


class _GivenUp(Exception):
    pass


def norms_after_a_rollout_was_given_up(world: World) -> list[tuple[float, float]]:
    """At each stage, the gradient's norm of a rollout: with another one before it that ended half-way, and without."""
    found = []
    for case in (Case(0, data=1), Case(1, data=1), Case(3, data=1)):
        engine, rollout = make_engine(model_of(case), config_of(case), world, "fp32"), rollout_of(0)
        carry, norms = Carry.empty(engine.initial_memory(LANES), LENGTH), []

        def give_up() -> None:
            raise _GivenUp

        for given_up in (True, False):
            if given_up:
                engine.at_segment = give_up
                with pytest.raises(_GivenUp):
                    engine.rollout_backward(rollout, carry, int(rollout.lengths.sum()), seed=1)
                engine.at_segment = lambda: None
            engine.rollout_backward(rollout, carry, int(rollout.lengths.sum()), seed=0)
            norms.append(engine.step(0.0).grad_norm)
        engine.close()
        found.append((norms[0], norms[1]))
    return found


def test_a_rollout_that_is_given_up_leaves_no_gradients() -> None:
    for before, plain in run_distributed(norms_after_a_rollout_was_given_up, 1)[0]:
        assert before == plain
