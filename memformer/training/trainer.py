# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A training run, from top to bottom: data, processes, model, engine, resume, loop, end."""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from data_pipeline import SegmentBatch, SegmentStream, UserError
from memformer.checkpoints import state as checkpoint
from memformer.checkpoints.lane_states import LaneStates
from memformer.checkpoints.saving import Saver, SaveReport
from memformer.config.schema import Config, save_config
from memformer.config.topology import replicas_of
from memformer.engine.deepspeed_config import deepspeed_config
from memformer.engine.optimizer import learning_rate
from memformer.engine.pipeline_engine import PipelineReplayEngine
from memformer.engine.precision import resolve_precision
from memformer.engine.replay_engine import ReplayEngine, StepReport
from memformer.guards.guards import Guards, Step
from memformer.guards.watchdog import Watchdog
from memformer.inference import evaluate, pictures
from memformer.inference.diagnostics import inspected_memory, memory_diagnostics
from memformer.processes import group
from memformer.processes.environment import prepare_environment
from memformer.processes.group import World
from memformer.replay import RolloutResult
from memformer.replay.random_state import mix_seed
from memformer.run import jsonl
from memformer.run.data import Audit, TrainingData, rollout_of
from memformer.run.directory import RunDirectory, write_atomically
from memformer.run.metrics import MetricsWriter, log_line, peak_memory_bytes, perplexity, set_up_logging
from memformer.run.stop_requests import StepAbandoned, StopRequests
from memformer.training.description import Costs, describe_run, run_identity
from memformer.training.initial_weights import initial_model

LOG = logging.getLogger("memformer")
AGREE_EVERY = 8
"""Batches of an evaluation between two looks at requests to stop."""


def train(config: Config, resume: str = "auto") -> int:
    """Trains until `training.max_steps` or until it is asked to stop, from the newest checkpoint if there is one.

    Called by every process of the run, with the same configuration.

    Args:
        config: The run.
        resume: auto, never, or the path of a run or checkpoint.

    Returns:
        0 when the run has finished; 75 when it was asked to stop, has saved and can be started again; 130 after Ctrl-C.

    Raises:
        UserError: The settings, the data, the checkpoint or the number of processes do not fit.
    """
    # Everything a user may have got wrong is checked before the slow part (DeepSpeed, the process group) starts.
    prepare_environment()
    data = TrainingData.open(config.data)
    model_config = data.complete(config.model, config.data.segment_length)
    replicas_of(config, int(os.environ["WORLD_SIZE"]))
    run = RunDirectory(config.run_dir)
    run.create()

    timeout, parallel = config.guards.collective_timeout_seconds, config.parallel
    world = group.initialise(config.device, timeout).arranged(parallel.tensor, parallel.pipeline, timeout)
    set_up_logging(world.rank)
    precision = resolve_precision(config.precision, world.device)
    made = PipelineReplayEngine if parallel.pipeline > 1 else ReplayEngine
    engine = made(initial_model(config, model_config, data, world), config, world, precision)
    identity = run_identity(config, model_config, data, world, precision)
    trainer = Trainer(config, run, world, data, engine, identity)

    start = checkpoint.find(run, world, resume)
    if world.is_main:
        save_config(config, run.config)
        generated = deepspeed_config(config, world.mesh.data.size, precision)
        write_atomically(run.deepspeed, json.dumps(generated, indent=1) + "\n")
        describe_run(config, model_config, world, precision)
    with data.train_stream(config, world) as stream:
        if start is not None:
            trainer.resume(start, stream)
        exit_code = trainer.loop(stream)
    engine.close()
    return exit_code


class Trainer:
    """The loop and what happens between steps.

    Args:
        config: The run.
        run: Its directory.
        world: This process among all.
        data: The data sets.
        engine: The model in its engine.
        identity: What checkpoints say of the run (`run_identity`).
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        world: World,
        data: TrainingData,
        engine: ReplayEngine,
        identity: dict[str, Any],
    ) -> None:
        self.config, self.run, self.world, self.data = config, run, world, data
        self.engine, self.identity = engine, identity
        self.progress = checkpoint.Progress()
        lanes = config.data.num_lanes // world.mesh.data.size
        self.lanes = LaneStates(engine.empty_carry(lanes))
        self.guards = Guards(config, run, world, engine, self.event)
        engine.at_segment = self.at_segment
        self.urgency, self.step_seconds = 0, 0.0
        self.saved_step, self.last_save = -1, time.monotonic()
        self.save_error: str | None = None
        self.saver = Saver(run, world, engine, identity, data.tokenizer_file, config.checkpoint, self.saved)
        self.costs = Costs.of(config, engine.model.config, world)

    def resume(self, directory: Path, stream: SegmentStream) -> None:
        """Goes on from a verified checkpoint."""
        changes = checkpoint.check_fits(directory, self.identity)
        self.lanes, self.progress = checkpoint.load(directory, self.world, self.engine, stream)
        if self.engine.loss_scale is not None:
            self.engine.loss_scale.load(self.progress.loss_scale)
        self.saved_step = self.progress.step if directory.parent == self.run.checkpoints else -1
        self.event("resume", step=self.progress.step, checkpoint=str(directory), changes=changes)
        LOG.info("resumed from %s (step %d)", directory, self.progress.step)
        if changes:
            LOG.info("carried over to %s; %s", ", ".join(changes), checkpoint.not_carried(changes))

    def loop(self, stream: SegmentStream) -> int:
        """Trains from the step after `progress` to the last, or until asked to stop; returns the exit code."""
        settings, last = self.config.training, self.config.training.max_steps
        if self.progress.step >= last:
            LOG.info("nothing to do: the run has finished its %d steps", last)
            return 0
        self.drop_later_lines()
        audit = Audit(self.run, self.world, self.config.data.audit)
        board = self.config.tensorboard
        self.progress = dataclasses.replace(self.progress, data=stream.state_dict())
        self.event("start", step=self.progress.step, processes=self.world.size)
        with (
            MetricsWriter(self.run, self.world.is_main, board, self.progress.step + 1) as self.writer,
            StopRequests(self.run.stop_file, settings.wall_clock_limit_seconds) as self.requests,
            Watchdog(self.run, self.world, self.config.guards.hang_timeout_seconds) as self.watchdog,
        ):
            while self.progress.step < last:
                step, started = self.progress.step + 1, time.perf_counter()
                self.watchdog.pulse("data", step)
                batch = next(stream)
                data_seconds = time.perf_counter() - started
                audit.delivered(batch)
                rollout, before = rollout_of(batch, self.world.device), self.lanes.before(batch.carry_from)
                parts = Step(batch, rollout, before, mix_seed(self.config.seed, step))
                self.watchdog.pulse("rollout", step)
                try:
                    result = self.engine.rollout_backward(rollout, before, batch.valid_tokens, parts.seed)
                except StepAbandoned:
                    return self.stopped()
                rate = learning_rate(step, self.config.optimizer, last)
                self.watchdog.pulse("optimizer step", step)
                report = self.engine.step(rate)
                self.lanes = self.lanes.after(result.carry, stream.carry_slots)
                self.progress = dataclasses.replace(
                    self.progress,
                    step=step,
                    tokens=self.progress.tokens + batch.valid_tokens,
                    data=stream.state_dict(),
                    loss_scale={} if self.engine.loss_scale is None else self.engine.loss_scale.state(),
                )
                metrics = self.measure(result, report, rate, batch.valid_tokens, started, data_seconds)
                self.guard(parts, report.applied, metrics)
                self.writer.step(metrics)
                if step % settings.log_interval == 0 or step in (1, last):
                    LOG.info("%s", log_line(metrics, last, metrics["step_seconds"]))
                save_due = self.agree(metrics["step_seconds"])
                if settings.eval_interval and (step % settings.eval_interval == 0 or step == last):
                    self.evaluate()
                self.picture_memory()
                interval = self.config.checkpoint.interval
                if step == last or save_due or (interval and step % interval == 0):
                    self.save()
                if self.urgency and step < last:
                    return self.stopped()
            self.settle_last()
        self.event("end", step=self.progress.step, tokens=self.progress.tokens)
        return 0

    def drop_later_lines(self) -> None:
        """Drops what an earlier life logged of steps that are trained again, be it all of them."""
        if self.world.is_main:
            jsonl.truncate(self.run.metrics, self.progress.step)
            Audit.truncate_all(self.run, self.progress.step)
        group.barrier()  # before a process appends to its audit

    def guard(self, parts: Step, applied: bool, metrics: dict[str, Any]) -> None:
        """Looks at the step that was just done."""
        act = self.guards.scored if applied else self.guards.skipped
        self.lanes, self.progress = act(parts, self.lanes, self.progress, metrics)
        metrics["skipped_steps"] = self.progress.skipped_steps
        self.guards.timed(self.progress.step, metrics["step_seconds"], metrics["data_seconds"])
        self.guards.compared(self.progress.step)

    def agree(self, step_seconds: float) -> bool:
        """What all processes must know alike after a step, in one collective; returns whether a save is due by time."""
        minutes = self.config.checkpoint.interval_minutes
        due = minutes and time.monotonic() - self.last_save > 60 * minutes
        self.urgency, writing, milliseconds, save_due = group.all_max_each(
            [self.requests.urgency, self.saver.writing, int(1000 * step_seconds), int(bool(due))]
        )
        self.step_seconds = milliseconds / 1000
        if not writing:
            self.saver.settle()
        return bool(save_due)

    def at_segment(self) -> None:
        """Between two segments of a rollout: where steps are long, a run that is asked to stop does not finish one."""
        self.watchdog.pulse("rollout", self.progress.step + 1)
        if self.step_seconds >= self.config.training.finish_step_seconds:
            self.urgency = group.all_max(self.requests.urgency)
            if self.urgency:
                raise StepAbandoned

    def stopped(self) -> int:
        """Saves, says that the run leaves, and returns the exit code."""
        self.save()
        self.settle_last()
        LOG.info("stopped after step %d by %s; the same command goes on", self.progress.step, self.requests.reason())
        self.event("preemption", step=self.progress.step, reason=self.requests.reason())
        group.barrier()  # every process has looked at the stop file
        if self.world.is_main:
            self.run.stop_file.unlink(missing_ok=True)
        return self.requests.exit_code(self.urgency)

    def measure(
        self, result: RolloutResult, report: StepReport, rate: float, tokens: int, started: float, data_seconds: float
    ) -> dict[str, Any]:
        """The step's line of metrics.jsonl; one small all-reduce for the loss and the memory's gradient."""
        local = torch.cat([result.segment_losses.double().sum()[None], result.memory_gradient_norms.double().square()])
        loss_sum, *squares = self.world.mesh.data.sum(local).tolist()
        step = self.progress.step
        metrics: dict[str, Any] = {
            "step": step,
            "loss": loss_sum / max(1, tokens),
            "perplexity": perplexity(loss_sum / max(1, tokens)),
            "tokens": self.progress.tokens,
            "learning_rate": rate,
            "grad_norm": report.grad_norm,
            "skipped_steps": self.progress.skipped_steps,
            "replay_buffer_bytes": self.engine.replay_buffer_bytes,
            # Each replica's objective is scaled by their number, for the average of the gradients.
            "memory_gradient_norms": [math.sqrt(square) / self.world.mesh.data.size for square in squares],
        }
        if report.loss_scale is not None:
            metrics["loss_scale"] = report.loss_scale
        interval = self.config.training.diagnostics_interval
        if interval and (step == 1 or step % interval == 0):
            metrics["memory"] = memory_diagnostics(self.engine.model, self.lanes.carry, self.world.mesh.data.sum)
        seconds = time.perf_counter() - started
        return {
            **metrics,
            "step_seconds": seconds,
            "data_seconds": data_seconds,
            "tokens_per_second": tokens / seconds,
            **self.costs.utilisation(tokens / seconds),
            "peak_memory_bytes": peak_memory_bytes(self.world.device),
        }

    def evaluate(self) -> None:
        """Scores the held-out documents with the memory and with it reset at every segment."""
        if self.data.held_out is None:
            return
        try:
            with self.data.held_out_stream(self.config, self.world) as stream:
                scores = evaluate(
                    self.engine.model,
                    self.attentive(stream),
                    self.world.device,
                    max_segments=self.config.training.eval_segments,
                    autocast=self.engine.autocast(),
                    total=self.world.mesh.data.sum,
                )
        except StepAbandoned:
            LOG.info("the evaluation of step %d was broken off: the run is asked to stop", self.progress.step)
            return
        reports = {mode: score.report() for mode, score in scores.items()}
        self.event("evaluation", step=self.progress.step, **reports)
        self.writer.scalars(
            "eval",
            self.progress.step,
            {mode: {"loss": r["loss"], "perplexity": r["perplexity"]} for mode, r in reports.items()},
        )
        LOG.info(
            "step %d held-out: perplexity %.4f with memory, %.4f with it reset at every segment (%d tokens)",
            self.progress.step,
            reports["with_memory"]["perplexity"],
            reports["memory_reset"]["perplexity"],
            reports["with_memory"]["tokens"],
        )

    def picture_memory(self) -> None:
        """Draws what the memory keeps of a held-out document, where and when pictures are wanted."""
        step, interval = self.progress.step, self.config.training.memory_pictures_interval
        due = interval and step % interval == 0
        if not due or not self.config.tensorboard or self.data.held_out is None or self.urgency:
            return
        if self.world.mesh.pipe.size > 1:
            if step == interval:
                LOG.info("no pictures of the memory from a pipeline: memformer inspect-memory draws them of an export")
            return
        if not group.from_main(pictures.available()):
            if step == interval:
                LOG.info("no pictures of the memory: they need matplotlib (pip install 'memformer-train[plots]')")
            return
        self.watchdog.pulse("evaluation", step)
        with self.data.held_out_stream(self.config, self.world) as stream, self.engine.autocast():
            report = inspected_memory(self.engine.model, stream, self.data.train.tokenizer)
        if report is not None and self.world.is_main:
            self.writer.figures("memory", step, pictures.pictures(report))

    def attentive(self, batches: Iterable[SegmentBatch]) -> Iterator[SegmentBatch]:
        """The batches of an evaluation, which ends early when the run is asked to stop."""
        for number, batch in enumerate(batches):
            self.watchdog.pulse("evaluation", self.progress.step)
            if number % AGREE_EVERY == 0:
                self.urgency = group.all_max(self.requests.urgency)
                if self.urgency:
                    raise StepAbandoned
            yield batch

    def save(self) -> None:
        """Writes a checkpoint of this step, or starts to, unless there is one already."""
        self.watchdog.pulse("save", self.progress.step)
        if self.saved_step != self.progress.step:
            self.saved_step, self.last_save = self.progress.step, time.monotonic()
            self.saver.start(self.lanes, self.progress)
        self.urgency = group.all_max(self.requests.urgency)

    def settle_last(self) -> None:
        """Waits for the last checkpoint to be complete: leaving without it must not look like success."""
        self.saver.settle()
        if self.save_error is not None:
            raise UserError(
                f"checkpoint: step {self.progress.step} could not be saved ({self.save_error}): make room on the disk "
                "of run_dir and start the run again, it goes on from the last checkpoint",
                exit_code=1,
            )

    def saved(self, report: SaveReport) -> None:
        """Says how a save ended; a disk that is full is no reason to end a run."""
        self.save_error = report.error
        if report.error is not None:
            self.event("save_failed", step=report.step, reason=report.error)
            LOG.warning(
                "the checkpoint of step %d could not be written (%s); the run goes on, the older one stays",
                report.step,
                report.error,
            )
            return
        rate = report.bytes / max(report.write_seconds, 1e-9) / 1e6
        self.event("save", **{**vars(report), "directory": str(report.directory)}, megabytes_per_second=rate)
        LOG.info(
            "saved %s: %.1f MB at %.0f MB/s, training stood still for %.2f s",
            report.directory,
            report.bytes / 1e6,
            rate,
            report.pause_seconds,
        )

    def event(self, kind: str, **details: Any) -> None:
        """Writes an event once for all processes."""
        if self.world.is_main:
            self.run.event(kind, **details)
