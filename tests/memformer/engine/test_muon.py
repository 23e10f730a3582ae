# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Muon on one process: what orthogonalised means, and its steps against the plain rule and against torch's own Muon.

How matrices are spread over processes is held to the same plain rule by tests/distributed/test_equivalence.py.
"""

from typing import Any

import pytest
import torch

from memformer.config.schema import OptimizerConfig
from memformer.engine.matrix_exchange import MatrixExchange
from memformer.engine.muon import Muon, orthogonalised
from memformer.engine.optimizer import keep_matrices_whole, make_optimizer
from memformer.engine.parameter_state import whole_piece
from memformer.processes.topology import Axis
from tests.memformer.engine.plain_muon import PlainMuon
from tests.memformer.examples import small_model

SHAPES = [(32, 64), (64, 32), (16, 16), (3, 40), (1, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_singular_values_come_near_one_and_their_vectors_stay(
    shape: tuple[int, int], dtype: torch.dtype, rounding: float
) -> None:
    """Against the polar factor by SVD: the same vectors to rounding, values in the band that the quintic has."""
    generator = torch.Generator().manual_seed(sum(shape))
    u, _, v = torch.linalg.svd(torch.randn(*shape, generator=generator, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.01, 1, min(shape), dtype=torch.float64)
    found = orthogonalised((u @ torch.diag(values) @ v).to(dtype)).double()
    turned = u.T @ found @ v.T
    within = turned.diagonal()
    assert 0.68 - rounding < float(within.min()) and float(within.max()) < 1.21 + rounding
    assert float((turned - torch.diag(within)).abs().max()) < rounding
    assert float((found - u @ v).norm() / min(shape) ** 0.5) < 0.33


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_size_and_turn_of_a_matrix_do_not_matter(dtype: torch.dtype) -> None:
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(orthogonalised(matrix * 1024), orthogonalised(matrix))
    assert torch.equal(orthogonalised(matrix.mT), orthogonalised(matrix).mT)


def test_nothing_stays_nothing_and_rounding_stays_small() -> None:
    assert not orthogonalised(torch.zeros(4, 6)).any()
    assert float(orthogonalised(torch.full((4, 6), 1e-13)).abs().max()) < 1e-2


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All weights as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(optimizer: torch.optim.Optimizer, model: Any, steps: int = 3) -> Any:
    """The model after steps with random gradients; in the last one parameter has none."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if step == steps - 1:
            model.writer.query.weight.grad = None
        optimizer.step()
    return model


def test_steps_are_those_of_the_plain_rule() -> None:
    """Relative to the update; seen: 2e-6. Newton-Schulz carries rounding in float32 on, up to 485-fold."""
    config = OptimizerConfig(name="muon", learning_rate=0.02, momentum=0.9, memory_learning_rate=0.05)
    start = flat(small_model(torch.float32))
    made, plain = small_model(torch.float32), small_model(torch.float32)
    optimizer = make_optimizer(made, config, torch.device("cpu"))
    keep_matrices_whole(optimizer, made)
    for group in optimizer.param_groups:
        group["lr"] *= group["rate_factor"]
    ours, theirs = flat(trained(optimizer, made)), flat(trained(PlainMuon(plain, config), plain))
    assert float((ours - theirs).norm() / (theirs - start).norm()) < 1e-4


def test_a_matrix_steps_as_by_torchs_muon() -> None:
    """Which is in bfloat16 within, whatever the matrix: so are we, where the run is."""
    config = OptimizerConfig(name="muon", learning_rate=0.02, weight_decay=0.3)
    theirs, ours = (torch.ones(8, 12, requires_grad=True) for _ in range(2))
    optimizer = Muon([{"params": [ours], "weight_decay": 0.3, "muon": True}], 0.95, torch.float32, lr=0.02)
    optimizer.spread(MatrixExchange(Axis(), [ours], [whole_piece("m", ours)], torch.device("cpu"), torch.bfloat16))
    reference = torch.optim.Muon(
        [theirs], lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ours.grad = torch.randn(8, 12, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    assert float((ours - theirs).detach().norm() / (theirs - 1).detach().norm()) < 2e-2


def test_a_step_before_the_matrices_are_spread_is_refused() -> None:
    model = small_model(torch.float32)
    optimizer = make_optimizer(model, OptimizerConfig(name="muon"), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="where the matrices lie"):
        optimizer.step()
