# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a rollout consists of on a pipeline: the tasks of each stage, and the messages between them.

A stage holds consecutive layers of [encoder ; decoder]. The writer is on the last encoder stage, w; the decoder begins
there or on the stage after it. A micro-batch is a group of lanes. Per micro-batch and segment t:

| task | on | does |
|---|---|---|
| begin | w | the memory before segment 0, the initial one in lanes that start a document |
| advance | 0 .. w | pass 1, t < T - 1: encoder layers without a graph; w writes the memory before segment t + 1 |
| replay | 0 .. w | pass 2: the same with a graph, from the stored memory |
| decode, decode_backward | decoder stages | need the encoder's output of t, of pass 1 or of pass 2, nothing else |
| replay_backward | w .. 0 | needs the gradients of the encoder's output of t and of the memory after t |
| end | w | the gradient of the memory before segment 0 reaches the initial memory |

The only chains through the segments are advance's (forwards) and replay_backward's (backwards); a model without memory
has neither, and neither begin, advance nor end.
"""

import dataclasses
from typing import NamedTuple

BEGIN, ADVANCE, REPLAY, REPLAY_BACKWARD = "begin", "advance", "replay", "replay_backward"
DECODE, DECODE_BACKWARD, END = "decode", "decode_backward", "end"

MEMORY, MEMORY_GRADIENT = "memory", "memory_gradient"
CONTEXT, CONTEXT_GRADIENT = "context", "context_gradient"
STREAM, STREAM_GRADIENT = "stream", "stream_gradient"


class Task(NamedTuple):
    """One computation of a stage, for one micro-batch and segment."""

    kind: str
    micro_batch: int
    segment: int


class Message(NamedTuple):
    """One tensor that goes from a stage to another.

    Attributes:
        kind: memory [B, K, D]; context, the encoder's output [B, S, D]; stream, what one layer hands to the next
            [B, S, D], in the decoder [B, N, D]; or the gradient of one of these, of the same shape. B lanes of a
            micro-batch, K slots, S tokens a segment, N of the decoder's input, D width.
        task: Whose input it is.
        source: Stage that sends.
        target: Stage that receives.
    """

    kind: str
    task: Task
    source: int
    target: int

    @property
    def decoded(self) -> bool:
        """Whether it is a stream between decoder layers, or its gradient."""
        return self.task.kind in (DECODE, DECODE_BACKWARD) and self.kind in (STREAM, STREAM_GRADIENT)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which stage does what.

    Attributes:
        stages: p.
        micro_batches: m, groups of lanes.
        segments: T of a rollout.
        writer_stage: w, the last encoder stage.
        decoder_stage: The first decoder stage: w or w + 1.
        recurrent: False for a model without memory slots, whose segments are independent.

    Raises:
        ValueError: The numbers do not describe a pipeline.
    """

    stages: int
    micro_batches: int
    segments: int
    writer_stage: int
    decoder_stage: int
    recurrent: bool = True

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if min(self.stages, self.micro_batches, self.segments) < 1:
            raise ValueError(f"stages, micro_batches and segments must be positive: {self}")
        if not 0 <= self.writer_stage <= self.decoder_stage <= min(self.writer_stage + 1, self.stages - 1):
            raise ValueError(f"encoder and decoder must cover all stages in turn: {self}")

    def tasks(self, stage: int) -> list[Task]:
        """All tasks of a stage, in no particular order."""
        every = [(i, t) for i in range(self.micro_batches) for t in range(self.segments)]
        found: list[Task] = []
        if stage <= self.writer_stage:
            if self.recurrent:
                found += [Task(ADVANCE, i, t) for i, t in every if t < self.segments - 1]
            found += [Task(kind, i, t) for kind in (REPLAY, REPLAY_BACKWARD) for i, t in every]
        if stage == self.writer_stage and self.recurrent:
            found += [Task(kind, i, 0) for kind in (BEGIN, END) for i in range(self.micro_batches)]
        if stage >= self.decoder_stage:
            found += [Task(kind, i, t) for kind in (DECODE, DECODE_BACKWARD) for i, t in every]
        return found

    def local_needs(self, stage: int, task: Task) -> list[Task]:
        """The tasks of the same stage that must be done before.

        For a decode task beside the writer, the advance or replay that gives it the context is left out: either will
        do.
        """
        kind, i, t = task
        last, writes = self.segments - 1, stage == self.writer_stage
        needs: list[Task] = []
        if kind in (ADVANCE, REPLAY) and writes and self.recurrent and (kind == ADVANCE or t == last):
            needs.append(Task(ADVANCE, i, t - 1) if t else Task(BEGIN, i, 0))
        if kind == REPLAY and t < last:
            # From the last segment to the first, as the gradient needs them: whoever waits for the gradient of a
            # segment then never holds up the graphs of those before it.
            needs += [Task(REPLAY, i, t + 1)] + ([Task(ADVANCE, i, t)] if self.recurrent else [])
        elif kind == REPLAY_BACKWARD:
            needs.append(Task(REPLAY, i, t))
            if writes and self.recurrent and t < last:
                needs.append(Task(REPLAY_BACKWARD, i, t + 1))
            if stage == self.decoder_stage:
                needs.append(Task(DECODE_BACKWARD, i, t))
        elif kind == DECODE_BACKWARD:
            needs.append(Task(DECODE, i, t))
        elif kind == END:
            needs.append(Task(REPLAY_BACKWARD, i, 0))
        return needs

    def incoming(self, stage: int, task: Task) -> list[Message]:
        """The messages that a task needs; the same on all ranks, whoever asks."""
        kind, _, t = task
        writer, decoder, last = self.writer_stage, self.decoder_stage, self.segments - 1
        found: list[tuple[str, int]] = []
        if kind in (ADVANCE, REPLAY):
            if self.recurrent and stage < writer and (kind == ADVANCE or t == last):
                found.append((MEMORY, writer))
            if stage:
                found.append((STREAM, stage - 1))
        elif kind == DECODE:
            if stage > writer:
                found.append((CONTEXT, stage - 1))
            if stage > decoder:
                found.append((STREAM, stage - 1))
        elif kind == DECODE_BACKWARD and stage < self.stages - 1:
            found += [(CONTEXT_GRADIENT, stage + 1), (STREAM_GRADIENT, stage + 1)]
        elif kind == REPLAY_BACKWARD:
            if stage < writer:
                found.append((STREAM_GRADIENT, stage + 1))
            elif decoder > writer:
                found.append((CONTEXT_GRADIENT, decoder))
        if stage == writer and self.recurrent and (kind == END or (kind == REPLAY_BACKWARD and t < last)):
            found += [(MEMORY_GRADIENT, source) for source in range(writer)]
        return [Message(kind, task, source, stage) for kind, source in found]

    def outgoing(self, stage: int, task: Task, early: bool = False) -> list[Message]:
        """The messages that a task's results become.

        Args:
            stage: Where the task runs.
            task: The task.
            early: Whether the decoder takes this segment's context from the first pass.
        """
        kind, i, t = task
        writer, decoder, last = self.writer_stage, self.decoder_stage, self.segments - 1
        writes = stage == writer
        found: list[tuple[str, Task, int]] = []
        if self.recurrent and writes and kind in (BEGIN, ADVANCE):
            after = 0 if kind == BEGIN else t + 1
            reader = Task(ADVANCE if after < last else REPLAY, i, after)
            found += [(MEMORY, reader, target) for target in range(writer)]
        if kind in (ADVANCE, REPLAY):
            if stage < writer:
                found.append((STREAM, task, stage + 1))
            elif decoder > writer and early == (kind == ADVANCE):
                found.append((CONTEXT, Task(DECODE, i, t), decoder))
        elif kind == DECODE and stage < self.stages - 1:
            found += [(CONTEXT, task, stage + 1), (STREAM, task, stage + 1)]
        elif kind == DECODE_BACKWARD:
            if stage > decoder:
                found += [(CONTEXT_GRADIENT, task, stage - 1), (STREAM_GRADIENT, task, stage - 1)]
            elif decoder > writer:
                found.append((CONTEXT_GRADIENT, Task(REPLAY_BACKWARD, i, t), writer))
        elif kind == REPLAY_BACKWARD:
            if stage:
                found.append((STREAM_GRADIENT, task, stage - 1))
            if self.recurrent and stage < writer:
                found.append((MEMORY_GRADIENT, Task(REPLAY_BACKWARD, i, t - 1) if t else Task(END, i, 0), writer))
        return [Message(kind, task, stage, target) for kind, task, target in found]
