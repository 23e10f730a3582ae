# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The run's own callbacks: `Reports` writes what it says of itself, `Pulses` tells the watchdog that it moves."""

import logging
from typing import Any

from memformer.checkpoints.saving import SaveReport
from memformer.guards.watchdog import Watchdog
from memformer.run.metrics import MetricsWriter, log_line
from memformer.run.task_shares import in_words
from memformer.training.callbacks import Callback, TrainingState

LOG = logging.getLogger("memformer")


class Pulses(Callback):
    """The phase and the step that the watchdog names when the run stands still.

    Args:
        watchdog: The run's.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def before_data(self, state: TrainingState) -> None:
        """In the step to come, as the next three."""
        self._watchdog.pulse("data", state.progress.step + 1)

    def before_rollout(self, state: TrainingState) -> None:
        """A rollout begins."""
        self._watchdog.pulse("rollout", state.progress.step + 1)

    def between_segments(self, state: TrainingState) -> None:
        """It has got on by a segment."""
        self._watchdog.pulse("rollout", state.progress.step + 1)

    def before_optimizer_step(self, state: TrainingState) -> None:
        """It is done."""
        self._watchdog.pulse("optimizer step", state.progress.step + 1)

    def during_evaluation(self, state: TrainingState) -> None:
        """After the step that is done, as the next one."""
        self._watchdog.pulse("evaluation", state.progress.step)

    def before_save(self, state: TrainingState) -> None:
        """A save begins."""
        self._watchdog.pulse("save", state.progress.step)


class Reports(Callback):
    """metrics.jsonl, events.jsonl, TensorBoard and the log.

    Args:
        writer: Of metrics.
    """

    def __init__(self, writer: MetricsWriter) -> None:
        self._writer = writer

    def after_metrics(self, state: TrainingState, metrics: dict[str, Any]) -> None:
        """Every step's line in metrics.jsonl, some in the log; the answers to tasks in both."""
        self._writer.step(metrics)
        step, settings = state.progress.step, state.config.training
        if step % settings.log_interval == 0 or step in (1, settings.max_steps):
            LOG.info("%s", log_line(metrics, settings.max_steps, metrics["step_seconds"]))
        if "tasks" in metrics:
            LOG.info("step %d %s", step, in_words(metrics["tasks"]))

    def after_evaluation(self, state: TrainingState, reports: dict[str, dict[str, Any]]) -> None:
        """The scores of both modes."""
        step = state.progress.step
        state.event("evaluation", step=step, **reports)
        self._writer.scalars(
            "eval",
            step,
            {mode: {"loss": r["loss"], "perplexity": r["perplexity"]} for mode, r in reports.items()},
        )
        with_memory, reset = reports["with_memory"], reports["memory_reset"]
        counted = with_memory.get("counted_tokens", with_memory["tokens"])
        if not counted:
            LOG.warning(
                "step %d held-out: none of the %d tokens that were read counts by its loss weight, so that there is no "
                "perplexity: raise training.eval_segments, or name other documents as data.eval_path",
                step,
                with_memory["tokens"],
            )
            return
        weighted = f", {counted:,.1f} by their loss weights" if "counted_tokens" in with_memory else ""
        LOG.info(
            "step %d held-out: perplexity %.4f with memory, %.4f with it reset at every segment (%d tokens%s)",
            step,
            with_memory["perplexity"],
            reset["perplexity"],
            with_memory["tokens"],
            weighted,
        )

    def after_save(self, state: TrainingState, report: SaveReport) -> None:
        """How a save ended."""
        if report.error is not None:
            state.event("save_failed", step=report.step, reason=report.error)
            LOG.warning(
                "the checkpoint of step %d could not be written (%s); the run goes on, the older one stays",
                report.step,
                report.error,
            )
            return
        rate = report.bytes / max(report.write_seconds, 1e-9) / 1e6
        state.event("save", **{**vars(report), "directory": str(report.directory)}, megabytes_per_second=rate)
        LOG.info(
            "saved %s: %.1f MB at %.0f MB/s, training stood still for %.2f s",
            report.directory,
            report.bytes / 1e6,
            rate,
            report.pause_seconds,
        )
