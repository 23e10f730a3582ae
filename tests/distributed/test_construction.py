# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A model that is spread while it is built has the plain construction's weights, and is never whole anywhere.

Covers: memformer/models/construction.py
"""

import copy
import dataclasses
import hashlib
from typing import Any

import pytest
import torch

from benchmarks.activations import LiveTensors
from memformer import Memformer, MemformerConfig
from memformer.models.sizes import count_parameters
from memformer.parallel.tensor import SlicedConstruction, shard_model, sharding_of, slice_of
from memformer.processes.group import World
from memformer.processes.topology import Axis
from memformer.training.initial_weights import Partitioned
from tests.distributed.processes import run_distributed

pytestmark = pytest.mark.distributed
WORLD = 4
MODEL = MemformerConfig(
    num_encoder_layers=4,
    num_decoder_layers=6,
    d_model=64,
    num_heads=4,
    d_ff=256,
    num_memory_slots=7,
    vocab_size=301,
    start_token_id=300,
)
VARIANTS = [
    MODEL,
    dataclasses.replace(MODEL, tie_embeddings=False),
    dataclasses.replace(MODEL, num_memory_slots=0),
    dataclasses.replace(MODEL, memory_read_norm=True),
]


def fingerprint(name: str, parameter: torch.Tensor) -> tuple[str, str]:
    return name, hashlib.sha256(parameter.detach().cpu().numpy().tobytes()).hexdigest()


class Stored:
    """A tensor in a file, which counts what is read of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.read = tensor, 0

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, part: Any) -> torch.Tensor:
        self.read += self.tensor[part].numel()
        return self.tensor[part].clone()


def stored_for(shape: torch.Size, number: int) -> Stored:
    return Stored(torch.arange(shape.numel(), dtype=torch.float64).view(shape).cos() + number)


def read_shares() -> dict[str, Any]:
    """A model without numbers of its own to which each process reads its share; what it read, and what is wrong."""
    construction = Partitioned()
    construction.reads = True
    model, read, wrong = Memformer(MODEL, construction), 0, []
    for number, (name, parameter) in enumerate(model.named_parameters()):
        shared: Any = parameter
        stored = stored_for(shared.ds_shape, number)
        construction.read(name, parameter, stored)
        read += stored.read
        with construction.whole([parameter]):
            if not torch.equal(parameter, stored.tensor.float()):
                wrong.append(name)
        with pytest.raises(ValueError, match="has shape"):
            construction.read(name, parameter, Stored(torch.zeros(3, 3)))
    return {"read": read, "wrong": wrong}


def construct(world: World) -> list[dict[str, Any]]:
    results = [read_shares()]
    for offload, config in [(False, each) for each in VARIANTS] + [(True, MODEL)]:
        construction = Partitioned(offload)
        torch.manual_seed(5)
        with LiveTensors() as live:
            model = Memformer(config, construction)
        next_number = float(torch.rand(()))
        weights = []
        for name, parameter in model.named_parameters():
            with construction.whole([parameter]):
                weights.append(fingerprint(name, parameter))
        shares = sum(parameter.ds_tensor.numel() for parameter in model.parameters())
        results.append({"weights": weights, "peak": live.meter.peak_bytes, "next": next_number, "shares": shares})
    return results


@pytest.fixture(scope="module")
def found() -> list[list[dict[str, Any]]]:
    """By rank: what was read into a model, and what was constructed."""
    return run_distributed(construct, WORLD)


@pytest.fixture(scope="module")
def constructed(found: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """By rank, then by variant (the last one offloaded)."""
    return [rank[1:] for rank in found]


def test_each_process_reads_its_share(found: list[list[dict[str, Any]]]) -> None:
    """Whole rows, so that rows at the borders are read twice; never the whole model."""
    whole = count_parameters(MODEL)
    for rank in found:
        assert rank[0]["wrong"] == []
        assert whole / WORLD * 0.9 < rank[0]["read"] < whole / WORLD * 1.1


@pytest.mark.parametrize("index", range(len(VARIANTS) + 1))
def test_weights_are_those_of_the_plain_construction(constructed: list[list[dict[str, Any]]], index: int) -> None:
    """Bit for bit, and the random stream goes on from the same place."""
    torch.manual_seed(5)
    model = Memformer([*VARIANTS, MODEL][index])
    next_number = float(torch.rand(()))
    expected = [fingerprint(name, parameter) for name, parameter in model.named_parameters()]
    for rank in constructed:
        assert rank[index]["weights"] == expected
        assert rank[index]["next"] == next_number


@pytest.mark.parametrize("index", range(len(VARIANTS) + 1))
def test_no_process_ever_holds_the_whole_model(constructed: list[list[dict[str, Any]]], index: int) -> None:
    """At most its share, and a few copies of the largest part (drawn, and on its way to the others)."""
    config = [*VARIANTS, MODEL][index]
    whole = 4 * count_parameters(config)
    layer = 4 * (8 * config.d_model**2 + 2 * config.d_model * config.d_ff + 6 * config.d_model)
    for rank in constructed:
        assert rank[index]["shares"] < whole / 4 / WORLD + 4096
        assert rank[index]["peak"] < whole / WORLD + 3 * layer < 0.6 * whole


@pytest.mark.parametrize("config", VARIANTS)
def test_tensor_parallel_parts_are_cut_from_the_plain_weights(config: MemformerConfig) -> None:
    """Bit for bit, and the random stream goes on from the same place; a process holds its part and a few layers."""
    torch.manual_seed(5)
    plain = Memformer(config)
    next_number = float(torch.rand(()))
    whole = dict(plain.named_parameters())
    layer = 4 * (8 * config.d_model**2 + 2 * config.d_model * config.d_ff + 6 * config.d_model)
    for rank in (0, 1):
        axis = Axis(rank, 2)
        torch.manual_seed(5)
        with LiveTensors() as live:
            model = Memformer(config, SlicedConstruction(axis, sharding_of(config)))
        assert float(torch.rand(())) == next_number
        shard_model(model, axis)
        again = copy.deepcopy(plain)
        shard_model(again, axis)
        for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
            part, expected = slice_of(ours), whole[name]
            assert part == slice_of(theirs)
            if part is not None:
                expected = expected.narrow(part.dim, part.start, part.stop - part.start)
            assert torch.equal(ours, expected) and torch.equal(theirs, expected), name
        assert live.meter.peak_bytes < 4 * count_parameters(config) / 2 + 3 * layer
        assert_reads_its_part(model, SlicedConstruction(axis, sharding_of(config)))
        assert (model.head.weight is model.embedding.tokens.weight) == config.tie_embeddings
        assert {type(m).__name__ for m in model.modules()} == {type(m).__name__ for m in again.modules()}


def assert_reads_its_part(model: torch.nn.Module, construction: SlicedConstruction) -> None:
    """A copy of the model gets what is stored, and of a cut parameter only the process's rows or columns are read."""
    model = copy.deepcopy(model)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        part = slice_of(parameter)
        stored = stored_for(torch.Size(part.shape) if part else parameter.shape, number)
        construction.read(name, parameter, stored)
        expected = stored.tensor if part is None else stored.tensor.narrow(part.dim, part.start, part.stop - part.start)
        assert torch.equal(parameter, expected.float()) and stored.read == parameter.numel()
        with pytest.raises(ValueError, match="has shape"):
            construction.read(name, parameter, Stored(torch.zeros(3, 3)))
