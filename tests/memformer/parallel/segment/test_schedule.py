# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The schedule of segments over ranks: every dependency holds, what is held is bounded, and how long ranks wait.

Covers: memformer/parallel/segment/schedule.py, memformer/parallel/segment/sharing.py
"""

import itertools
from collections import Counter

import numpy as np
import pytest

from memformer import MemformerConfig
from memformer.config.schema import parse_config
from memformer.models.memformer.flops import segment_flops
from memformer.parallel.segment.schedule import (
    ADVANCE,
    DECODE,
    MEMORY,
    MEMORY_GRADIENT,
    PARTS,
    REPLAY,
    Agree,
    Pieces,
    SegmentCost,
    SegmentSchedule,
    Task,
)
from memformer.parallel.segment.sharing import schedule_of, trained_segments
from memformer.processes.topology import Axis, Mesh

RANKS = (1, 2, 3, 5, 8, 13, 16, 31, 64)
COST = SegmentCost(17, 249, 51)  # 4+16 layers, about: of a forward 17 % lie on the memory's way
"""FLOPs of a segment in hundredths of a forward."""


def needs(schedule: SegmentSchedule, task: Task, piece: int) -> list[tuple[Task, int]]:
    """Tasks of pieces that must be done before a task, written down once more."""
    last, group = schedule.pieces.ranks - 1, task.group
    if task.kind == ADVANCE:
        return [(Task(ADVANCE, group), piece - 1)] if piece else []
    if task.kind == DECODE:
        return [(Task(ADVANCE, group), piece)]
    after = [(Task(REPLAY, group), piece + 1)] if piece < last else []
    return [*((each, piece) for each in schedule.tasks(group, piece) if each.kind != REPLAY), *after]


@pytest.mark.parametrize("cost", [COST, SegmentCost(100, 0, 400)], ids=["decoder apart", "whole"])
@pytest.mark.parametrize("ranks", RANKS)
def test_dependencies_hold_and_every_message_finds_its_receive(ranks: int, cost: SegmentCost) -> None:
    for groups, segments in ((1, ranks), (3, 4096), (8, 2 * ranks + 1), (ranks + 1, 64)):
        schedule = SegmentSchedule(ranks, [1 + group % 2 for group in range(groups)], segments, cost)
        times = {
            (each.task, schedule.pieces.piece(rank, each.task.group)): each
            for rank in range(ranks)
            for each in schedule.timeline[rank]
        }
        assert len(times) == sum(map(len, schedule.timeline))
        kinds = Counter((task.kind, task.group, piece) for task, piece in times)
        for group, piece in itertools.product(range(groups), range(ranks)):
            decoded = len(schedule.pieces.span(piece, segments))
            assert kinds[ADVANCE, group, piece] == kinds[REPLAY, group, piece] == 1
            assert kinds[DECODE, group, piece] == (min(decoded, PARTS) if cost.decode else 0)
            assert sum(schedule.batches(piece)) == decoded
        for (task, piece), interval in times.items():
            assert all(times[need].end <= interval.start for need in needs(schedule, task, piece))
        for rank in range(ranks):
            own = schedule.timeline[rank]
            assert all(before.end <= after.start for before, after in itertools.pairwise(own))
            assert schedule.outgoing(rank) == [m for m in schedule.outgoing(rank) if m.source == rank != m.target]
        sent = Counter(message for rank in range(ranks) for message in schedule.outgoing(rank))
        assert sent == Counter(message for rank in range(ranks) for message in schedule.incoming(rank))
        assert Counter(message.kind for message in sent) == Counter(
            {kind: groups * (ranks - 1) for kind in (MEMORY, MEMORY_GRADIENT) if ranks > 1}
        )
        # No collective waits for a process that waits for what another does after it.
        behind: dict[tuple[Task, int], int] = {}
        for rank in range(ranks):
            number = 0
            for step in schedule.program(rank):
                if isinstance(step, Agree):
                    assert step.number == number
                    number += 1
                else:
                    behind[step, schedule.pieces.piece(rank, step.group)] = number
            assert number == len(schedule.kinds) * groups - 1
        for key, number in behind.items():
            assert all(behind[need] <= number for need in needs(schedule, *key))
        assert schedule.held <= groups


@pytest.mark.parametrize("ranks", RANKS)
def test_pieces_are_the_rollout(ranks: int) -> None:
    for groups in (1, 2, 8, 70):
        pieces = Pieces(ranks, groups)
        for group in range(groups):
            assert [pieces.piece(pieces.rank(group, piece), group) for piece in range(ranks)] == list(range(ranks))
        starts = Counter(pieces.rank(group, 0) for group in range(groups))
        assert max(starts.values()) == -(-groups // ranks), "groups begin on as many ranks as there are"
    spans = [pieces.span(piece, 4096) for piece in range(ranks)]
    assert [t for span in spans for t in span] == list(range(4096))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def efficiency(ranks: int, groups: int, segments: int = 4096) -> float:
    config = MemformerConfig(num_encoder_layers=4, num_decoder_layers=16, d_model=1024, num_heads=16, vocab_size=32000)
    flops = segment_flops(config, 1024)
    cost = SegmentCost(flops.advance, 3 * (flops.forward - flops.advance), 3 * flops.advance)
    found = SegmentSchedule(ranks, [1] * groups, segments, cost)
    bound = groups * sum(cost) / (ranks * (cost.advance + cost.replay) + cost.decode)
    assert found.efficiency <= min(1, bound) + 1e-9
    return found.efficiency


def test_ranks_do_not_wait_where_there_are_as_many_groups_of_lanes() -> None:
    """4+16 layers, as docs/parallelism.md has it; nothing depends on T but for pieces that differ by a segment."""
    for ranks in (2, 8, 64):
        assert efficiency(ranks, ranks) > 0.99 and efficiency(ranks, ranks, segments=ranks) > 0.99
    # A quarter as many are enough for nine tenths; an eighth are not, whatever the order: the chain is longer.
    assert efficiency(64, 16) > 0.9 and efficiency(64, 32) > 0.97
    assert 0.55 < efficiency(64, 8) < 0.6 and efficiency(64, 1) < 0.08


def test_a_runs_schedule_and_what_each_rank_trains() -> None:
    parallel = {"segment": 3}
    data = {"path": "unused", "num_lanes": 8, "num_segments": 7}
    config = parse_config({"run_dir": "unused", "model": {"vocab_size": 9}, "data": data, "parallel": parallel}, "test")
    schedule = schedule_of(config, config.model, 4, 7)
    assert schedule.pieces == Pieces(3, 4) and schedule.kinds == (ADVANCE, DECODE, REPLAY)
    whole = np.zeros((4, 7), dtype=int)
    for rank in range(3):
        mesh = Mesh(Axis(), Axis(1, 2), Axis(), Axis(), Axis(rank, 3), Axis(3 + rank, 6), Axis(3 + rank, 6))
        trained = trained_segments(config, mesh)
        assert trained is not None
        for group in range(4):
            assert trained(7)[group].nonzero()[0].tolist() == list(schedule.span(rank, group))
        whole += trained(7)
    assert (whole == 1).all()
    assert trained_segments(config, Mesh.of_data(0, 2)) is None
