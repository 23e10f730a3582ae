# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentSchedule`: what every process of a segment group does in one rollout, and when.

R ranks share the rollouts of the same lanes. The lanes are in m groups, and the rollout of each is in R pieces of
consecutive segments, one on each rank. A piece is three kinds of tasks (`replay.RolloutPiece`): `advance` waits for the
piece before it, on another rank; `replay` for the one after it; `decode`, most of the work of a Memformer, for neither.
It is divided into some parts, so that nobody waits long for a rank that decodes. The groups begin on different ranks,
so that all ranks are busy from the start and to the end:

    R = 4, m = 4        rank 0       rank 1       rank 2       rank 3
    group 0             piece 0      piece 1      piece 2      piece 3
    group 1             piece 3      piece 0      piece 1      piece 2          group g begins on rank g R / m

Which task a rank takes first is found by list scheduling: of those that are ready the one from which the longest path
leads to the end of the rollout. Times are integers and ties are broken by number: every process computes the same
schedule by itself. What a group's chain of memories costs cannot be divided: with m groups on R ranks at most

    m (advance + decode + replay) / (R (advance + replay) + decode)

of the ranks' time can be work, where a piece's tasks take these times.

Free of deadlock, by construction: every task has a time in the simulation that ordered them; receives are posted before
the first task and sends do not block, so that each wait is for a task of an earlier time. An agreement of all ranks
lies at one time of the simulation, and every task before it needs only tasks before it.
"""

import bisect
import dataclasses
import functools
import heapq
from collections.abc import Sequence
from typing import NamedTuple

ADVANCE, DECODE, REPLAY = "advance", "decode", "replay"
KINDS = (ADVANCE, DECODE, REPLAY)
MEMORY, MEMORY_GRADIENT = "memory", "memory_gradient"
PARTS = 4
"""Tasks that the decoders of a piece are divided into; more would shorten no wait by a hundredth."""


class Task(NamedTuple):
    """Of a rank: something of its piece of a group's rollout."""

    kind: str
    group: int
    part: int = 0


class Interval(NamedTuple):
    """A task and the time that it takes on its rank."""

    task: Task
    start: int
    end: int


class Message(NamedTuple):
    """What crosses a seam between two pieces of a group's rollout: [lanes, K, C] numbers."""

    kind: str
    group: int
    source: int
    target: int


class Agree(NamedTuple):
    """A point that all ranks pass in the same order: a collective here cannot deadlock with the messages."""

    number: int


class SegmentCost(NamedTuple):
    """Time of one lane's segment, in any unit, such as FLOPs. A decoder that is not apart costs 0, within `replay`."""

    advance: int
    decode: int
    replay: int


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Which rank has which piece of which group's rollout.

    Attributes:
        ranks: R, and the pieces of a rollout.
        groups: m, groups of lanes.
    """

    ranks: int
    groups: int

    def rank(self, group: int, piece: int) -> int:
        """Where a piece is."""
        return (piece + group * self.ranks // self.groups) % self.ranks

    def piece(self, rank: int, group: int) -> int:
        """What a rank has of a group's rollout."""
        return (rank - group * self.ranks // self.groups) % self.ranks

    def span(self, piece: int, segments: int) -> range:
        """The numbers of a piece's segments, of `segments` in all; pieces differ by one at most."""
        return range(piece * segments // self.ranks, (piece + 1) * segments // self.ranks)


class SegmentSchedule:
    """The schedule of a rollout; a pure function of its arguments, the same on every process.

    Args:
        ranks: R.
        lanes: Of each group.
        segments: T of the rollout, at least R.
        cost: Of one lane's segment.
        decoder_batch: Segments that the decoder takes at once.
    """

    def __init__(
        self, ranks: int, lanes: Sequence[int], segments: int, cost: SegmentCost, decoder_batch: int = 1
    ) -> None:
        self.pieces, self.segments, self._decoder_batch = Pieces(ranks, len(lanes)), segments, decoder_batch
        self.kinds = KINDS if cost.decode else (ADVANCE, REPLAY)
        self.lanes, self._cost = lanes, cost
        self._batches = [self._divided(piece) for piece in range(ranks)]

    def span(self, rank: int, group: int) -> range:
        """The segments of a group's rollout that a rank has."""
        return self.pieces.span(self.pieces.piece(rank, group), self.segments)

    def batches(self, piece: int) -> list[int]:
        """How many calls of the decoder each part of a piece's decoding makes."""
        return self._batches[piece]

    def _divided(self, piece: int) -> list[int]:
        count = -(-len(self.pieces.span(piece, self.segments)) // self._decoder_batch)
        parts = min(PARTS, count)
        return [(part + 1) * count // parts - part * count // parts for part in range(parts)]

    def tasks(self, group: int, piece: int) -> list[Task]:
        """All of a piece of a group's rollout."""
        parts = len(self.batches(piece))
        return [Task(kind, group, part) for kind in self.kinds for part in range(parts if kind == DECODE else 1)]

    def sent(self, rank: int, task: Task) -> Message | None:
        """What a rank sends when it has done a task."""
        piece = self.pieces.piece(rank, task.group)
        if task.kind == ADVANCE and piece < self.pieces.ranks - 1:
            return Message(MEMORY, task.group, rank, self.pieces.rank(task.group, piece + 1))
        if task.kind == REPLAY and piece > 0:
            return Message(MEMORY_GRADIENT, task.group, rank, self.pieces.rank(task.group, piece - 1))
        return None

    def outgoing(self, rank: int) -> list[Message]:
        """All messages that a rank sends in a rollout, in this order."""
        messages = (self.sent(rank, interval.task) for interval in self.timeline[rank])
        return [message for message in messages if message is not None]

    def incoming(self, rank: int) -> list[Message]:
        """All messages that a rank receives; those of one sender in the order of their sending."""
        sources = {(rank + step) % self.pieces.ranks for step in (1, -1)} - {rank}
        return [message for source in sorted(sources) for message in self.outgoing(source) if message.target == rank]

    def program(self, rank: int) -> list[Task | Agree]:
        """What a rank does, in its order, with agreements at times that are equal on all ranks."""
        intervals = self.timeline[rank]
        starts = [interval.start for interval in intervals]
        count = len(self.kinds) * self.pieces.groups
        before = [bisect.bisect_left(starts, self.makespan * number // count) for number in range(1, count)]
        steps: list[Task | Agree] = []
        for index in range(len(intervals) + 1):
            steps += [Agree(number) for number, at in enumerate(before) if at == index]
            steps += [interval.task for interval in intervals[index : index + 1]]
        return steps

    @property
    def makespan(self) -> int:
        """Time of the whole rollout, in the cost's unit."""
        return max(intervals[-1].end for intervals in self.timeline)

    @property
    def efficiency(self) -> float:
        """Part of the ranks' time in which they work, 0 .. 1; messages take no time."""
        busy = sum(interval.end - interval.start for intervals in self.timeline for interval in intervals)
        return busy / (self.pieces.ranks * self.makespan)

    @property
    def held(self) -> int:
        """Pieces of which a rank keeps the encoder's outputs, or their gradients, at a time, at most; 1 .. m."""
        most = 0
        for intervals in self.timeline:
            now = 0
            for interval in intervals:
                now += (interval.task.kind == ADVANCE) - (interval.task.kind == REPLAY)
                most = max(most, now)
        return most

    def _time(self, task: Task, piece: int) -> int:
        """Of a task, at least 1: equal times would leave the order of cause and effect open."""
        whole: int = (
            getattr(self._cost, task.kind) * self.lanes[task.group] * len(self.pieces.span(piece, self.segments))
        )
        if task.kind == DECODE:
            batches = self.batches(piece)
            whole = whole * batches[task.part] // sum(batches)
        return max(1, whole)

    def _to_the_end(self) -> dict[tuple[Task, int], int]:
        """Longest path from the start of each task of a piece to the end of its group's rollout."""
        found: dict[tuple[Task, int], int] = {}
        for group in range(self.pieces.groups):
            left, decoding = 0, []
            for piece in range(self.pieces.ranks):
                *_, replay = tasks = self.tasks(group, piece)
                left += self._time(replay, piece)
                found[replay, piece] = left
                found |= {(task, piece): left + self._time(task, piece) for task in tasks[1:-1]}
                decoding.append(left + sum(self._time(task, piece) for task in tasks[1:-1]))
            after = 0
            for piece in reversed(range(self.pieces.ranks)):
                advance = Task(ADVANCE, group)
                after = self._time(advance, piece) + max(after, decoding[piece])
                found[advance, piece] = after
        return found

    def _followers(self, task: Task, piece: int) -> list[tuple[Task, int]]:
        """The tasks of pieces that wait for a task, among others."""
        group = task.group
        if task.kind == REPLAY:
            return [(Task(REPLAY, group), piece - 1)] if piece else []
        if task.kind == DECODE:
            return [(Task(REPLAY, group), piece)]
        decoding = [(each, piece) for each in self.tasks(group, piece) if each.kind == DECODE]
        ahead = [(Task(ADVANCE, group), piece + 1)] if piece < self.pieces.ranks - 1 else []
        return ahead + (decoding or [(Task(REPLAY, group), piece)])

    @functools.cached_property
    def timeline(self) -> list[list[Interval]]:
        """Each rank's tasks in order, with their times: a simulation."""
        path = self._to_the_end()
        waits = dict.fromkeys(path, 0)
        for key in path:
            for follower in self._followers(*key):
                waits[follower] += 1
        ready: list[list[tuple[int, Task, int]]] = [[] for _ in range(self.pieces.ranks)]
        found: list[list[Interval]] = [[] for _ in range(self.pieces.ranks)]
        free, now = [True] * self.pieces.ranks, 0
        running: list[tuple[int, int, Task, int]] = []

        def add(task: Task, piece: int) -> int:
            rank = self.pieces.rank(task.group, piece)
            heapq.heappush(ready[rank], (-path[task, piece], task, piece))
            return rank

        touched = {add(*key) for key, count in waits.items() if not count}
        while touched:
            for rank in sorted(touched):
                if free[rank] and ready[rank]:
                    _, task, piece = heapq.heappop(ready[rank])
                    end, free[rank] = now + self._time(task, piece), False
                    found[rank].append(Interval(task, now, end))
                    heapq.heappush(running, (end, rank, task, piece))
            touched = set()
            if running:
                now = running[0][0]
            while running and running[0][0] == now:
                _, rank, task, piece = heapq.heappop(running)
                free[rank] = True
                touched.add(rank)
                for follower in self._followers(task, piece):
                    waits[follower] -= 1
                    if not waits[follower]:
                        touched.add(add(*follower))
        return found
