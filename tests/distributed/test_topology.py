# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Four real processes as grids: who is next to whom, and what DeepSpeed is told.

Covers: memformer/processes/topology.py, memformer/training/description.py
"""

from typing import Any

import pytest
import torch

from memformer.processes.group import World
from memformer.processes.topology import Axis
from tests.distributed.processes import run_distributed

WORLD = 4
GRIDS = (
    (1, 1, 1),
    (2, 1, 1),
    (1, 2, 1),
    (4, 1, 1),
    (2, 2, 1),
    (1, 1, 2),
    (2, 1, 2),
    (1, 1, 4),
)  # (tensor, pipeline, segment)


def members(axis: Axis, rank: int) -> list[int]:
    """The ranks along an axis, found by a collective over its group."""
    own = torch.zeros(WORLD)
    own[rank] = 1
    return axis.sum(own).nonzero().flatten().tolist()


def arrange(world: World) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for grid in GRIDS:
        tensor, pipeline, segment = grid
        mesh = world.arranged(*grid).mesh
        axes = {
            name: getattr(mesh, name) for name in ("pipe", "data", "tensor", "replica", "segment", "gradients", "stage")
        }
        found[grid] = {name: members(axis, world.rank) for name, axis in axes.items()}
        for axis in axes.values():
            assert members(axis, world.rank)[axis.rank] == world.rank
            ranks = members(axis, world.rank)
            assert axis.broadcast(torch.tensor(world.rank)).item() == ranks[0]
            assert axis.broadcast(torch.tensor(world.rank), axis.size - 1).item() == ranks[-1]
            assert axis.max(torch.tensor([world.rank, -world.rank])).tolist() == [ranks[-1], -ranks[0]]
            assert axis.gather(world.rank) == ranks
        found[grid]["speaks"] = mesh.speaks
        assert (mesh.gradients is mesh.data) == (segment == 1)
        mpu: Any = mesh.mpu
        assert (mpu is None) == (tensor * pipeline == 1)
        if mpu is not None:
            assert mpu.get_model_parallel_world_size() == tensor * pipeline
            assert mpu.get_tensor_model_parallel_rank() == mesh.tensor.rank
            assert mpu.get_data_parallel_group() is mesh.gradients.group
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_tensor_ranks_are_neighbours_then_segments_then_data_then_stages() -> None:
    ranks = run_distributed(arrange, WORLD)
    first = ranks[0]
    assert first[1, 1, 1]["data"] == [0, 1, 2, 3] and first[1, 1, 1]["replica"] == [0]
    assert first[2, 1, 1]["tensor"] == [0, 1] and first[2, 1, 1]["data"] == [0, 2]
    assert first[1, 2, 1]["data"] == [0, 1] and first[1, 2, 1]["pipe"] == [0, 2] and first[1, 2, 1]["replica"] == [0, 2]
    assert first[4, 1, 1]["tensor"] == [0, 1, 2, 3] and first[4, 1, 1]["data"] == [0]
    assert first[2, 2, 1]["tensor"] == [0, 1] and first[2, 2, 1]["pipe"] == [0, 2] and first[2, 2, 1]["data"] == [0]
    assert first[1, 1, 2]["segment"] == [0, 1] and first[1, 1, 2]["data"] == [0, 2] and first[1, 1, 2]["replica"] == [0]
    assert first[2, 1, 2]["segment"] == [0, 2] and first[2, 1, 2]["data"] == [0] and first[2, 1, 2]["replica"] == [0, 1]
    assert first[1, 1, 2]["gradients"] == first[1, 1, 4]["segment"] == [0, 1, 2, 3]
    assert all(first[grid]["stage"] == list(range(WORLD // grid[1])) for grid in GRIDS)
    # Who have other lanes: one of each speaks.
    for grid, speakers in zip(GRIDS, (4, 2, 2, 1, 1, 2, 1, 1), strict=True):
        assert sum(rank[grid]["speaks"] for rank in ranks) == speakers
