# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Guards`: what is looked at after every step, what is said about it, and when a run is ended for it."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable

from data_pipeline import SegmentBatch
from data_pipeline.errors import UserError
from memformer.checkpoints import directory as files
from memformer.checkpoints import state as checkpoint
from memformer.checkpoints.lane_states import LaneStates
from memformer.config.schema import Config
from memformer.engine.base import Engine
from memformer.guards import stragglers
from memformer.guards.faulty_steps import bad_parameter, first_bad, healed_carry, lane_losses, spike_score, worst
from memformer.guards.replicas import different_replicas
from memformer.processes import group
from memformer.processes.group import World
from memformer.processes.turns import found_by_main
from memformer.replay import Carry, Rollout
from memformer.run.directory import RunDirectory
from memformer.run.metrics import StepFigures

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step was made of, to look into it again.

    Attributes:
        batch: As it was delivered.
        rollout: The batch on the device.
        before: The carry that it started from.
        seed: Of its random numbers.
    """

    batch: SegmentBatch
    rollout: Rollout
    before: Carry
    seed: int


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the guards make of a step, and what the run goes on with.

    Attributes:
        lanes: The carries: those after the step, with memories mended where it went wrong.
        progress: The run, with its skips, rollbacks and recent losses counted.
        spike_score: How many standard deviations the loss lies above the last ones; None for a step without a loss, or
            left out.
    """

    lanes: LaneStates
    progress: checkpoint.Progress
    spike_score: float | None = None


class Guards:
    """The guards of a run. Every method is called by all processes together.

    Args:
        config: The run.
        run: Its directory.
        world: This process among all.
        engine: The engine.
        event: Writes an event, once for all processes.
    """

    def __init__(
        self, config: Config, run: RunDirectory, world: World, engine: Engine, event: Callable[..., None]
    ) -> None:
        self._settings, self._run, self._world, self._engine = config.guards, run, world, engine
        self._event = event
        self._times = stragglers.StepTimes()

    def look_at(self, step: Step, figures: StepFigures, lanes: LaneStates, progress: checkpoint.Progress) -> Findings:
        """Looks at a step that is done: at its loss, or at why it was left out; at its times; at the replicas.

        Args:
            step: What it was made of.
            figures: What was measured of it.
            lanes: The carries after it.
            progress: The run after it.

        Raises:
            UserError: The budget of skips or of rollbacks is used up, or the replicas' parameters differ.
        """
        found = (self._scored if figures.applied else self._skipped)(step, figures, lanes, progress)
        self._timed(progress.step, figures.seconds, figures.data_seconds)
        self._compared(progress.step)
        return found

    def _skipped(self, step: Step, figures: StepFigures, lanes: LaneStates, progress: checkpoint.Progress) -> Findings:
        """A step that was left out whole: says where it went wrong, heals memories, counts."""
        settings, number = self._settings, progress.step
        scale = figures.loss_scale
        if scale is not None and self._is_overflow(lanes, figures.loss, scale):
            self._event("overflow", step=number, loss=figures.loss, loss_scale=scale)
            LOG.info("step %d left out: its gradient overflowed at loss scale %g, next is %g", number, scale, scale / 2)
            return Findings(lanes, dataclasses.replace(progress, skipped_steps=progress.skipped_steps + 1))
        losses = lane_losses(self._engine, step.rollout, step.before, step.seed)
        place = first_bad(losses, step.batch, self._world.rank)
        parameter = bad_parameter(self._engine.bad_parameters())
        carry, own = healed_carry(self._engine, step.before, lanes.carry, losses, settings.memory_after_skip)
        concerned = sum(group.gather(own if self._world.mesh.speaks else 0))
        recent = [*(each for each in progress.skips if each > number - settings.skip_window), number]
        progress = dataclasses.replace(progress, skipped_steps=progress.skipped_steps + 1, skips=recent)
        self._event(
            "skip",
            step=number,
            loss=figures.loss,
            grad_norm=figures.grad_norm,
            first_bad=None if place is None else vars(place),
            parameter=parameter,
            lanes_concerned=concerned,
            memory=settings.memory_after_skip,
        )
        where = f"first at {place}" if place else "all losses are finite"
        LOG.warning(
            "step %d skipped, loss %s, gradient norm %s: %s; first parameter %s; memory of %d lane(s): %s",
            number,
            figures.loss,
            figures.grad_norm,
            where,
            parameter or "unknown",
            concerned,
            settings.memory_after_skip,
        )
        if len(recent) > settings.max_skips:
            raise UserError(
                f"guards.max_skips is {settings.max_skips}, and {len(recent)} of the last {settings.skip_window} steps "
                f"had no finite gradient, the last one step {number} ({where}; first parameter {parameter}): lower "
                "optimizer.learning_rate, resume from an earlier checkpoint, or raise guards.max_skips",
                exit_code=1,
            )
        return Findings(dataclasses.replace(lanes, carry=carry), progress)

    def _is_overflow(self, lanes: LaneStates, loss: float | None, loss_scale: float) -> bool:
        """Whether a skipped step needs no more than a smaller loss scale (fp16).

        So it is if the loss and all memories are finite, which no scale has touched, and the scale can still shrink:
        then nothing is wrong with weights or data, and the search for the scale, at the start of every run, does not
        use up the budget of skips. A gradient that is never finite does, once the scale has reached its minimum.
        """
        if loss_scale <= self._engine.config.loss_scale.minimum:
            return False
        memory_is_bad = group.all_max(int(not lanes.carry.memory.isfinite().all()))
        return (loss is None or math.isfinite(loss)) and not memory_is_bad

    def _scored(self, step: Step, figures: StepFigures, lanes: LaneStates, progress: checkpoint.Progress) -> Findings:
        """A step that was applied: gives its loss a score, if it has one, and acts if it is a spike."""
        settings, loss = self._settings, figures.loss
        if loss is None:
            return Findings(lanes, progress)
        score = spike_score(progress.recent_losses, loss, settings.spike_window)
        if settings.spike_threshold and score > settings.spike_threshold:
            losses = lane_losses(self._engine, step.rollout, step.before, step.seed)
            place = worst(losses, step.batch, self._world.rank)
            details = {"loss": loss, "score": score, "worst": None if place is None else vars(place)}
            self._event("spike", step=progress.step, action=settings.spike_action, **details)
            LOG.warning("step %d: loss %.4f is a spike (score %.1f), worst at %s", progress.step, loss, score, place)
            if settings.spike_action == "rollback":
                return Findings(*self._rolled_back(lanes, progress), score)
            return Findings(lanes, progress, score)  # it does not count as usual
        recent = [*progress.recent_losses, loss][-settings.spike_window :]
        return Findings(lanes, dataclasses.replace(progress, recent_losses=recent), score)

    def _rolled_back(self, lanes: LaneStates, progress: checkpoint.Progress) -> tuple[LaneStates, checkpoint.Progress]:
        """Weights and optimizer as in the last checkpoint; steps and data go on, so what was read since is left."""
        if progress.rollbacks >= self._settings.max_rollbacks:
            raise UserError(
                f"guards.max_rollbacks is {self._settings.max_rollbacks}, and step {progress.step} is a spike again: "
                "lower optimizer.learning_rate, look at the documents named in events.jsonl, or raise it",
                exit_code=1,
            )
        found, _ = found_by_main(self._world, functools.partial(files.newest_complete, self._run))
        if found is None:
            LOG.warning("no checkpoint to roll back to yet: the run goes on")
            return lanes, progress
        checkpoint.load_parameters(found, self._engine)
        if self._settings.memory_after_skip == "reset":
            memory = self._engine.initial_memory(len(lanes.carry.length)).to(lanes.carry.memory.dtype)
            lanes = dataclasses.replace(lanes, carry=dataclasses.replace(lanes.carry, memory=memory))
        self._event("rollback", step=progress.step, checkpoint=str(found), skipped_from=files.step_of(found) + 1)
        LOG.warning("rolled back to the weights of %s; the data read since is left out", found)
        return lanes, dataclasses.replace(progress, rollbacks=progress.rollbacks + 1)

    def _timed(self, step: int, seconds: float, data_seconds: float) -> None:
        """Adds a step's times; compares the processes when it is time to."""
        self._times.add(seconds, data_seconds, self._engine.rollout_seconds())
        interval = self._settings.straggler_interval
        if not interval or step % interval:
            return
        ranks, slow = stragglers.report(self._times, self._settings.straggler_factor)
        self._times = stragglers.StepTimes()
        self._event("step_times", step=step, ranks=ranks, slow=slow)
        for line in slow if self._world.is_main else []:
            LOG.warning("step %d: %s", step, line)

    def _compared(self, step: int) -> None:
        """Compares the replicas' parameters when it is time to."""
        interval = self._settings.checksum_interval
        if not interval or step % interval or self._engine.zero_stage == 3 or self._world.size == 1:
            return
        wrong = different_replicas(self._engine.model, self._world.mesh)
        if wrong:
            self._event("desynchronised", step=step, ranks=wrong)
            raise UserError(
                f"step {step}: the replicas' parameters are no longer equal ({'; '.join(wrong)}): have the memory of "
                "these machines checked, and start the run again, it goes on from the last checkpoint",
                exit_code=1,
            )
