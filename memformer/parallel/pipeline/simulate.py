# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""List scheduling: tasks in the order in which stages of known speed would take them up.

Each stage, whenever it is idle, takes the ready task from which the longest path leads to the end of the rollout
(Graham's list scheduling with the critical path as priority; "HEFT" without a choice of processor), within the window
that bounds what is held. Whether micro-batches should advance side by side (which hides the chain of a memory through
several encoder stages) or one after another (which feeds the decoder stages sooner) depends on the layout, so several
group sizes are tried, with and without preference for backwards, and the shortest rollout is kept. Times are integers
and ties are broken by number: every process computes the same schedule by itself.
"""

import dataclasses
import heapq
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from memformer.parallel.pipeline.tasks import (
    ADVANCE,
    DECODE,
    DECODE_BACKWARD,
    REPLAY,
    REPLAY_BACKWARD,
    Layout,
    Task,
)


class StageCost(NamedTuple):
    """Time of a stage for each task of one segment of one micro-batch, in any unit: FLOPs, or 1 for a forward."""

    advance: int
    replay: int
    replay_backward: int
    decode: int = 0
    decode_backward: int = 0

    @classmethod
    def of(cls, encoder: int, decoder: int = 0) -> "StageCost":
        """From the forward costs; a backward costs twice that where nothing is computed again."""
        return cls(encoder, encoder, 2 * encoder, decoder, 2 * decoder)

    def of_task(self, kind: str) -> int:
        """The time of a task, at least 1: equal times would leave the order of cause and effect open."""
        return max(1, getattr(self, kind, 1))


class Interval(NamedTuple):
    """A task and the time that it takes on its stage."""

    task: Task
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Timeline:
    """What the simulation found.

    Attributes:
        intervals: Each stage's tasks in order, with their times.
        early: (micro-batch, segment) whose context the decoder takes from the first pass.
        makespan: End of the last task.
    """

    intervals: tuple[tuple[Interval, ...], ...]
    early: frozenset[tuple[int, int]]
    makespan: int


def best_timeline(layout: Layout, costs: Sequence[StageCost], window: int) -> Timeline:
    """The shortest of the timelines that are tried.

    Args:
        layout: Which stage does what.
        costs: Of each stage.
        window: Largest number of segments whose graph a stage holds, of encoder and of decoder layers each, and of
            segments that the decoder has begun ahead of their replay.
    """
    graph = _Graph(layout, costs)
    found: Timeline | None = None
    group = 1
    while found is None or group < 2 * layout.micro_batches:
        for backward_first in (False, True):
            timeline = _Simulation(graph, window, min(group, layout.micro_batches), backward_first).run()
            if found is None or timeline.makespan < found.makespan:
                found = timeline
        group *= 2
    return found


class _Graph:
    """The tasks of one micro-batch as numbered nodes; those of all micro-batches look alike."""

    def __init__(self, layout: Layout, costs: Sequence[StageCost]) -> None:
        one = dataclasses.replace(layout, micro_batches=1)
        self.layout = layout
        self.nodes = [(stage, task) for stage in range(one.stages) for task in one.tasks(stage)]
        number = {node: index for index, node in enumerate(self.nodes)}
        self.cost = [costs[stage].of_task(task.kind) for stage, task in self.nodes]
        self.successors: list[list[int]] = [[] for _ in self.nodes]
        # The context of a segment's decoder: from its advance or from its replay.
        self.context: dict[int, int] = {}
        for index, (stage, task) in enumerate(self.nodes):
            for need in one.local_needs(stage, task):
                self.successors[number[stage, need]].append(index)
            takes_context = one.context(stage, task)
            if takes_context is not None:
                self.context[index] = number[takes_context]
            for message in one.outgoing(stage, task):
                if (message.target, message.task) != takes_context:
                    self.successors[index].append(number[message.target, message.task])
        self.needs = [0] * len(self.nodes)
        for index, targets in enumerate(self.successors):
            for target in targets:
                self.needs[target] += 1
            if index in self.context and self.nodes[index][1].kind == REPLAY:
                self.needs[self.context[index]] += 1
        self.rank = self._ranks()

    def _ranks(self) -> list[int]:
        """Longest path from the start of each node to the end."""
        waiting, order = list(self.needs), [index for index, count in enumerate(self.needs) if not count]
        for index in order:
            for target in self._followers(index):
                waiting[target] -= 1
                if not waiting[target]:
                    order.append(target)
        rank = [0] * len(self.nodes)
        for index in reversed(order):
            rank[index] = self.cost[index] + max((rank[target] for target in self._followers(index)), default=0)
        return rank

    def _followers(self, index: int) -> list[int]:
        follower = self.context.get(index) if self.nodes[index][1].kind == REPLAY else None
        return self.successors[index] + ([] if follower is None else [follower])


class _Simulation:
    """One timeline: micro-batches in groups of `group`, earlier groups first, within a group by the longest path.

    With `backward_first`, what closes a graph goes before all else. A node of micro-batch i is numbered i * (nodes of
    one micro-batch) + its number in the graph.
    """

    OPENS: ClassVar = {REPLAY: 0, DECODE: 1}
    CLOSES: ClassVar = {REPLAY_BACKWARD: 0, DECODE_BACKWARD: 1}
    """Tasks that open and close a graph: 0 of the encoder's, 1 of the decoder's."""

    def __init__(self, graph: _Graph, window: int, group: int, backward_first: bool) -> None:
        self.graph, self.window, self.group, self.backward_first = graph, window, group, backward_first
        layout = self.layout = graph.layout
        self.size = len(graph.nodes)
        self.needs = graph.needs * layout.micro_batches
        self.intervals: list[list[Interval]] = [[] for _ in range(layout.stages)]
        # What may start, by stage: tasks that open a graph of the encoder, of the decoder, and others.
        self.ready: list[list[list[tuple[bool, int, int, int]]]] = [[[], [], []] for _ in range(layout.stages)]
        self.held = [[0, 0] for _ in range(layout.stages)]
        self.early: set[tuple[int, int]] = set()
        self.early_held = 0
        self.idle = [True] * layout.stages
        self.finishing: list[tuple[int, int]] = []

    def run(self) -> Timeline:
        """Lets idle stages take up tasks and the earliest tasks end, in turn, until all are done."""
        for node, count in enumerate(self.needs):
            if not count:
                self._becomes_ready(node)
        now = 0
        while True:
            for stage in range(self.layout.stages):
                if self.idle[stage]:
                    self._take_up(stage, now)
            if not self.finishing:
                break
            now = self.finishing[0][0]
            while self.finishing and self.finishing[0][0] == now:
                self._ends(heapq.heappop(self.finishing)[1])
        if any(self.needs):
            raise RuntimeError(f"no schedule for {self.layout} with a window of {self.window}")
        return Timeline(tuple(map(tuple, self.intervals)), frozenset(self.early), now)

    def _becomes_ready(self, node: int) -> None:
        micro_batch, index = divmod(node, self.size)
        stage, task = self.graph.nodes[index]
        later = self.backward_first and task.kind not in self.CLOSES
        key = (later, micro_batch // self.group, -self.graph.rank[index], node)
        heapq.heappush(self.ready[stage][self.OPENS.get(task.kind, 2)], key)

    def _met(self, node: int) -> None:
        """One of the things that a task needs is there."""
        self.needs[node] -= 1
        if not self.needs[node]:
            self._becomes_ready(node)

    def _take_up(self, stage: int, now: int) -> None:
        """An idle stage begins the first of the tasks that are ready and that the window allows, if there is one."""
        held, window = self.held[stage], self.window
        heaps = [
            heap for number, heap in enumerate(self.ready[stage]) if heap and (number == 2 or held[number] < window)
        ]
        if not heaps:
            return
        node = heapq.heappop(min(heaps))[-1]
        micro_batch, index = divmod(node, self.size)
        task, end = self.graph.nodes[index][1], now + self.graph.cost[index]
        if task.kind in self.OPENS:
            held[self.OPENS[task.kind]] += 1
        self.idle[stage] = False
        self.intervals[stage].append(Interval(task._replace(micro_batch=micro_batch), now, end))
        heapq.heappush(self.finishing, (end, node))

    def _ends(self, node: int) -> None:
        """A task is done: its stage is idle, and tasks that waited for it may be ready."""
        micro_batch, index = divmod(node, self.size)
        stage, task = self.graph.nodes[index]
        self.idle[stage] = True
        if task.kind in self.CLOSES:
            self.held[stage][self.CLOSES[task.kind]] -= 1
        place = (micro_batch, task.segment)
        if task.kind == REPLAY_BACKWARD and stage == self.layout.writer_stage and place in self.early:
            self.early_held -= 1
        for target in self.graph.successors[index]:
            self._met(micro_batch * self.size + target)
        if index in self.graph.context:
            if task.kind == ADVANCE and self.early_held < self.window:
                self.early.add(place)
                self.early_held += 1
            if (task.kind == ADVANCE) == (place in self.early):
                self._met(micro_batch * self.size + self.graph.context[index])
