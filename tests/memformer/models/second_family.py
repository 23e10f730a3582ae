# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A second family, to show that the system needs no line for one: a decoder-only transformer that carries slots.

A segment is read as [the memory ; start, x_0 .. x_{S-2}, x_{S-1} ; K write tokens], causally: the outputs at the write
tokens are the next memory, those from start on predict the segment.

Shapes: B lanes, S tokens a segment, K slots, D width, L = K + S + 1 + K positions, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from memformer.models.configuration import ModelConfig, require
from memformer.models.family_record import Family

if TYPE_CHECKING:
    from memformer.models.construction import Construction


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Sizes of the model."""

    family: ClassVar[str] = "recurrent-decoder"
    stacks: ClassVar[tuple[str, ...]] = ("num_layers",)

    num_layers: int = 2
    """Layers."""
    width: int = 32
    """Width D."""
    num_heads: int = 2
    """Attention heads; must divide width."""
    num_slots: int = 4
    """Slots K."""
    dropout: float = 0.0
    """Dropout probability."""
    vocab_size: int | None = None
    """Token ids."""
    start_token_id: int | None = None
    """Id of the start token."""
    segment_length: int | None = None
    """Tokens S of a segment."""

    def __post_init__(self) -> None:
        require(self.width % self.num_heads == 0, "num_heads", self.num_heads, f"choose a divisor of {self.width}")

    @property
    def memory_shape(self) -> tuple[int, int]:
        return self.num_slots, self.width

    def summary(self) -> str:
        return f"{self.num_layers} layers, width {self.width}, {self.num_slots} slots"

    def rows(self) -> dict[str, str]:
        return {"layers": str(self.num_layers), "memory": f"{self.num_slots} slots"}

    def tied(self) -> Mapping[str, str]:
        return {"head.weight": "embedding.weight"}


class Flops(NamedTuple):
    """Operations of a segment: all of it is on the memory's path but the head."""

    layers: int
    head: int

    @property
    def forward(self) -> int:
        return self.layers + self.head

    @property
    def advance(self) -> int:
        return self.layers


def flops(config: RecurrentConfig, segment_length: int) -> Flops:
    positions, width = segment_length + 1 + 2 * config.num_slots, config.width
    layer = 24 * positions * width**2 + 4 * positions**2 * width
    return Flops(config.num_layers * layer, 2 * segment_length * width * (config.vocab_size or 0))


def build(config: RecurrentConfig, construction: "Construction | None" = None) -> Any:
    from tests.memformer.models.second_family_model import RecurrentDecoder

    return RecurrentDecoder(config, construction)


def reader(model: Any, batch_size: int = 1, segment_length: int | None = None) -> Any:
    from tests.memformer.models.second_family_model import RecurrentReader

    return RecurrentReader(model, batch_size, segment_length)


FAMILY = Family(RecurrentConfig.family, "RecurrentDecoder", RecurrentConfig, build, flops, reader)
