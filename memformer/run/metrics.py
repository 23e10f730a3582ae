# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a step reports: its figures, metrics.jsonl, TensorBoard, and one line of the log with an ETA."""

import dataclasses
import json
import logging
import math
import resource
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

import torch

from memformer.run.appending import Appender
from memformer.run.board import Board
from memformer.run.directory import RunDirectory, json_ready
from memformer.run.loggers.registry import Loggers

LOG = logging.getLogger("memformer")


def set_up_logging(rank: int) -> None:
    """Standard logging to stdout with the rank in each line; other ranks than 0 only warn."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"%(asctime)s [{rank}] %(message)s", datefmt="%H:%M:%S"))
    LOG.handlers, LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO if rank == 0 else logging.WARNING)


@dataclasses.dataclass(frozen=True)
class StepFigures:
    """What was measured of one optimizer step.

    Attributes:
        loss: Mean over the valid targets of all lanes, by their weights, nats; None where no target counts.
        grad_norm: Global L2 norm of the gradient before clipping; inf or nan where it was not finite.
        applied: False when the step was left out because the gradient was not finite.
        loss_scale: What the objective was multiplied by; None unless the precision is fp16.
        learning_rate: Of this step.
        tokens: Valid targets of this step, of all lanes, whether they count or not.
        epochs: How often the training data has been read so far.
        replay_buffer_bytes: Largest size of the replay buffer on this process.
        memory_gradient_norms: L2 norm of the loss's gradient with respect to the memory before segments 1 .. T-1; with
            training.wavefront_window before the windows but the first alone.
        memory: `memory_diagnostics`, at the steps that have them.
        seconds: How long the step took.
        data_seconds: How long it waited for its batch.
        peak_memory_bytes: `peak_memory_bytes` after it.
        num_segments: T of the step.
        memory_learning_rate: Of the memory's parameters; None where they have none of their own.
        counted_tokens: Sum of the targets' weights; None where the data has none.
    """

    loss: float | None
    grad_norm: float
    applied: bool
    loss_scale: float | None
    learning_rate: float
    tokens: int
    epochs: float
    replay_buffer_bytes: int
    memory_gradient_norms: list[float]
    memory: dict[str, float | list[float]] | None
    seconds: float
    data_seconds: float
    peak_memory_bytes: int
    num_segments: int = 1
    memory_learning_rate: float | None = None
    counted_tokens: float | None = None

    def line(
        self,
        step: int,
        tokens: int,
        skipped_steps: int,
        utilisation: dict[str, float | None],
        spike_score: float | None,
    ) -> dict[str, Any]:
        """The step's line of metrics.jsonl.

        Args:
            step: Its number.
            tokens: Valid targets read so far.
            skipped_steps: Steps left out so far, this one among them.
            utilisation: mfu and hfu, 0 to 1.
            spike_score: How unusual the loss is; None for a step that was left out.
        """
        line: dict[str, Any] = {
            "step": step,
            "loss": self.loss,
            "perplexity": None if self.loss is None else perplexity(self.loss),
            "tokens": tokens,
            "num_segments": self.num_segments,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "skipped_steps": skipped_steps,
            "replay_buffer_bytes": self.replay_buffer_bytes,
            "memory_gradient_norms": self.memory_gradient_norms,
        }
        if self.counted_tokens is not None:
            line["counted_tokens"] = self.counted_tokens
        if self.memory_learning_rate is not None:
            line["memory_learning_rate"] = self.memory_learning_rate
        if self.loss_scale is not None:
            line["loss_scale"] = self.loss_scale
        if self.memory is not None:
            line["memory"] = self.memory
        line |= {
            "step_seconds": self.seconds,
            "data_seconds": self.data_seconds,
            "tokens_per_second": self.tokens / self.seconds,
            **utilisation,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        if spike_score is not None:
            line["spike_score"] = spike_score
        return line


class MetricsWriter:
    """Writes metrics on rank 0; on other ranks it does nothing, so that the loop need not ask.

    Args:
        run: Where to write.
        enabled: Whether this process writes (rank 0).
        tensorboard: Whether to write TensorBoard events as well.
        first_step: The step that comes next; TensorBoard drops what an earlier life wrote from there on.
        loggers: Services that get the same numbers.
    """

    def __init__(
        self, run: RunDirectory, enabled: bool, tensorboard: bool, first_step: int, loggers: Loggers | None = None
    ) -> None:
        self._loggers = loggers
        self._file = Appender(run.metrics) if enabled else None
        self._board = Board(run.tensorboard, first_step) if enabled and tensorboard else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        for each in (self._file, self._board):
            if each is not None:
                each.close()

    def step(self, metrics: dict[str, Any]) -> None:
        """One optimizer step: a line of metrics.jsonl, its numbers as TensorBoard scalars under train/ and tasks/."""
        if self._file is None:
            return
        self._file.append((json.dumps(json_ready(metrics)) + "\n").encode())
        self.scalars("train", metrics["step"], {name: each for name, each in metrics.items() if name != "tasks"})
        if "tasks" in metrics:
            self.scalars("tasks", metrics["step"], metrics["tasks"])

    def text(self, tag: str, words: str, step: int) -> None:
        """A text in TensorBoard, its lines as they are."""
        if self._board is not None:
            self._board.add_text(tag, textwrap.indent(words, "    "), step)

    def figures(self, prefix: str, step: int, figures: dict[str, Any]) -> None:
        """matplotlib figures as TensorBoard images."""
        if self._board is None:
            return
        for name, figure in figures.items():
            self._board.add_figure(f"{prefix}/{name}", figure, step)

    def scalars(self, prefix: str, step: int, values: dict[str, Any]) -> None:
        """Numbers for TensorBoard and the services; lists become one an entry, nested dictionaries one tag a level."""
        tags = dict(_tags(prefix, values))
        if self._board is not None:
            self._board.add_scalars(step, tags)
        if self._loggers is not None:
            self._loggers.scalars(step, tags)


def _tags(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _tags(f"{prefix}/{name}", value)
        elif isinstance(value, list):
            yield from _tags(f"{prefix}/{name}", {f"{i:02d}": each for i, each in enumerate(value, start=1)})
        elif isinstance(value, (int, float)) and name != "step" and math.isfinite(value):
            yield f"{prefix}/{name}", value


def log_line(metrics: dict[str, Any], max_steps: int, seconds_per_step: float) -> str:
    """One step in fixed columns, for a log file or a terminal."""
    width = len(str(max_steps))
    remaining = int((max_steps - metrics["step"]) * seconds_per_step)
    mfu = "n/a" if metrics["mfu"] is None else f"{100 * metrics['mfu']:.1f}%"
    loss, ppl = (
        ("none", "none") if metrics["loss"] is None else (f"{metrics['loss']:.4f}", f"{metrics['perplexity']:.2f}")
    )
    return (
        f"step {metrics['step']:>{width}}/{max_steps} | loss {loss:>7} | ppl {ppl:>9} "
        f"| lr {metrics['learning_rate']:.2e} | grad {metrics['grad_norm']:8.3f} "
        f"| epoch {metrics['epochs']:7.3f} | {metrics['tokens_per_second']:9,.0f} tok/s | mfu {mfu:>5} "
        f"| mem {metrics['peak_memory_bytes'] / 2**30:6.2f} GiB | eta {remaining // 3600}:{remaining // 60 % 60:02d}:"
        f"{remaining % 60:02d}"
    )


def perplexity(loss: float) -> float:
    """exp(loss), infinity where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory in use so far: of the GPU's allocator, or resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
