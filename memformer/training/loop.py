# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`TrainingLoop`: one optimizer step after another, and what happens between two of them."""

import logging
from collections.abc import Sequence
from typing import Any

from data_pipeline import SegmentStream
from memformer.engine.optimizer import learning_rate
from memformer.guards.guards import Guards, Step
from memformer.guards.watchdog import Watchdog
from memformer.processes.spans import span
from memformer.replay.random_state import mix_seed
from memformer.run.data import Audit, TrainingData, counted_tokens, rollout_of
from memformer.run.metrics import MetricsWriter
from memformer.run.stop_requests import StepAbandoned, StopRequests
from memformer.training.callbacks import Callback, Callbacks, TrainingState
from memformer.training.evaluation import Evaluation, MemoryPictures, TaskEvaluation
from memformer.training.measuring import Meter, StepClock
from memformer.training.out_of_memory import told_when_out_of_memory
from memformer.training.reports import Pulses, Reports
from memformer.training.save_schedule import SaveSchedule
from memformer.training.stopping import StopAgreement

LOG = logging.getLogger("memformer")


class TrainingLoop:
    """The loop of a run, with everything that takes part in it.

    Args:
        state: The run before its next step.
        data: Its data sets.
        identity: What its checkpoints say of it (`run_identity`).
        saved_step: The step of its own checkpoint that it goes on from; -1: none.
        audit: Where it is written what was read.
        writer: Where metrics go.
        requests: What this process is asked to do.
        watchdog: What watches that it moves.
        callbacks: The caller's, after the run's own at each point.
    """

    def __init__(
        self,
        state: TrainingState,
        data: TrainingData,
        identity: dict[str, Any],
        saved_step: int,
        audit: Audit,
        writer: MetricsWriter,
        requests: StopRequests,
        watchdog: Watchdog,
        callbacks: Sequence[Callback],
    ) -> None:
        self.state, self.audit = state, audit
        self.points = Callbacks([Pulses(watchdog), Reports(writer), *callbacks])
        self.stopping = StopAgreement(requests, state.config.training.finish_step_seconds)
        self.meter = Meter(state, data.train.num_tokens)
        self.guards = Guards(state.config, state.run, state.world, state.engine, state.event)
        self.evaluation = Evaluation(state, data, self.stopping, self.points)
        self.tasks = TaskEvaluation(state, data, self.stopping, self.points)
        self.pictures = MemoryPictures(state, data, writer, self.points)
        self.saves = SaveSchedule(state, identity, data.tokenizer_file, saved_step, self.points)
        self.segments_done = 0
        state.engine.at_segment = self.between_segments

    def run(self, stream: SegmentStream) -> int:
        """Trains from the step after `state.progress` to the last, or until asked to stop; returns the exit code."""
        state, engine, points = self.state, self.state.engine, self.points
        config, last = state.config, state.config.training.max_steps
        while state.progress.step < last:
            points.before_step(state)
            number, clock = state.progress.step + 1, StepClock()
            points.before_data(state)
            with span("data"):
                batch = next(stream)
            clock.batch_arrived()
            self.audit.delivered(batch)
            before = state.lanes.before(batch.carry_from)
            step = Step(batch, rollout_of(batch, state.world.device), before, mix_seed(config.seed, number))
            points.before_rollout(state)
            counted = counted_tokens(batch, state.world)
            rate = learning_rate(number, config.optimizer, last)
            self.segments_done = 0
            try:
                with told_when_out_of_memory(state, lambda: self.segments_done):
                    result = engine.rollout_backward(step.rollout, before, counted, step.seed)
                    points.before_optimizer_step(state)
                    sums = self.meter.sums(result)
                    with span("optimizer"):
                        report = engine.step(rate, sums)
            except StepAbandoned:
                return self.stop()
            state.stepped(batch, result.carry, stream)
            points.after_step(state)
            figures = self.meter.measure(result, report, rate, step, counted, clock)
            found = self.guards.look_at(step, figures, state.lanes, state.progress)
            state.lanes, state.progress = found.lanes, found.progress
            points.after_metrics(state, self.meter.line(figures, found) | self.tasks.figures())
            save_due = self.agree(figures.seconds)
            if self.evaluation.due:
                with span("evaluation"):
                    self.evaluation.run()
            if self.pictures.due and not self.stopping.urgency:
                self.pictures.draw()
            if save_due or self.saves.due_by_step:
                self.save()
            if self.stopping.urgency and number < last:
                return self.stop()
        self.saves.settle_last()
        return 0

    def between_segments(self) -> None:
        """What the engine calls between two segments of a rollout."""
        self.segments_done += 1
        self.points.between_segments(self.state)
        self.stopping.between_segments()

    def agree(self, step_seconds: float) -> bool:
        """Agrees on what a step has brought about, publishes a save that is written; whether one is due by time."""
        writing, save_due = self.stopping.after_step(step_seconds, self.saves.writing, self.saves.due_by_clock)
        if not writing:
            self.saves.settle()
        return save_due

    def save(self) -> None:
        """Saves; a save may take long, so requests to stop are looked at again after it."""
        self.points.before_save(self.state)
        with span("save"):
            self.saves.save()
        self.stopping.ask()

    def stop(self) -> int:
        """Saves and leaves; returns the exit code."""
        self.save()
        self.saves.settle_last()
        return self.stopping.leave(self.state)
