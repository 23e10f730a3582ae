# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`StreamSettings`: how a data set is read, by how many lanes, in which order, by which rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data_pipeline.blend import Blend
from data_pipeline.document_order import Order
from data_pipeline.errors import UserError
from data_pipeline.index import DocumentIndex
from data_pipeline.plan import LanePlan
from data_pipeline.reading import lanes_of
from data_pipeline.segment_schedule import SegmentSchedule

_MOST_LANES = 1 << 24
LONGEST_SEGMENT = 1 << 40

OnDamage = Literal["stop", "skip"]
Damage = Mapping[int, str]
"""Damaged documents, each with the line that says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What a `SegmentStream` and the plan that it follows are asked for.

    Raises:
        UserError: A setting is out of range.
        ValueError: `skip` on several ranks without `agree`, or a rank that is not in the world.
    """

    num_lanes: int
    """Lanes of the global batch (B over all ranks), at least `world_size`."""

    segment_length: int
    """Tokens a segment, S."""

    num_segments: int | Mapping[int, int]
    """Segments a rollout, T; or a schedule of it, as `SegmentSchedule.of` takes it."""

    seed: int = 0
    """Decides the order of the documents."""

    rank: int = 0
    """This data-parallel rank."""

    world_size: int = 1
    """Number of data-parallel ranks; changes who reads what, never what is read."""

    epochs: int | None = None
    """None to go on for ever, or the number of epochs after which the stream ends. In the last rollouts lanes run
    idle; the number of rollouts is the same on every rank."""

    order: Order = "shuffled"
    """`shuffled`, `longest_first` (best for one epoch of evaluation) or `sequential`."""

    prefetch: int = 2
    """Rollouts read ahead; 0 reads in the calling thread."""

    max_document_tokens: int | None = None
    """Cut longer documents, each piece with a fresh memory; None: never. See `LanePlan`."""

    trained: Callable[[int], NDArray[np.bool_]] | None = None
    """Of a rollout of T segments, which the rank trains, bool `[the rank's lanes, T]`; None: all. Where several ranks
    have the same lanes, each reads its own segments, and of the others those that it must know (`known_segments`)."""

    on_damage: OnDamage = "stop"
    """`stop`: a damaged document is an error. `skip`: all ranks leave the document out from then on."""

    agree: Callable[[Damage], Damage] | None = None
    """With `skip` and several ranks: called by every rank for every batch with what it found in its own, it returns
    what all of them found together."""

    on_skip: Callable[[Damage], None] | None = None
    """Called on every rank with the documents that are left out from now on."""

    def __post_init__(self) -> None:
        try:
            SegmentSchedule.of(self.num_segments)
        except ValueError as error:
            raise UserError(f"num_segments {error}") from None
        for name, most in (("num_lanes", _MOST_LANES), ("segment_length", LONGEST_SEGMENT)):
            if getattr(self, name) > most:
                raise UserError(f"{name} is {getattr(self, name)}; give {most:,} or less")
        if self.num_lanes < self.world_size:
            raise UserError(
                f"num_lanes is {self.num_lanes}; give {self.world_size} or more, one for each data-parallel rank"
            )
        if self.prefetch < 0:
            raise UserError(f"prefetch is {self.prefetch}; give 0 or more rollouts")
        if self.on_damage not in get_args(OnDamage):
            raise UserError(f"on_damage is {self.on_damage!r}; choose {' or '.join(get_args(OnDamage))}")
        if self.on_damage == "skip" and self.world_size > 1 and self.agree is None:
            raise ValueError("on_damage='skip' on several ranks needs agree: ranks must skip the same documents")
        lanes_of(self.rank, self.world_size, self.num_lanes)

    @property
    def segments(self) -> SegmentSchedule:
        """T by the number of rollouts before."""
        return SegmentSchedule.of(self.num_segments)

    @property
    def lanes(self) -> slice:
        """The rank's lanes."""
        return lanes_of(self.rank, self.world_size, self.num_lanes)

    def plan(self, index: DocumentIndex | Blend) -> LanePlan:
        """The plan that every `SegmentStream` with these settings follows; the same for any rank.

        Raises:
            UserError: A setting is out of range, or no document has a token.
        """
        return LanePlan(
            index.lengths,
            num_lanes=self.num_lanes,
            segment_length=self.segment_length,
            seed=self.seed,
            epochs=self.epochs,
            order=self.order,
            fingerprint=index.fingerprint,
            sources=index.sources,
            max_document_tokens=self.max_document_tokens,
        )
