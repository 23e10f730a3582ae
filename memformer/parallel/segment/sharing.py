# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How a run's rollouts are shared by its segment ranks: groups of lanes, schedule, and what a rank reads."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memformer.config.schema import Config
from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of
from memformer.parallel.pipeline.split import lanes_of_groups
from memformer.parallel.segment.schedule import Pieces, SegmentCost, SegmentSchedule

if TYPE_CHECKING:
    from memformer.processes.topology import Mesh


def groups_of(config: Config, lanes: int) -> list[tuple[int, int]]:
    """(start, stop) of each group of lanes; as many groups as segment ranks, where lanes allow, unless it is set.

    Args:
        config: The run.
        lanes: Of a segment group.
    """
    return lanes_of_groups(lanes, config.parallel.segment, config.training.lanes_per_micro_batch)


def segment_cost(config: Config, model: ModelConfig) -> SegmentCost:
    """FLOPs of one lane's segment; the decoder's apart where the family's is."""
    family = family_of(model)
    flops, again = family.flops(model, config.data.segment_length), config.activation_checkpointing.mode == "full"
    passes = 3 + again
    if not family.decoder_apart:
        return SegmentCost(flops.advance, 0, passes * flops.forward)
    return SegmentCost(flops.advance, passes * (flops.forward - flops.advance), passes * flops.advance)


def schedule_of(config: Config, model: ModelConfig, lanes: int, segments: int) -> SegmentSchedule:
    """The schedule of a run's rollouts of T segments.

    Args:
        config: The run.
        model: Its model.
        lanes: Of a segment group.
        segments: T.
    """
    sizes = [stop - start for start, stop in groups_of(config, lanes)]
    cost, batch = segment_cost(config, model), config.training.segments_per_decoder_batch
    return SegmentSchedule(config.parallel.segment, sizes, segments, cost, batch)


def trained_segments(config: Config, mesh: "Mesh") -> Callable[[int], NDArray[np.bool_]] | None:
    """Which segments of its lanes' rollouts this process trains: T -> bool [lanes, T]; None: all."""
    ranks, rank = mesh.segment.size, mesh.segment.rank
    if ranks == 1:
        return None
    lanes = config.data.num_lanes // mesh.data.size
    groups = groups_of(config, lanes)
    pieces = Pieces(ranks, len(groups))

    def trained(segments: int) -> NDArray[np.bool_]:
        found = np.zeros((lanes, segments), dtype=bool)
        for number, (start, stop) in enumerate(groups):
            span = pieces.span(pieces.piece(rank, number), segments)
            found[start:stop, span.start : span.stop] = True
        return found

    return trained
