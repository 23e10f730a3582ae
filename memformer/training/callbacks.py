# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Callback`: code of one's own at named points of a training run, and `TrainingState`, what it is shown there.

    class Crash(Callback):
        def after_step(self, state: TrainingState) -> None:
            if state.progress.step == 7:
                raise RuntimeError("step 7 is done, and nothing has been said of it yet")

    train(config, callbacks=[Crash()])

The points of one step, in the order in which they are reached:

    before_step  before_data  before_rollout  between_segments*  before_optimizer_step  after_step
    during_evaluation* (of tasks)  after_metrics  during_evaluation*  after_evaluation  before_save  after_save

Every process of the run has its own callbacks, and reaches the points of a step in the same order as the others. A
callback that enters a collective must therefore do so on all of them. What it raises ends the run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from data_pipeline import SegmentBatch, SegmentStream
from memformer.checkpoints.lane_states import LaneStates
from memformer.checkpoints.saving import SaveReport
from memformer.checkpoints.state import Progress
from memformer.config.schema import Config
from memformer.engine.base import Engine
from memformer.processes.group import World
from memformer.replay import Carry
from memformer.run.directory import RunDirectory


@dataclasses.dataclass
class TrainingState:
    """A run as it stands on this process: what it is made of, and the two things that move from step to step.

    Attributes:
        config: The run's configuration.
        run: Its directory.
        world: This process among all.
        engine: The model in its engine.
        lanes: What this process's lanes carry to the next rollout.
        progress: Steps done and all else that is the same on all processes.
    """

    config: Config
    run: RunDirectory
    world: World
    engine: Engine
    lanes: LaneStates
    progress: Progress

    def event(self, kind: str, **details: Any) -> None:
        """Writes a line of events.jsonl, once for all processes."""
        if self.world.is_main:
            self.run.event(kind, **details)

    def stepped(self, batch: SegmentBatch, carry: Carry, stream: SegmentStream) -> None:
        """Moves on by one optimizer step, to the carry that its rollout has left."""
        scale = self.engine.loss_scale
        self.lanes = self.lanes.after(carry, stream.carry_rows)
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            tokens=self.progress.tokens + batch.valid_tokens,
            data=stream.state_dict(),
            loss_scale={} if scale is None else scale.state(),
        )


class Callback:
    """The points of a run. Each method does nothing; override those that you need."""

    def before_step(self, state: TrainingState) -> None:
        """All of the step before is done, its save and its evaluation too; the time of this one does not run yet."""

    def before_data(self, state: TrainingState) -> None:
        """The next batch has not been asked for yet; the time of the step runs already."""

    def before_rollout(self, state: TrainingState) -> None:
        """The batch is on the device; `state.lanes` is what the rollout starts from."""

    def between_segments(self, state: TrainingState) -> None:
        """A segment has been back-propagated, and the rollout has another one.

        Weights are to be read elsewhere: in 16 bits the model has copies in the places of some
        (`memformer.engine.weight_copies`), at every ZeRO stage.
        """

    def before_optimizer_step(self, state: TrainingState) -> None:
        """The rollout's gradients are complete and reduced."""

    def after_step(self, state: TrainingState) -> None:
        """Weights, `state.lanes` and `state.progress` are those after the step; nothing has been written of it."""

    def after_metrics(self, state: TrainingState, metrics: dict[str, Any]) -> None:
        """The guards have looked at the step, and its line of metrics.jsonl is complete, `tasks` included."""

    def during_evaluation(self, state: TrainingState) -> None:
        """A batch of held-out documents is about to be read, for an evaluation or for pictures of the memory; or a
        segment of the documents of tasks has been read."""

    def after_evaluation(self, state: TrainingState, reports: dict[str, dict[str, Any]]) -> None:
        """Held-out documents have been scored; `reports` has `Score.report()` of each mode."""

    def before_save(self, state: TrainingState) -> None:
        """A checkpoint of `state.progress.step` is to be written, unless there is one."""

    def after_save(self, state: TrainingState, report: SaveReport) -> None:
        """A save has ended, well or badly; with saving in the background, some steps after `before_save`."""


class Callbacks(Callback):
    """Several callbacks as one: at each point they are called in their order.

    Args:
        callbacks: The callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._all = tuple(callbacks)

    def before_step(self, state: TrainingState) -> None:
        """Calls all of them, as every method here."""
        for each in self._all:
            each.before_step(state)

    def before_data(self, state: TrainingState) -> None:
        """As `Callback.before_data`."""
        for each in self._all:
            each.before_data(state)

    def before_rollout(self, state: TrainingState) -> None:
        """As `Callback.before_rollout`."""
        for each in self._all:
            each.before_rollout(state)

    def between_segments(self, state: TrainingState) -> None:
        """As `Callback.between_segments`."""
        for each in self._all:
            each.between_segments(state)

    def before_optimizer_step(self, state: TrainingState) -> None:
        """As `Callback.before_optimizer_step`."""
        for each in self._all:
            each.before_optimizer_step(state)

    def after_step(self, state: TrainingState) -> None:
        """As `Callback.after_step`."""
        for each in self._all:
            each.after_step(state)

    def after_metrics(self, state: TrainingState, metrics: dict[str, Any]) -> None:
        """As `Callback.after_metrics`."""
        for each in self._all:
            each.after_metrics(state, metrics)

    def during_evaluation(self, state: TrainingState) -> None:
        """As `Callback.during_evaluation`."""
        for each in self._all:
            each.during_evaluation(state)

    def after_evaluation(self, state: TrainingState, reports: dict[str, dict[str, Any]]) -> None:
        """As `Callback.after_evaluation`."""
        for each in self._all:
            each.after_evaluation(state, reports)

    def before_save(self, state: TrainingState) -> None:
        """As `Callback.before_save`."""
        for each in self._all:
            each.before_save(state)

    def after_save(self, state: TrainingState, report: SaveReport) -> None:
        """As `Callback.after_save`."""
        for each in self._all:
            each.after_save(state, report)
