# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a rollout consists of on a pipeline: the tasks of each stage, and the messages between them.

Who does what is a `Layout`'s; `memformer/parallel/pipeline/layouts.py` has one for each way in which a memory can lie
on stages.
"""

import abc
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
            [B, S, D], in the decoder [B, N, D], of layers with memories of their own [B, L, D]; or the gradient of one
            of these, of the same shape. B lanes of a micro-batch, K slots, S tokens a segment, N of the decoder's
            input, L of those layers' (overlap and write tokens too), D width.
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
class Layout(abc.ABC):
    """Which stage does what.

    Attributes:
        stages: p.
        micro_batches: m, groups of lanes.
        segments: T of a rollout.
        writer_stage: w, the last stage that writes memory.

    Raises:
        ValueError: The numbers do not describe a pipeline.
    """

    stages: int
    micro_batches: int
    segments: int
    writer_stage: int

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if min(self.stages, self.micro_batches, self.segments) < 1:
            raise ValueError(f"stages, micro_batches and segments must be positive: {self}")
        if not 0 <= self.writer_stage < self.stages:
            raise ValueError(f"the memory must be written on one of the stages: {self}")

    @abc.abstractmethod
    def tasks(self, stage: int) -> list[Task]:
        """All tasks of a stage, in no particular order."""

    @abc.abstractmethod
    def local_needs(self, stage: int, task: Task) -> list[Task]:
        """The tasks of the same stage that must be done before.

        For a decode task beside the writer, the advance or replay that gives it the context is left out: either will
        do.
        """

    @abc.abstractmethod
    def incoming(self, stage: int, task: Task) -> list[Message]:
        """The messages that a task needs; the same on all ranks, whoever asks."""

    @abc.abstractmethod
    def outgoing(self, stage: int, task: Task, early: bool = False) -> list[Message]:
        """The messages that a task's results become.

        Args:
            stage: Where the task runs.
            task: The task.
            early: Whether the decoder takes this segment's context from the first pass.
        """

    @abc.abstractmethod
    def advances(self, stage: int) -> bool:
        """Whether the stage has a part in pass 1, and keeps the memories that it read there."""

    def decodes(self, stage: int) -> bool:
        """Whether the stage has layers of a decoder, which are computed apart from the replay."""
        return False

    def context(self, stage: int, task: Task) -> tuple[int, Task] | None:
        """The stage and task that take the context which a task makes, in pass 1 or pass 2; None: it makes none."""
        return None

    @property
    @abc.abstractmethod
    def default_window(self) -> int:
        """Segments in flight, W, where the settings leave it open."""

    @property
    def embedding_stages(self) -> set[int]:
        """Stages whose layers are given embeddings of tokens."""
        return {0}
