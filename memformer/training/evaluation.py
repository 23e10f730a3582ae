# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run looks at between two steps: `Evaluation` scores held-out documents, `TaskEvaluation` asks for what
documents told once, `MemoryPictures` draws what the memory keeps.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data_pipeline import SegmentBatch, Tokenizer
from memformer.inference import evaluate, pictures
from memformer.inference.diagnostics import has_slots
from memformer.inference.inspection import MemoryInspector
from memformer.inference.recall import RecallInspector
from memformer.inference.task_report import ask_cells
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.processes import group
from memformer.run.data import TrainingData
from memformer.run.metrics import MetricsWriter
from memformer.run.stop_requests import StepAbandoned
from memformer.run.task_shares import shares_of
from memformer.training.callbacks import Callback, TrainingState
from memformer.training.stopping import StopAgreement

LOG = logging.getLogger("memformer")

INSPECTED_SEGMENTS, INSPECTED_HORIZON = 48, 16
"""Segments of the held-out document that pictures are drawn of, and writes over which its memory is looked at again."""


class Evaluation:
    """Scores the held-out documents with the memory and with it reset at every segment, where there are any.

    Args:
        state: The run.
        data: Its data sets.
        stopping: An evaluation ends early when the run is asked to stop.
        callback: Told of each batch, and of the scores.
    """

    def __init__(self, state: TrainingState, data: TrainingData, stopping: StopAgreement, callback: Callback) -> None:
        self._state, self._data, self._stopping, self._callback = state, data, stopping, callback

    @property
    def due(self) -> bool:
        """Whether the step that is done is one after which the run is evaluated."""
        return _due(self._state, self._state.config.training.eval_interval)

    def run(self) -> None:
        """Scores, and says so; called by all processes together."""
        state = self._state
        if self._data.held_out is None:
            return
        group = self._decoder_batch()
        try:
            with self._data.held_out_stream(state.config, state.world, group) as stream:
                scores = evaluate(
                    state.engine.model,
                    self._attentive(stream, group),
                    state.world.device,
                    max_segments=state.config.training.eval_segments,
                    autocast=state.engine.autocast(),
                    group=group,
                    total=state.world.mesh.data.sum,
                )
        except StepAbandoned:
            LOG.info("the evaluation of step %d was broken off: the run is asked to stop", state.progress.step)
            return
        self._callback.after_evaluation(state, {mode: score.report() for mode, score in scores.items()})

    def _decoder_batch(self) -> int:
        """Segments that the decoder takes at once: those of training, if they are no more rows than there."""
        config, world = self._state.config, self._state.world
        training, replicas = config.training, world.mesh.data.size
        group = training.segments_per_decoder_batch
        rows = group * (training.lanes_per_micro_batch or config.data.num_lanes // replicas)
        lanes = -(-self._data.held_out_lanes(config, world) // replicas)
        return max(1, min(group, rows // lanes, training.eval_segments))

    def _attentive(self, batches: Iterable[SegmentBatch], group: int) -> Iterator[SegmentBatch]:
        for number, batch in enumerate(batches):
            self._callback.during_evaluation(self._state)
            self._stopping.before_batch(number, group)
            yield batch


class TaskEvaluation:
    """Asks the tasks of the section `evaluation`, with the memory and with it reset, where there are any.

    Args:
        state: The run.
        data: Its data sets, with the documents that are asked.
        stopping: It ends early when the run is asked to stop.
        callback: Told of each segment.
    """

    def __init__(self, state: TrainingState, data: TrainingData, stopping: StopAgreement, callback: Callback) -> None:
        self._state, self._cells, self._stopping, self._callback = state, data.asked, stopping, callback

    @property
    def due(self) -> bool:
        """Whether the step that is done is one after which they are asked."""
        return bool(self._cells) and _due(self._state, self._state.config.evaluation.interval)

    def figures(self) -> dict[str, Any]:
        """Asks where it is due; what the step's line of metrics.jsonl then has of it. Called by all processes together.

        The event has every length and depth, the line shares by length.
        """
        if not self.due:
            return {}
        state, segments = self._state, itertools.count()

        def attentive(_: int) -> None:
            self._callback.during_evaluation(state)
            self._stopping.before_batch(next(segments))

        replicas = state.world.mesh.data
        try:
            with state.engine.autocast():
                lanes = state.config.data.num_lanes // replicas.size
                results = ask_cells(state.engine.model, self._cells, lanes, replicas, attentive)
        except StepAbandoned:
            LOG.info("the tasks of step %d were broken off: the run is asked to stop", state.progress.step)
            return {}
        state.event("tasks", step=state.progress.step, results=results)
        return {"tasks": shares_of(results)}


def _due(state: TrainingState, interval: int) -> bool:
    """Whether the step that is done is one of every `interval` steps, or the last; 0: never."""
    step = state.progress.step
    return bool(interval) and (step % interval == 0 or step == state.config.training.max_steps)


class MemoryPictures:
    """Draws what the memory keeps of a held-out document as TensorBoard images, where such pictures are wanted.

    Args:
        state: The run.
        data: Its data sets.
        writer: Where the pictures go.
        callback: Told that the document is read.
    """

    def __init__(self, state: TrainingState, data: TrainingData, writer: MetricsWriter, callback: Callback) -> None:
        self._state, self._data, self._writer, self._callback = state, data, writer, callback

    @property
    def due(self) -> bool:
        """Whether pictures of the step that is done are wanted."""
        config, step = self._state.config, self._state.progress.step
        interval = config.training.memory_pictures_interval
        return bool(interval and step % interval == 0) and config.tensorboard and self._data.held_out is not None

    def draw(self) -> None:
        """Reads the document and draws; called by all processes together."""
        state = self._state
        if state.world.mesh.pipe.size > 1:
            self._say_once("memformer inspect-memory draws them of an export", "from a pipeline")
            return
        if not group.from_main(pictures.available()):
            self._say_once("they need matplotlib (pip install 'memformer-train[plots]')")
            return
        self._callback.during_evaluation(state)
        with self._data.held_out_stream(state.config, state.world) as stream, state.engine.autocast():
            report = inspected_memory(state.engine.model, stream, self._data.train.tokenizer)
        if state.world.is_main:
            drawn = {} if report is None else pictures.pictures(report)
            self._writer.figures("memory", state.progress.step, drawn)
            if not drawn:
                self._say_once("there are none of a memory of this kind")

    def _say_once(self, why: str, where: str = "") -> None:
        """At the first step of which pictures are wanted, why there are none."""
        if self._state.progress.step == self._state.config.training.memory_pictures_interval:
            LOG.info("no pictures of the memory%s: %s", f" {where}" if where else "", why)


def inspected_memory(
    model: MemoryModel, batches: Iterable[SegmentBatch], tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """What `memformer inspect-memory` reports, on the beginning of the main process's first held-out document.

    Called by all processes, which compute the same: under ZeRO-3 each holds a part of the parameters.

    Args:
        model: The model; put into evaluation mode for the time.
        batches: Held-out segments, as for `evaluate`.
        tokenizer: The data set's.

    Returns:
        The report; None where there is no memory, no document, or nothing that looks into models of the family.
    """
    family = family_of(model.config)
    if (family.inspect is None and family.look is None) or not model.config.memory_shape[0]:
        return None
    found: list[np.ndarray[Any, Any]] = []
    ended = False
    for number, batch in enumerate(batches):
        # Every process takes as many batches as the others, which agree on each; the first lane's document ends where
        # the lane takes up another one, or idles.
        if number == INSPECTED_SEGMENTS:
            break
        ended = ended or (number > 0 and bool(batch.resets[0, 0])) or not batch.lengths[0, 0]
        if not ended:
            found.append(np.asarray(batch.tokens[0, 0, : batch.lengths[0, 0]]))
    tokens = group.from_main(np.concatenate(found) if found else None)
    if tokens is None:
        return None
    length = int(batch.tokens.shape[2])
    inspector: MemoryInspector | RecallInspector
    with evaluation_mode(model):
        if has_slots(model):
            inspector = MemoryInspector(model, tokenizer, len(tokens), horizon=INSPECTED_HORIZON, segment_length=length)
        else:
            inspector = RecallInspector(model, len(tokens), horizon=INSPECTED_HORIZON, segment_length=length)
        inspector.read(tokens)
        return inspector.report()
