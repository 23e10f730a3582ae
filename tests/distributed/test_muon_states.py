# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Muon's states in pieces: two processes train a step at ZeRO 2, and others go on from what they have written.

The same processes go on to the last bit; other topologies to the rounding that Newton-Schulz carries on, which
tests/distributed/short_runs.py bounds. With states in bfloat16 a sum in another order may round another way: 0.4 % of a
number of the momentum, and 4 % of a direction (seen), whose small singular values are made large.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from memformer.config.schema import OptimizerConfig
from memformer.engine.base import Engine
from memformer.engine.fragments import FragmentReader
from memformer.parallel.tensor import whole_tensor
from memformer.processes.group import World
from memformer.replay import Carry
from tests.distributed.processes import run_distributed
from tests.distributed.short_runs import LANES, LENGTH, Case, counted_of, engine_of, known_of, rollout_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
SAVED = Case(2, data=2, optimizer="muon")
NARROW = Case(2, data=2, optimizer="muon", state_dtype="bfloat16")
RESUMED = [
    SAVED,
    Case(0, data=2, optimizer="muon"),
    Case(1, data=1, tensor=2, optimizer="muon"),
    Case(3, data=2, optimizer="muon"),
    Case(1, data=1, pipeline=2, optimizer="muon"),
]
NARROW_RESUMED = [NARROW, Case(1, data=1, tensor=2, optimizer="muon", state_dtype="bfloat16")]


def step(engine: Engine, case: Case) -> torch.Tensor:
    """One optimizer step on documents that begin with it; all weights then, by name."""
    carry = Carry.empty(engine.initial_memory(LANES // case.data), LENGTH)
    rollout = rollout_of(0)
    engine.rollout_backward(known_of(rollout, engine), carry, counted_of(rollout), seed=0)
    assert engine.step(OptimizerConfig().learning_rate).applied
    mesh = engine.world.mesh
    with engine.whole_model():
        own = {name: whole_tensor(p, mesh.tensor) for name, p in engine.model.named_parameters()}
    whole = {name: weight.detach() for stage in mesh.pipe.gather(own) for name, weight in stage.items()}
    return torch.cat([whole[name].flatten() for name in sorted(whole)])


def lives(world: World, folder: str, saved: Case, resumed: list[Case]) -> dict[str, Any]:
    """The weights after one step, after two in one life, and after the second by others; and what was stored."""
    engine, files = engine_of(world, saved), [Path(folder) / f"rank-{rank}.safetensors" for rank in range(world.size)]
    before = step(engine, saved)
    tensors, metadata = engine.parameter_state().tensors()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, files[world.rank], metadata)
    kinds = {name.partition("/")[0]: str(tensor.dtype) for name, tensor in tensors.items()}
    whole, after = step(engine, saved), []
    engine.close()
    for case in resumed:
        engine = engine_of(world, case)
        engine.load_parameters(FragmentReader(files))
        after.append(step(engine, case).numpy())
        engine.close()
    names = FragmentReader(files)
    stored = {name: sorted(names.kinds(name)) for name in names.names()}
    return {"before": before.numpy(), "whole": whole.numpy(), "after": after, "kinds": kinds, "stored": stored}


@pytest.mark.parametrize(
    ("saved", "resumed", "dtype", "limit"),
    [(SAVED, RESUMED, "float32", 1e-4), (NARROW, NARROW_RESUMED, "bfloat16", 0.1)],
    ids=["float32", "bfloat16"],
)
def test_any_topology_goes_on_from_the_states_of_another(
    tmp_path: Path, saved: Case, resumed: list[Case], dtype: str, limit: float
) -> None:
    found = run_distributed(lives, 2, str(tmp_path), saved, resumed)[0]
    before, whole = torch.from_numpy(found["before"]), torch.from_numpy(found["whole"])
    for case, weights in zip(resumed, map(torch.from_numpy, found["after"]), strict=True):
        error = float((weights - whole).norm() / (whole - before).norm())
        assert error == 0 if case == saved else error < limit, f"{case}: {error}"
    states = {"exp_avg", "exp_avg_sq", "momentum_buffer"}
    assert found["kinds"] == {"weight": "torch.float32"} | dict.fromkeys(states, f"torch.{dtype}")
    assert found["stored"]["embedding.tokens.weight"] == ["exp_avg", "exp_avg_sq", "weight"]
    assert found["stored"]["writer.query.weight"] == ["momentum_buffer", "weight"]
