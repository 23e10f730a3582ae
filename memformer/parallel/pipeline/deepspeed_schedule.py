# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A stage's part of a `ReplaySchedule` as a DeepSpeed `PipeSchedule`.

Apart from schedule.py, so that a schedule can be simulated, drawn and costed without DeepSpeed.
"""

from collections.abc import Iterator

from deepspeed.runtime.pipe.schedule import PipeInstruction, PipeSchedule

from memformer.parallel.pipeline.schedule import Instruction, ReplaySchedule


class ReplayInstruction(PipeInstruction):  # type: ignore[misc]
    """One of `schedule.Instruction`, under DeepSpeed's base class.

    Attributes:
        instruction: Receive, Release, Compute, Send or Agree.
    """

    instruction: Instruction


class StageSchedule(PipeSchedule):  # type: ignore[misc]
    """What one stage does in a rollout."""

    def __init__(self, schedule: ReplaySchedule, stage: int) -> None:
        super().__init__(schedule.layout.micro_batches, schedule.layout.stages, stage)
        self._schedule = schedule

    def steps(self) -> Iterator[list[ReplayInstruction]]:
        """In each step receives, releases, one task and its sends."""
        for step in self._schedule.steps(self.stage_id):
            yield [ReplayInstruction(instruction=each) for each in step]

    def num_pipe_buffers(self) -> int:
        """Segments whose graphs the stage holds at most."""
        return self._schedule.window
