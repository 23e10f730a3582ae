# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Meter`: what is measured of a step, before anything is made of it."""

import math
import time

import torch

from memformer.engine.base import StepReport
from memformer.guards.guards import Findings, Step
from memformer.inference.diagnostics import memory_diagnostics
from memformer.replay import RolloutResult
from memformer.run.metrics import StepFigures, peak_memory_bytes
from memformer.training.callbacks import TrainingState
from memformer.training.description import Costs


class StepClock:
    """The time of one step: from its making, with the part that was waited for the batch."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.data_seconds = 0.0
        """How long the batch took."""

    def batch_arrived(self) -> None:
        """What has passed so far was waiting for the batch."""
        self.data_seconds = self.seconds

    @property
    def seconds(self) -> float:
        """What has passed so far."""
        return time.perf_counter() - self._started


class Meter:
    """Measures the steps of a run, and puts together their lines of metrics.jsonl.

    Args:
        state: The run.
        data_tokens: Tokens of its training data.
    """

    def __init__(self, state: TrainingState, data_tokens: int) -> None:
        self._state, self._data_tokens = state, data_tokens
        self._costs = Costs.of(state.config, state.engine.model.config, state.world)

    def measure(
        self,
        result: RolloutResult,
        report: StepReport,
        learning_rate: float,
        step: Step,
        counted: float,
        clock: StepClock,
    ) -> StepFigures:
        """Measures the step that is done; called by all processes together.

        One small all-reduce for the loss and the memory's gradient, and at some steps one for the memory's figures.

        Args:
            result: What its rollout left.
            report: What its optimizer step did.
            learning_rate: Of this step.
            step: What it was made of; the memory's diagnostics read its first segment again.
            counted: `counted_tokens` of its batch.
            clock: Of the step.
        """
        state, tokens, number = self._state, step.batch.valid_tokens, self._state.progress.step
        data, engine, optimizer = state.world.mesh.data, state.engine, state.config.optimizer
        local = torch.cat([result.segment_losses.double().sum()[None], result.memory_gradient_norms.double().square()])
        loss_sum, *squares = data.sum(local).tolist()
        interval = state.config.training.diagnostics_interval
        memory = None
        if interval and (number == 1 or number % interval == 0):
            again = (step.rollout.segment(0, step.before), step.before.memory)
            memory = memory_diagnostics(engine.model, state.lanes.carry, data.sum, again, engine.autocast())
        return StepFigures(
            loss=loss_sum / counted if counted else None,
            grad_norm=report.grad_norm,
            applied=report.applied,
            loss_scale=report.loss_scale,
            learning_rate=learning_rate,
            num_segments=len(result.segment_losses),
            memory_learning_rate=(
                None if optimizer.memory_learning_rate is None else learning_rate * optimizer.memory_factor
            ),
            tokens=tokens,
            counted_tokens=None if step.batch.loss_weights is None else counted,
            # What has been read of this data set: after a change of data at a resume, less than the run's tokens.
            epochs=int(state.progress.data["tokens"]) / self._data_tokens,
            replay_buffer_bytes=engine.replay_buffer_bytes,
            # Each replica's objective is scaled by their number, for the average of the gradients.
            memory_gradient_norms=[math.sqrt(square) / state.world.mesh.gradients.size for square in squares],
            memory=memory,
            seconds=clock.seconds,
            data_seconds=clock.data_seconds,
            peak_memory_bytes=peak_memory_bytes(state.world.device),
        )

    def line(self, figures: StepFigures, found: Findings) -> dict[str, object]:
        """The step's line of metrics.jsonl, with what the guards found."""
        utilisation = self._costs.utilisation(figures.tokens / figures.seconds, figures.num_segments)
        progress = found.progress
        return figures.line(progress.step, progress.tokens, progress.skipped_steps, utilisation, found.spike_score)
