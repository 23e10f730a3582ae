# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""ZeRO 1 and 2 send gradients in a rollout's last backward, and the sums are those of sending them after it.

To the last bit: each element is divided, sent and added in the same order, whenever it goes.

Covers: memformer/engine/reduction.py
"""

import dataclasses
import functools
import itertools
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memformer.engine.base import Engine
from memformer.engine.making import make_engine
from memformer.engine.reduction import Reduction, sent_while_it_ends, through_the_model
from memformer.engine.weight_copies import WeightCopies
from memformer.processes.group import World
from memformer.replay import Carry
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, Case, config_of, model_of, rollout_of
from tests.distributed.test_zero import SometimesMore

CASES = (Case(1), Case(2, "bf16", mode="full", lanes_per_micro_batch=1), Case(1, "fp16", dropout=0.2, clipping=0.05))


def engine_of(case: Case, world: World, bucket: int = 2000, model: Any = None) -> Engine:
    """With buckets of so many elements, of which a model has several."""
    zero = {"zero_optimization": {"reduce_bucket_size": bucket}}
    config = config_of(case).model_copy(update={"deepspeed": zero})
    torch.manual_seed(0)
    return make_engine(model or model_of(case), config, world, case.precision)


def trained(engine: Engine, world: World) -> tuple[list[int], torch.Tensor]:
    """After two steps: how many buckets each last backward has sent, and this process's part of the weights."""
    own, early = LANES // world.size, []
    assert engine._partitions is not None
    reduction, carry = engine._partitions.reduction, Carry.empty(engine.initial_memory(own), LENGTH)
    finish = reduction.finish

    def watched() -> Any:
        early.append(reduction._begun)
        return finish()

    reduction.finish = watched  # type: ignore[method-assign]
    for step in range(2):
        rollout = rollout_of(step)
        lanes = rollout.lanes(world.rank * own, (world.rank + 1) * own)
        carry = engine.rollout_backward(lanes, carry, int(rollout.lengths.sum()), seed=step).carry
        assert engine.bad_parameters() == []
        assert engine.step(1e-2).applied
    weights = torch.cat([piece.weight.reshape(-1) for piece in engine.parameter_state().pieces()])
    return early, weights


def early_and_late(world: World) -> list[tuple[list[int], int, bool]]:
    found = []
    for case in CASES:
        ways = []
        for early in (True, False):
            engine = engine_of(case, world)
            engine._sends_early &= early
            sent, weights = trained(engine, world)
            assert engine._partitions is not None
            ways.append((sent, len(engine._partitions.reduction._buckets), weights))
            engine.close()
        (sent, buckets, weights), (after, _, others) = ways
        assert after == [0, 0]
        found.append((sent, buckets, torch.equal(weights, others)))
    return found


def test_what_is_whole_is_sent_in_the_last_backward_and_the_sums_are_the_same() -> None:
    for rank in run_distributed(early_and_late, 2):
        for case, (sent, buckets, same) in zip(CASES, rank, strict=True):
            assert buckets > 8 and min(sent) > buckets / 2, f"{case}: {sent} of {buckets} are sent early"
            assert same, f"{case}: weights differ"


def of_one_process(world: World) -> bool:
    """Whether the gradients that are stepped are the sums, to the bit."""
    engine = engine_of(Case(1, "bf16", data=1), world)
    assert engine._partitions is not None
    reduction = engine._partitions.reduction
    rollout, carry, sums = rollout_of(0), engine.empty_carry(LANES), {}
    finish = reduction.finish

    def watched() -> Any:
        sums.update({p: p.grad.clone() for p in engine.module.parameters() if p.grad is not None})
        return finish()

    reduction.finish = watched  # type: ignore[method-assign]
    engine.rollout_backward(rollout, carry, int(rollout.lengths.sum()), seed=0)
    zero = engine.deepspeed.optimizer
    stepped = [
        torch.equal(part.view(-1), sums[parameter].view(-1))
        for group, parameters in enumerate(zero.params_in_partition)
        for part, parameter in zip(zero.averaged_gradients[group], parameters, strict=False)
    ]
    engine.close()
    return len(stepped) == len(sums) and all(stepped)


def test_what_goes_nowhere_is_not_rounded() -> None:
    """Under bf16 gradients are sent in 16 bits; one process steps by its float32 sums."""
    assert run_distributed(of_one_process, 1) == [True]


class OnOneRank(SometimesMore):
    """A parameter takes part in the loss of one process only."""

    @property
    def weight_of_extra(self) -> float:  # type: ignore[override]
        return float(dist.get_rank() == 1)


def without_a_gradient_here(world: World) -> tuple[list[int], list[float]]:
    engine = engine_of(CASES[0], world, model=OnOneRank(config_of(CASES[0]).model))
    sent, _ = trained(engine, world)
    with engine.whole_model() as _:
        extra = engine.module.extra.tolist()
    engine.close()
    return sent, extra


def test_processes_agree_on_the_order_whatever_has_a_gradient_where() -> None:
    (_, first), (_, second) = run_distributed(without_a_gradient_here, 2, timeout_seconds=60)
    assert first == second and first != [1.0, 2.0, 3.0, 4.0], "it is stepped on both, by the other's gradient"


def added_to_twice(world: World) -> str:
    engine = engine_of(CASES[0], world)
    assert engine._partitions is not None
    reduction: Reduction = engine._partitions.reduction
    parameter = next(iter(reduction._of_parameter))
    said = ""
    with reduction.from_here({}):
        for _ in range(2):
            try:
                parameter.square().sum().backward()
            except RuntimeError as error:
                said = str(error)
    engine.close()
    return said


def test_a_gradient_that_goes_on_after_it_was_whole_is_an_error() -> None:
    """A second backward inside `from_here`, as nested ones of a layer that is recomputed would be."""
    assert all("added to after it was whole" in said for said in run_distributed(added_to_twice, 2))


def added_to_beside_its_copy(world: World) -> list[str]:
    """What is said when a weight has a gradient of its own: before its bucket is sent, and after."""
    engine = engine_of(CASES[0], world)
    assert engine._partitions is not None
    reduction: Reduction = engine._partitions.reduction
    first = list(reduction._buckets[0].parameters)
    copies = {p: torch.nn.Parameter(p.detach().clone()) for p in first}
    take = WeightCopies(engine.model, torch.bfloat16)._take
    for parameter, copy in copies.items():
        copy.register_post_accumulate_grad_hook(functools.partial(take, parameter))
    said = []
    with reduction.from_here(copies):
        for each in (first[0], *copies.values(), first[0]):
            try:
                each.square().sum().backward()
            except RuntimeError as error:
                said.append(str(error))
            else:
                said.append("")
    engine.close()
    return said


def test_a_weight_that_is_used_beside_its_copy_is_not_sent_without_that() -> None:
    """A family that keeps a second, unregistered reference to a weight."""
    for *before, after in run_distributed(added_to_beside_its_copy, 2, timeout_seconds=60):
        assert not any(before) and "added to after it was whole" in after, (before, after)


def seconds_beside_a_slow_one(world: World) -> float:
    engine, own = engine_of(CASES[0], world), LANES // world.size
    if world.rank == 1:
        engine.at_segment = lambda: time.sleep(1)
    rollout = rollout_of(0)
    lanes = rollout.lanes(world.rank * own, (world.rank + 1) * own)
    engine.rollout_backward(lanes, engine.empty_carry(own), int(rollout.lengths.sum()), seed=0)
    seconds = engine.rollout_seconds()
    engine.close()
    return seconds


def test_a_wait_for_a_slow_process_in_the_last_backward_is_not_the_own_time() -> None:
    """By which stragglers are found: all would have the slowest one's."""
    quick, slow = run_distributed(seconds_beside_a_slow_one, 2, timeout_seconds=60)
    assert slow > 2 and quick < slow - 1.5, (quick, slow)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_each_part_goes_through_the_model(parts: int) -> None:
    """Of 24 layers of three sizes; a part's first parameters are from its beginning, its last from its end."""
    layers = [[torch.nn.Parameter(torch.empty(size)) for size in (64, 256, 128)] for _ in range(24)]
    model = [parameter for layer in layers for parameter in layer]
    ordered = through_the_model(model, parts)
    assert sorted(map(id, ordered)) == sorted(map(id, model))
    places, ends = {id(p): i / len(model) for i, p in enumerate(model)}, 0
    total = sum(p.numel() for p in model)
    spans: list[list[float]] = [[] for _ in range(parts)]
    for parameter in ordered:
        middle = ends + parameter.numel() / 2
        spans[int(middle * parts / total)].append(places[id(parameter)])
        ends += parameter.numel()
    for span in spans:
        assert min(span) < 0.2 and max(span) > 0.8
        assert sum(a > b for a, b in itertools.pairwise(span)) <= (parts > 1)


def test_a_case_sends_late_where_decoders_come_first() -> None:
    assert all(sent_while_it_ends(config_of(case)) for case in CASES)
    late = [dataclasses.replace(CASES[0], decoder_batch=2), Case(1, pipeline=2), Case(1, segment=2)]
    late += [Case(1, backbone="matrices", wavefront=2)]
    assert not any(sent_while_it_ends(config_of(case)) for case in late)
