# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How a memory lies on the stages of a pipeline: one that one stage writes, or each layer's own on the layer's stage.

A micro-batch is a group of lanes. Per micro-batch and segment t, of a `SharedMemoryLayout`, the layers [encoder ;
decoder] with the writer on the last encoder stage, w:

| task | on | does |
|---|---|---|
| begin | w | the memory before segment 0, the initial one in lanes that start a document |
| advance | 0 .. w | pass 1, t < T - 1: encoder layers without a graph; w writes the memory before segment t + 1 |
| replay | 0 .. w | pass 2: the same with a graph, from the stored memory |
| decode, decode_backward | decoder stages | need the encoder's output of t, of pass 1 or of pass 2, nothing else |
| replay_backward | w .. 0 | needs the gradients of the encoder's output of t and of the memory after t |
| end | w | the gradient of the memory before segment 0 reaches the initial memory |

The only chains through the segments are advance's (forwards) and replay_backward's (backwards), and each goes round all
encoder stages; a model without memory has neither, and neither begin, advance nor end.

Of a `LayerMemoryLayout`, whose layers have memories of their own, w being the stage of the last layer with one:

| task | on | does |
|---|---|---|
| advance | 0 .. w | pass 1, t < T - 1: layers without a graph, which write their memory before segment t + 1 |
| replay | all | pass 2: all layers with a graph, from the stored memory; on the last stage with head and loss |
| replay_backward | all | needs the gradients of the stream from the next stage, and of the stage's own memory after t |

Its chains stay on a stage: segment t + 1 follows t as one micro-batch follows another.
"""

import dataclasses

from memformer.parallel.pipeline.tasks import (
    ADVANCE,
    BEGIN,
    CONTEXT,
    CONTEXT_GRADIENT,
    DECODE,
    DECODE_BACKWARD,
    END,
    MEMORY,
    MEMORY_GRADIENT,
    REPLAY,
    REPLAY_BACKWARD,
    STREAM,
    STREAM_GRADIENT,
    Layout,
    Message,
    Task,
)


@dataclasses.dataclass(frozen=True)
class SharedMemoryLayout(Layout):
    """An encoder with one memory, which its last stage writes, and a decoder.

    Attributes:
        decoder_stage: The first decoder stage: w or w + 1.
        recurrent: False for a model without memory slots, whose segments are independent.

    Raises:
        ValueError: The numbers do not describe a pipeline.
    """

    decoder_stage: int
    recurrent: bool = True

    def __post_init__(self) -> None:
        """Checks the numbers."""
        super().__post_init__()
        if not self.writer_stage <= self.decoder_stage <= min(self.writer_stage + 1, self.stages - 1):
            raise ValueError(f"encoder and decoder must cover all stages in turn: {self}")

    def advances(self, stage: int) -> bool:
        """As in `Layout`."""
        return self.recurrent and stage <= self.writer_stage

    def decodes(self, stage: int) -> bool:
        """As in `Layout`."""
        return stage >= self.decoder_stage

    def context(self, stage: int, task: Task) -> tuple[int, Task] | None:
        """As in `Layout`: the encoder's output, on the writer's stage."""
        if stage != self.writer_stage or task.kind not in (ADVANCE, REPLAY):
            return None
        return self.decoder_stage, task._replace(kind=DECODE)

    @property
    def default_window(self) -> int:
        """As in `Layout`: about two a stage reach the bubble of `schedule`."""
        return 2 * self.stages + 2

    @property
    def embedding_stages(self) -> set[int]:
        """As in `Layout`: encoder and decoder begin with it."""
        return {0, self.decoder_stage}

    def tasks(self, stage: int) -> list[Task]:
        """As in `Layout`."""
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
        """As in `Layout`."""
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
        """As in `Layout`."""
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
        """As in `Layout`."""
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


@dataclasses.dataclass(frozen=True)
class LayerMemoryLayout(Layout):
    """Layers with memories of their own; no memory leaves its stage."""

    @property
    def default_window(self) -> int:
        """As in `Layout`: p fill equal stages, as in 1F1B; one more, where they are not quite equal."""
        return self.stages + 1

    def advances(self, stage: int) -> bool:
        """As in `Layout`."""
        return stage <= self.writer_stage

    def tasks(self, stage: int) -> list[Task]:
        """As in `Layout`."""
        every = [(i, t) for i in range(self.micro_batches) for t in range(self.segments)]
        found = [Task(kind, i, t) for kind in (REPLAY, REPLAY_BACKWARD) for i, t in every]
        if self.advances(stage):
            found += [Task(ADVANCE, i, t) for i, t in every if t < self.segments - 1]
        return found

    def local_needs(self, stage: int, task: Task) -> list[Task]:
        """As in `Layout`."""
        kind, i, t = task
        last, advances = self.segments - 1, self.advances(stage)
        needs: list[Task] = []
        if kind == ADVANCE and t:
            needs.append(Task(ADVANCE, i, t - 1))
        elif kind == REPLAY and t < last:
            needs += [Task(REPLAY, i, t + 1)] + ([Task(ADVANCE, i, t)] if advances else [])
        elif kind == REPLAY and t and advances:
            needs.append(Task(ADVANCE, i, t - 1))
        elif kind == REPLAY_BACKWARD:
            needs += [Task(REPLAY, i, t)] + ([Task(REPLAY_BACKWARD, i, t + 1)] if t < last and advances else [])
        return needs

    def incoming(self, stage: int, task: Task) -> list[Message]:
        """As in `Layout`."""
        if task.kind == REPLAY_BACKWARD:
            return [Message(STREAM_GRADIENT, task, stage + 1, stage)] if stage < self.stages - 1 else []
        return [Message(STREAM, task, stage - 1, stage)] if stage else []

    def outgoing(self, stage: int, task: Task, early: bool = False) -> list[Message]:
        """As in `Layout`."""
        if task.kind == REPLAY_BACKWARD:
            return [Message(STREAM_GRADIENT, task, stage, stage - 1)] if stage else []
        last = self.writer_stage if task.kind == ADVANCE else self.stages - 1
        return [Message(STREAM, task, stage, stage + 1)] if stage < last else []
