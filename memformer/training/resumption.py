# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A run goes on from a checkpoint: what differs now, what is said of it, and what becomes of what followed there."""

import dataclasses
import logging
from typing import Any

from data_pipeline import SegmentStream
from memformer.checkpoints import directory as files
from memformer.checkpoints import resuming
from memformer.checkpoints.resuming import Start
from memformer.checkpoints.state import load_stream
from memformer.config.schema import Config, OptimizerConfig
from memformer.engine.optimizer import learning_rate
from memformer.processes import group
from memformer.run import jsonl
from memformer.run.data import Audit
from memformer.run.directory import write_atomically
from memformer.training.callbacks import TrainingState

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Differences:
    """What differs from the run that saved, a few words each.

    Attributes:
        layout: Of processes, lanes and their arithmetic, which changes no more than rounding and random streams.
        settings: Of the data and of every setting, with the learning rate of the next step where it is another.
    """

    layout: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def differences(start: Start, identity: dict[str, Any], stream: SegmentStream, config: Config) -> Differences:
    """Puts the stream where the run goes on. Called by all processes; changes nothing in the run directory.

    Args:
        start: What it goes on from.
        identity: What its checkpoints say of it (`run_identity`).
        stream: Its stream, fresh.
        config: The run.

    Raises:
        UserError: It may not go on from there.
    """
    if start.checkpoint is None:
        return Differences()
    layout = resuming.check_fits(start.checkpoint, identity)
    settings = load_stream(start.checkpoint, stream, config.data)
    settings += resuming.changed_settings(start.checkpoint, config.values())
    settings += resuming.changed_questions(start.checkpoint, identity)
    return Differences(tuple(layout), (*settings, *rate_change(start, config)))


def rate_change(start: Start, config: Config) -> list[str]:
    """The learning rate of the next step, where it is not that of the schedule before."""
    assert start.checkpoint is not None
    before = files.read_state(start.checkpoint).get("settings")
    number, last = start.step + 1, config.training.max_steps
    if before is None or number > last:
        return []
    settings, steps = OptimizerConfig.model_construct(**before["optimizer"]), before["training"]["max_steps"]
    then, now = learning_rate(number, settings, steps), learning_rate(number, config.optimizer, last)
    return [] if then == now else [f"learning rate of step {number} {then:.4g} -> {now:.4g}"]


def go_on_from(start: Start, state: TrainingState, found: Differences) -> None:
    """Says from where a run goes on, and with what differences."""
    step, directory = state.progress.step, start.checkpoint
    if state.engine.loss_scale is not None:
        state.engine.loss_scale.load(state.progress.loss_scale)
    for line in start.passed_over:
        state.event("checkpoint_skipped", reason=line)
        _warn(state, "skipped a checkpoint, which stays as it is: %s", line)
    changes = [*found.layout, *found.settings]
    state.event("resume", step=step, checkpoint=str(directory), named=start.named, changes=changes)
    LOG.info("resumed from %s (step %d)", directory, step)
    if start.instead_of is not None:
        _warn(
            state,
            "--resume %s: the run began there and has saved since, so it goes on from its newest checkpoint; to begin "
            "there again, give the same --resume with another run_dir",
            start.instead_of,
        )
    if start.lost:
        state.event("checkpoint_incomplete", step=step, lost=start.lost)
        _warn(state, "went on without what the weights do not need: %s", "; ".join(start.lost))
    if found.layout:
        kept = resuming.not_carried(list(found.layout), state.config.model.dropout)
        LOG.info("carried over: %s; %s", ", ".join(found.layout), kept)
    if found.settings:
        LOG.info("changed since step %d: %s", step, ", ".join(found.settings))


def give_up_what_followed(state: TrainingState, start: Start) -> None:
    """Makes room for the steps to come: lines of those that are trained again go, later checkpoints are set aside."""
    if state.world.is_main:
        _say_repeated(state, start)
        _set_aside_later(state, start)
        jsonl.truncate(state.run.metrics, state.progress.step)
        Audit.truncate_all(state.run, state.progress.step)
        _say_hole(state, start)
    group.barrier()  # before a process appends to its audit


def _say_repeated(state: TrainingState, start: Start) -> None:
    step = state.progress.step
    if start.trained <= step:
        return
    if not start.reasons:
        LOG.info("steps %d to %d are trained again: they were not saved", step + 1, start.trained)
        return
    state.event("steps_repeated", first=step + 1, last=start.trained, reasons=start.reasons)
    _warn(state, "steps %d to %d are trained again: %s", step + 1, start.trained, "; ".join(start.reasons))


def _set_aside_later(state: TrainingState, start: Start) -> None:
    """A later checkpoint would be taken for the newest of a history that it is no part of."""
    later = [path for path in files.candidates(state.run) if files.step_of(path) > state.progress.step]
    for path in later:
        try:
            kept = files.set_aside(path)
        except OSError as error:
            _warn(state, "%s belongs to steps that are given up, and cannot be renamed (%s)", path, error.strerror)
            continue
        state.event("checkpoint_set_aside", checkpoint=str(path), renamed=kept.name)
        _warn(state, "%s belongs to steps that are given up: kept as %s, delete it to make room", path, kept.name)
    if start.reasons and start.own and start.checkpoint is not None:
        write_atomically(state.run.checkpoints / "latest", start.checkpoint.name + "\n")


def _say_hole(state: TrainingState, start: Start) -> None:
    """Lines that were lost, as in a power cut, stay lost; a reader must not take what is left for all there was."""
    row = jsonl.last(state.run.metrics, lambda line: isinstance(line.get("step"), int))
    last, step = (0 if row is None else int(row["step"])), state.progress.step
    if start.own and last < step:
        state.event("metrics_missing", first=last + 1, last=step)
        _warn(state, "%s holds nothing of steps %d to %d, which were trained", state.run.metrics, last + 1, step)


def _warn(state: TrainingState, line: str, *values: object) -> None:
    """Once for all processes."""
    if state.world.is_main:
        LOG.warning(line, *values)
