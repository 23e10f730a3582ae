# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A training run, from top to bottom: data, processes, model, engine, resume, loop, end."""

import dataclasses
import json
import logging
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from data_pipeline import SegmentStream, UserError
from memformer import checkpoint, distributed
from memformer.config import Config, save_config
from memformer.deepspeed_config import deepspeed_config
from memformer.diagnostics import memory_diagnostics
from memformer.distributed import World
from memformer.engine import ReplayEngine, StepReport, resolve_precision
from memformer.evaluation import evaluate
from memformer.metrics import MetricsWriter, log_line, peak_memory_bytes, perplexity, set_up_logging
from memformer.model import Memformer, MemformerConfig
from memformer.model.flops import count_parameters, hardware_flops_per_token, model_flops_per_token, peak_flops
from memformer.optimizer import learning_rate
from memformer.replay import Carry, RolloutResult
from memformer.replay.random_state import mix_seed
from memformer.run_directory import RunDirectory, truncate_lines, write_atomically
from memformer.stop_requests import StopRequests
from memformer.training_data import Audit, TrainingData, rollout_of

LOG = logging.getLogger("memformer")
MAX_CONSECUTIVE_SKIPS = 20


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
    distributed.prepare_environment()
    data = TrainingData.open(config.data)
    model_config = data.complete(config.model, config.data.segment_length)
    check_world_size(config, int(os.environ["WORLD_SIZE"]))
    run = RunDirectory(config.run_dir)
    run.create()

    world = distributed.initialise(config.device)
    set_up_logging(world.rank)
    precision = resolve_precision(config.precision, world.device)
    torch.manual_seed(config.seed)
    engine = ReplayEngine(Memformer(model_config), config, world, precision)
    identity = run_identity(config, model_config, data, world, precision)
    trainer = Trainer(config, run, world, data, engine, identity)

    start = checkpoint.find(run, world, resume)
    if world.is_main:
        save_config(config, run.config)
        write_atomically(run.deepspeed, json.dumps(deepspeed_config(config, world.size, precision), indent=1) + "\n")
        describe_run(config, model_config, world, precision)
    with data.train_stream(config, world) as stream:
        if start is not None:
            checkpoint.check_fits(start, identity)
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
        lanes = config.data.num_lanes // world.size
        self.carry = Carry.empty(engine.initial_memory(lanes), config.data.segment_length)
        self.consecutive_skips = 0
        self.costs = Costs.of(config, engine.model.config, world)

    def resume(self, directory: Path, stream: SegmentStream) -> None:
        """Goes on from a verified checkpoint; what was logged after it is dropped, since it is trained again."""
        self.carry, self.progress = checkpoint.load(directory, self.world, self.engine)
        stream.load_state_dict(self.progress.data)
        if self.world.is_main:
            truncate_lines(self.run.metrics, self.progress.step)
            self.run.event("resume", step=self.progress.step, checkpoint=str(directory))
        LOG.info("resumed from %s (step %d)", directory, self.progress.step)

    def loop(self, stream: SegmentStream) -> int:
        """Trains from the step after `progress` to the last, or until asked to stop; returns the exit code."""
        settings, last = self.config.training, self.config.training.max_steps
        if self.progress.step >= last:
            LOG.info("nothing to do: the run has finished its %d steps", last)
            return 0
        audit = Audit(self.run, self.world.rank, self.config.data.audit, self.progress.step)
        board = self.config.tensorboard
        self.event("start", step=self.progress.step, processes=self.world.size)
        with (
            MetricsWriter(self.run, self.world.is_main, board, self.progress.step + 1) as self.writer,
            StopRequests(self.run.stop_file) as requests,
        ):
            while self.progress.step < last:
                started = time.perf_counter()
                batch = next(stream)
                data_seconds = time.perf_counter() - started
                audit.delivered(batch)
                step = self.progress.step + 1
                result = self.engine.rollout_backward(
                    rollout_of(batch, self.world.device),
                    self.carry,
                    batch.valid_tokens,
                    mix_seed(self.config.seed, step),
                )
                rate = learning_rate(step, self.config.optimizer, last)
                report = self.engine.step(rate)
                self.carry = result.carry
                self.progress = dataclasses.replace(
                    self.progress,
                    step=step,
                    tokens=self.progress.tokens + batch.valid_tokens,
                    data=stream.state_dict(),
                )
                stop = distributed.all_max(requests.urgency)
                metrics = self.measure(result, report, rate, batch.valid_tokens, started, data_seconds)
                if report.applied:
                    self.consecutive_skips = 0
                else:
                    self.skipped(metrics)
                self.writer.step(metrics)
                if step % settings.log_interval == 0 or step in (1, last):
                    LOG.info("%s", log_line(metrics, last, metrics["step_seconds"]))
                if settings.eval_interval and (step % settings.eval_interval == 0 or step == last):
                    self.evaluate()
                interval = self.config.checkpoint.interval
                if step == last or stop or (interval and step % interval == 0):
                    self.save()
                if stop and step < last:
                    return self.stopped(requests, stop)
        self.event("end", step=self.progress.step, tokens=self.progress.tokens)
        return 0

    def stopped(self, requests: StopRequests, urgency: int) -> int:
        """Says that the run leaves after having saved; returns the exit code."""
        LOG.info("stopped at step %d by %s; the same command goes on", self.progress.step, requests.reason())
        self.event("preemption", step=self.progress.step, reason=requests.reason())
        distributed.barrier()  # every process has looked at the stop file
        if self.world.is_main:
            self.run.stop_file.unlink(missing_ok=True)
        return requests.exit_code(urgency)

    def measure(
        self, result: RolloutResult, report: StepReport, rate: float, tokens: int, started: float, data_seconds: float
    ) -> dict[str, Any]:
        """The step's line of metrics.jsonl; one small all-reduce for the loss and the memory's gradient."""
        local = torch.cat([result.segment_losses.double().sum()[None], result.memory_gradient_norms.double().square()])
        loss_sum, *squares = distributed.all_sum(local).tolist()
        step = self.progress.step
        metrics: dict[str, Any] = {
            "step": step,
            "loss": loss_sum / max(1, tokens),
            "perplexity": perplexity(loss_sum / max(1, tokens)),
            "tokens": self.progress.tokens,
            "learning_rate": rate,
            "grad_norm": report.grad_norm,
            "skipped_steps": self.progress.skipped_steps,
            "memory_gradient_norms": [math.sqrt(square) for square in squares],
        }
        interval = self.config.training.diagnostics_interval
        if interval and (step == 1 or step % interval == 0):
            metrics["memory"] = memory_diagnostics(self.engine.model, self.carry)
        seconds = time.perf_counter() - started
        return {
            **metrics,
            "step_seconds": seconds,
            "data_seconds": data_seconds,
            "tokens_per_second": tokens / seconds,
            **self.costs.utilisation(tokens / seconds),
            "peak_memory_bytes": peak_memory_bytes(self.world.device),
        }

    def skipped(self, metrics: dict[str, Any]) -> None:
        """After a step that was left out because its gradient was not finite: no lane keeps a broken memory."""
        finite = self.carry.memory.isfinite().all(dim=2).all(dim=1)
        initial = self.engine.initial_memory(len(finite)).to(self.carry.memory.dtype)
        healed = torch.where(finite[:, None, None], self.carry.memory, initial)
        self.carry = dataclasses.replace(self.carry, memory=healed)
        self.progress = dataclasses.replace(self.progress, skipped_steps=self.progress.skipped_steps + 1)
        self.consecutive_skips += 1
        metrics["skipped_steps"] = self.progress.skipped_steps
        self.event("skip", step=self.progress.step, loss=metrics["loss"], grad_norm=metrics["grad_norm"])
        LOG.warning("step %d skipped: loss %s, gradient norm %s", *(metrics[k] for k in ("step", "loss", "grad_norm")))
        if self.consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            raise UserError(
                f"{MAX_CONSECUTIVE_SKIPS} steps in a row had no finite gradient up to step {self.progress.step}: "
                "lower optimizer.learning_rate or resume from an earlier checkpoint",
                exit_code=1,
            )

    def evaluate(self) -> None:
        """Scores the held-out documents with the memory and with it reset at every segment."""
        if self.data.held_out is None:
            return
        with self.data.held_out_stream(self.config, self.world) as stream:
            scores = evaluate(
                self.engine.model,
                stream,
                self.world.device,
                max_segments=self.config.training.eval_segments,
                autocast=self.engine.autocast(),
            )
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

    def save(self) -> None:
        """Writes a checkpoint."""
        started = time.perf_counter()
        directory = checkpoint.save(
            self.run,
            self.world,
            self.engine,
            self.carry,
            self.progress,
            self.identity,
            self.data.tokenizer_file,
            self.config.checkpoint.keep_last,
        )
        seconds = time.perf_counter() - started
        self.event("save", step=self.progress.step, checkpoint=str(directory), seconds=round(seconds, 3))
        LOG.info("saved %s in %.1f s", directory, seconds)

    def event(self, kind: str, **details: Any) -> None:
        """Writes an event once for all processes."""
        if self.world.is_main:
            self.run.event(kind, **details)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the run's arithmetic costs, for its utilisation of the hardware.

    Attributes:
        model_flops: FLOPs a token of forward and backward, without anything computed twice.
        hardware_flops: The same with what replay and activation checkpointing compute again.
        peak: FLOP/s of all devices together; None where the device is not known.
    """

    model_flops: float
    hardware_flops: float
    peak: float | None

    @classmethod
    def of(cls, config: Config, model: MemformerConfig, world: World) -> "Costs":
        """The costs of a run."""
        length, segments = config.data.segment_length, config.data.num_segments
        peak = None
        if world.device.type == "cuda":
            name = torch.cuda.get_device_name(world.device)
            precision = resolve_precision(config.precision, world.device)
            peak = peak_flops(name, torch.bfloat16 if precision == "bf16" else torch.float32)
        return cls(
            model_flops_per_token(model, length),
            hardware_flops_per_token(
                model, length, segments, config.training.replay, config.activation_checkpointing.mode
            ),
            None if peak is None else peak * world.size,
        )

    def utilisation(self, tokens_per_second: float) -> dict[str, float | None]:
        """mfu and hfu, 0 to 1; None ("n/a") where the device's peak is not known."""
        if self.peak is None:
            return {"mfu": None, "hfu": None}
        return {
            "mfu": tokens_per_second * self.model_flops / self.peak,
            "hfu": tokens_per_second * self.hardware_flops / self.peak,
        }


def check_world_size(config: Config, world_size: int) -> None:
    """Refuses a number of processes that the lanes do not divide over.

    Raises:
        UserError: Names the settings and the mend.
    """
    lanes = config.data.num_lanes
    if lanes % world_size:
        raise UserError(
            f"data.num_lanes is {lanes}, which {world_size} data-parallel processes cannot share equally "
            f"(world size {world_size} = parallel.tensor {config.parallel.tensor} x parallel.pipeline "
            f"{config.parallel.pipeline} x data): choose a multiple of {world_size}"
        )


def run_identity(
    config: Config, model: MemformerConfig, data: TrainingData, world: World, precision: str
) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it."""
    import deepspeed

    return {
        "model": model.to_dict(),
        "tokenizer_sha256": data.train.tokenizer.sha256,
        "data_fingerprint": data.train.fingerprint,
        "num_lanes": config.data.num_lanes,
        "zero_stage": config.parallel.zero_stage,
        "world_size": world.size,
        "precision": precision,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
        },
    }


def describe_run(config: Config, model: MemformerConfig, world: World, precision: str) -> None:
    """Prints the numbers that follow from the settings."""
    data = config.data
    tokens = data.num_lanes * data.num_segments * data.segment_length
    LOG.info("run directory %s, configuration %s", config.run_dir, RunDirectory(config.run_dir).config)
    LOG.info(
        "model: %s, %d+%d layers, width %d, %d memory slots",
        f"{count_parameters(model):,} parameters",
        model.num_encoder_layers,
        model.num_decoder_layers,
        model.d_model,
        model.num_memory_slots,
    )
    LOG.info(
        "batch: %d lanes x %d segments x %d tokens = %s tokens a step; %s tokens in all",
        data.num_lanes,
        data.num_segments,
        data.segment_length,
        f"{tokens:,}",
        f"{tokens * config.training.max_steps:,}",
    )
    LOG.info(
        "%d process(es) on %s, ZeRO stage %d, %s", world.size, world.device.type, config.parallel.zero_stage, precision
    )
