# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tensor parallelism knows no family: a model that it never saw is cut by the roles that its family names.

This one has what a Memformer lacks: biases in every linear map, a norm of parts of the width, a map that is more than a
linear one, with dropout of sliced inputs, and a part without a role. Two processes, float64:
differences are those of the order of summation (1e-12). Neither the vocabulary of 7 nor that of the head divides.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Family, Role, Sharding
from memformer.models.heads import Heads, Inputs
from memformer.models.registry import register
from memformer.models.scoring import CHUNK_BYTES, Head, scored_targets
from memformer.parallel.tensor import SlicedConstruction, shard_model, sharding_of, slice_of, whole_tensor
from memformer.processes.group import World
from memformer.processes.topology import Axis
from memformer.replay.segment import Segment
from tests.distributed.processes import run_distributed

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

VOCABULARY, WIDTH, HEADS, LANES, LENGTH = 7, 8, 2, 3, 5


@dataclasses.dataclass(frozen=True)
class InventedConfig(ModelConfig):
    family: ClassVar[str] = "invented"


class InventedWriter(nn.Module):
    """Each head maps its own columns of the input, after a map of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.heads = HEADS, Heads()
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.heads.enter(x)
        return self.heads.join(self.value(x) * self.heads.own(x))


class Scaled(nn.Module):
    """A map by columns that is more than `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = Inputs()
        self.weight = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inputs.linear(self.inputs.dropout(x, 0.5, self.training), self.weight, None)


class Invented(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = InventedConfig()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.before = nn.Identity()
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.of_parts, self.more = nn.RMSNorm(4), Scaled()
        self.untouched = nn.Linear(WIDTH, WIDTH)
        self.writer = InventedWriter()
        self.norm, self.head = nn.RMSNorm(WIDTH), Head(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the head reads."""
        x = self.untouched(self.embedding(tokens))
        up = self.of_parts(torch.relu(self.up(self.before(x))).unflatten(-1, (-1, 4))).flatten(-2)
        x = x + self.down(up) + self.more(up)
        normed: torch.Tensor = self.norm(x + self.writer(x))
        return normed


def roles(module: nn.Module) -> Iterator[tuple[nn.Module, Role]]:
    if isinstance(module, InventedWriter):
        yield from ((module, Role.JOINED_HEADS), (module.value, Role.COLUMNS))
    if isinstance(module, Invented):
        # The head first: that it is cut after an embedding, which it may be tied to, does not depend on the order.
        yield from ((module.head, Role.HEAD), (module.embedding, Role.VOCABULARY))
        yield from ((module.before, Role.BEFORE), (module.norm, Role.BEFORE))
        yield from ((module.up, Role.COLUMNS), (module.down, Role.ROWS), (module.more, Role.ROWS))
        yield module.of_parts, Role.SUMMED
        yield from roles(module.writer)


def register_invented() -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("tensor parallelism asks for none of this")

    sharding = Sharding(sizes=lambda config: {"heads": HEADS}, roles=roles)
    register(Family("invented", "Invented", InventedConfig, refuse, refuse, refuse, shard=sharding))


def model_of(tied: bool) -> Invented:
    torch.manual_seed(0)
    model = Invented().double()
    if tied:
        model.head.weight = model.embedding.weight
    return model


def answers(model: Invented) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (LANES, LENGTH), generator=generator)
    torch.manual_seed(2)  # of the dropout
    lengths = torch.tensor([LENGTH, 2, 0])
    segment = Segment(tokens, lengths, tokens.flip(1), lengths, torch.zeros(LANES, dtype=torch.bool), True)
    x = model(tokens)
    losses = model.head(x, scored_targets(segment))
    (losses * torch.linspace(-1, 2, LENGTH)).sum().backward()
    return {"logits": model.head.score.whole(model.head(x)).detach(), "losses": losses.detach()}


def compare(world: World, tied: bool, chunk_bytes: int) -> dict[str, float]:
    """Largest difference to the whole model, by what was asked."""
    register_invented()
    axis = world.arranged(2, 1).mesh.tensor
    plain, parts = model_of(tied), model_of(tied)
    shard_model(parts, axis)
    shard_model(parts, axis)  # as after a construction that has cut it: each module is cut once
    assert (parts.head.weight is parts.embedding.weight) == tied
    parts.head.chunk_bytes = chunk_bytes
    assert parts.writer.num_heads == HEADS // 2 and slice_of(parts.untouched.weight) is None
    expected, got = answers(plain), answers(parts)
    errors = {name: float((got[name] - expected[name]).abs().max()) for name in expected}
    for (name, whole), part in zip(plain.named_parameters(), parts.parameters(), strict=True):
        assert whole.grad is not None and part.grad is not None, name
        assert whole.grad.abs().max() > 0, name
        errors[name] = float((whole_tensor(part, axis, part.grad) - whole.grad).abs().max())
    return errors


@pytest.mark.parametrize(
    ("tied", "chunk_bytes"),
    [
        (True, CHUNK_BYTES),
        (False, LANES * LENGTH * 3 * 8),  # the first process's 3 ids alone would be whole
        (True, 3 * 8 * 4),  # 5 chunks
    ],
)
def test_an_invented_family_is_cut_by_its_roles(tied: bool, chunk_bytes: int) -> None:
    """Its losses too, with whole logits or in chunks, which the processes agree on whatever their parts."""
    ranks: list[dict[str, float]] = run_distributed(compare, 2, tied, chunk_bytes)
    for errors in ranks:
        assert not {name: error for name, error in errors.items() if not error < 1e-12}
        assert {"logits", "losses", "up.bias", "down.bias", "head.bias", "writer.value.bias"} <= errors.keys()


def test_a_part_whose_matrices_are_drawn_from_each_other_is_built_whole() -> None:
    register_invented()
    construction = SlicedConstruction(Axis(0, 2), sharding_of(InventedConfig()))
    assert slice_of(construction.built(InventedWriter()).value.weight) is None
    assert slice_of(construction.built(Invented().up).weight) is None, "a part without a role"


def test_a_module_that_cannot_take_its_role_is_named() -> None:
    register_invented()
    model: Any = model_of(tied=False)
    model.down = nn.Bilinear(WIDTH, WIDTH, WIDTH)
    with pytest.raises(TypeError, match="a Bilinear cannot become a RowParallelLinear"):
        shard_model(model, Axis(0, 2))
