# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`ReplaySchedule`: what every stage of a pipeline does in one rollout, instruction by instruction.

The bubble. Apart from the memory's two chains, the segments of a micro-batch are as independent as micro-batches are,
so with stages of equal work it is about that of 1F1B with m * T micro-batches,

    (p - 1) / (m * T + p - 1)            1F1B over whole rollouts: (p - 1) / (m + p - 1)

as long as m micro-batches hide the chains: a memory passes all E encoder stages forwards and then backwards before
the next segment's can, so that with m * (work of a stage for a segment) < E * (advance + replay_backward) the chains
decide: 1 - m * work / (E * (advance + replay_backward)). Decoder stages do not wait for pass 1 to end: segments are
decoded ahead from the encoder's output of pass 1, and only the gradient of that output, [B, S, D] numbers, is kept
until their replay. `ReplaySchedule.bubble` is the exact figure.

Where layers have memories of their own (`LayerMemoryLayout`) no chain goes round, and one micro-batch is as good as
many: stages wait p - 1 forwards and backwards, (p - 1)(f + b) beside m((T - 1)f + T(f + b)) of work. That is the first
formula above for T = 1, and less for more segments.

What a stage holds is bounded by the window W: the graphs of at most W segments (of one micro-batch's lanes, and of the
stage's own layers), at most W gradients of segments that were decoded ahead, the memories of pass 1, and at most one
stream a micro-batch on its way through pass 1.

Free of deadlock, by construction: every instruction has a time in the simulation that ordered them. Sending and
posting a receive never block; a computation waits for messages of earlier tasks; waiting for a send to be over
(`Release`) stands no earlier than the task that consumes it. So each wait is for something of an earlier time, and
the first instruction in time that is not yet done can always proceed. Between two stages, each direction has one
order, the same on both sides, as NCCL demands.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence

from memformer.parallel.pipeline.simulate import Interval, StageCost, Timeline, best_timeline
from memformer.parallel.pipeline.tasks import (
    DECODE,
    DECODE_BACKWARD,
    REPLAY,
    REPLAY_BACKWARD,
    Layout,
    Message,
    Task,
)


@dataclasses.dataclass(frozen=True)
class Receive:
    """Post the receive of a message; does not wait for it."""

    message: Message


@dataclasses.dataclass(frozen=True)
class Send:
    """Send a result of the task before; does not wait for its arrival."""

    message: Message


@dataclasses.dataclass(frozen=True)
class Release:
    """Wait until a message that was sent has left, and drop it; its receiver has begun to use it by then."""

    message: Message


@dataclasses.dataclass(frozen=True)
class Compute:
    """Wait for the task's messages, and compute it."""

    task: Task


@dataclasses.dataclass(frozen=True)
class Agree:
    """A point that all stages pass in the same order: a collective here cannot deadlock with the messages."""

    number: int


Instruction = Receive | Send | Release | Compute | Agree


class ReplaySchedule:
    """The schedule of a rollout; a pure function of its arguments, the same on every process. Needs no DeepSpeed.

    Args:
        layout: Which stage does what, for how many micro-batches and segments.
        costs: Of each stage, for one segment of one micro-batch.
        window: W above; None: `Layout.default_window`.

    Raises:
        ValueError: The costs are not one a stage, or the window is below 1.
    """

    def __init__(self, layout: Layout, costs: Sequence[StageCost], window: int | None = None) -> None:
        self.layout, self.window = layout, layout.default_window if window is None else window
        if len(costs) != layout.stages or self.window < 1:
            raise ValueError(f"{len(costs)} costs and a window of {window} for {layout.stages} stages")
        self._costs = costs

    @functools.cached_property
    def timeline(self) -> Timeline:
        """Simulated when it is first asked for: of what a plan sees not to fit by its weights, never."""
        return best_timeline(self.layout, self._costs, self.window)

    @property
    def makespan(self) -> int:
        """Time of the whole rollout, in the costs' unit."""
        return self.timeline.makespan

    @property
    def bubble(self) -> float:
        """Part of the stages' time in which they wait, 0 .. 1."""
        busy = sum(interval.end - interval.start for intervals in self.timeline.intervals for interval in intervals)
        return 1 - busy / (self.layout.stages * self.makespan)

    def is_early(self, task: Task) -> bool:
        """Whether the decoder takes this segment's context from pass 1."""
        return (task.micro_batch, task.segment) in self.timeline.early

    def outgoing(self, stage: int, task: Task) -> list[Message]:
        """The messages that a task's results become."""
        return self.layout.outgoing(stage, task, self.is_early(task))

    def messages(self) -> Iterator[Message]:
        """All messages of a rollout."""
        for stage, intervals in enumerate(self.timeline.intervals):
            for interval in intervals:
                yield from self.outgoing(stage, interval.task)

    def held_graphs(self, stage: int) -> int:
        """Largest number of segments whose graph the stage holds at once, of encoder or decoder layers."""
        most = [0, 0]
        held = [0, 0]
        for interval in self.timeline.intervals[stage]:
            for number, (opens, closes) in enumerate(((REPLAY, REPLAY_BACKWARD), (DECODE, DECODE_BACKWARD))):
                held[number] += (interval.task.kind == opens) - (interval.task.kind == closes)
                most[number] = max(most[number], held[number])
        return max(most)

    def steps(self, stage: int) -> list[list[Instruction]]:
        """The instructions of a stage: in each step receives, releases, one task and its sends; the last has no task.

        The T - 1 `Agree` points lie at equal times.
        """
        intervals = self.timeline.intervals[stage]
        steps: list[list[Instruction]] = []
        posts, releases = self._posts[stage], self._releases[stage]
        cuts = [self.makespan * (k + 1) // self.layout.segments for k in range(self.layout.segments - 1)]
        starts = [interval.start for interval in intervals]
        agrees = [bisect.bisect_left(starts, cut) for cut in cuts]
        for index in range(len(intervals) + 1):
            step: list[Instruction] = [Agree(number) for number, at in enumerate(agrees) if at == index]
            step += map(Receive, posts.get(index, ()))
            step += map(Release, releases.get(index, ()))
            if index < len(intervals):
                step.append(Compute(intervals[index].task))
                step += map(Send, self.outgoing(stage, intervals[index].task))
            steps.append(step)
        return steps

    @functools.cached_property
    def _index(self) -> list[dict[Task, int]]:
        return [
            {interval.task: index for index, interval in enumerate(intervals)} for intervals in self.timeline.intervals
        ]

    @functools.cached_property
    def _posts(self) -> list[dict[int, list[Message]]]:
        """By stage and step, the receives to post: one task ahead of the arrival, in the order of each sender."""
        posts: list[dict[int, list[Message]]] = [{} for _ in range(self.layout.stages)]
        ends = [[interval.end for interval in intervals] for intervals in self.timeline.intervals]
        for channel in self._channels():
            for arrival, message in channel:
                # The task that runs when the message arrives, or the next one: at the latest its consumer.
                index = bisect.bisect_right(ends[message.target], arrival)
                posts[message.target].setdefault(index, []).append(message)
        return posts

    @functools.cached_property
    def _releases(self) -> list[dict[int, list[Message]]]:
        """By stage and step, the sends whose receiver has begun to use them."""
        releases: list[dict[int, list[Message]]] = [{} for _ in range(self.layout.stages)]
        starts = [[interval.start for interval in intervals] for intervals in self.timeline.intervals]
        for channel in self._channels():
            for _, message in channel:
                consumed = self._interval(message.target, message.task).start
                index = bisect.bisect_left(starts[message.source], consumed)
                releases[message.source].setdefault(index, []).append(message)
        return releases

    def _interval(self, stage: int, task: Task) -> Interval:
        return self.timeline.intervals[stage][self._index[stage][task]]

    def _channels(self) -> list[list[tuple[int, Message]]]:
        """For each pair of stages and direction, the messages in the order of their sending, with that time."""
        channels: dict[tuple[int, int], list[tuple[int, Message]]] = {}
        for stage, intervals in enumerate(self.timeline.intervals):
            for interval in intervals:
                for message in self.outgoing(stage, interval.task):
                    channels.setdefault((stage, message.target), []).append((interval.end, message))
        return list(channels.values())
