# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which layers each stage holds, what its work is, and the schedule that follows: pure functions of the settings.

The layers stand in the order in which a token passes them: encoder, then decoder. The embedding is with the first
encoder layer, the writer with the last; the decoder's embedding with its first layer, the head with its last.
"""

import dataclasses
import functools
from collections.abc import Sequence

from memformer.config.schema import Config
from memformer.models.configuration import ModelConfig
from memformer.models.family_record import PartFlops
from memformer.models.registry import stages_of
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.simulate import StageCost
from memformer.parallel.pipeline.tasks import Layout


@dataclasses.dataclass(frozen=True)
class Work:
    """What a rollout asks of a model's layers: by it they are split over stages, and a stage's tasks ordered.

    Attributes:
        encoder_layers: Of the model.
        decoder_layers: Of the model.
        flops: Of one forward of one lane's segment, by part.
        segments: T of a rollout.
        recurrent: Whether there is a memory, which pass 1 advances.
        recomputed: Whether every layer is computed again in its backward (activation checkpointing).
    """

    encoder_layers: int
    decoder_layers: int
    flops: PartFlops
    segments: int
    recurrent: bool
    recomputed: bool

    @classmethod
    def of(cls, model: ModelConfig, segment_length: int, num_segments: int, recomputed: bool = False) -> "Work":
        """The work of a model's rollouts.

        Args:
            model: Of a family that pipelines can cut, with vocab_size.
            segment_length: S.
            num_segments: T.
            recomputed: Whether layers are computed again in their backward.

        Raises:
            NotBuilt: The family is none of these.
        """
        stages = stages_of(model)
        flops, recurrent = stages.costs(model, segment_length), model.memory_shape[0] > 0
        return cls(*stages.layers(model), flops, num_segments, recurrent, recomputed)

    @classmethod
    def of_run(cls, config: Config, model: ModelConfig) -> "Work":
        """The work of a run's longest rollouts."""
        recomputed = config.activation_checkpointing.mode == "full"
        return cls.of(model, config.data.segment_length, config.data.most_segments, recomputed)

    @property
    def layer_backward(self) -> int:
        """A layer's backward, in forwards."""
        return 3 if self.recomputed else 2


@dataclasses.dataclass(frozen=True)
class Split:
    """Layers by stage.

    Attributes:
        layers: Layers of each stage, counted over encoder and decoder together; at least 1 each.
        encoder_layers: Encoder layers of the model.
    """

    layers: tuple[int, ...]
    encoder_layers: int

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.layers)

    def encoder(self, stage: int) -> range:
        """Numbers of the stage's encoder layers."""
        start, stop = self._span(stage)
        return range(min(start, self.encoder_layers), min(stop, self.encoder_layers))

    def decoder(self, stage: int) -> range:
        """Numbers of the stage's decoder layers."""
        start, stop = self._span(stage)
        return range(max(0, start - self.encoder_layers), max(0, stop - self.encoder_layers))

    @property
    def writer_stage(self) -> int:
        """The stage of the last encoder layer, which writes the memory."""
        return max(stage for stage in range(self.stages) if self.encoder(stage))

    @property
    def decoder_stage(self) -> int:
        """The stage of the first decoder layer."""
        return min(stage for stage in range(self.stages) if self.decoder(stage))

    def own(self, stage: int) -> dict[str, range]:
        """Numbers of the stage's layers by kind, as `models.registry.Stages.kind` has it."""
        return {"encoder": self.encoder(stage), "decoder": self.decoder(stage)}

    def layout(self, micro_batches: int, segments: int, recurrent: bool = True) -> Layout:
        """Who does what in a rollout."""
        return Layout(self.stages, micro_batches, segments, self.writer_stage, self.decoder_stage, recurrent)

    def costs(self, work: Work) -> list[StageCost]:
        """FLOPs of each stage for one segment of one lane."""
        flops, again = work.flops, work.layer_backward
        found = []
        for stage in range(self.stages):
            encoder = flops.encoder * len(self.encoder(stage)) // work.encoder_layers
            decoder = flops.decoder * len(self.decoder(stage)) // work.decoder_layers
            # Writer and head are not recomputed.
            writer = flops.writer if stage == self.writer_stage else 0
            head = flops.head if stage == self.stages - 1 else 0
            found.append(
                StageCost(encoder + writer, again * encoder + 2 * writer, decoder + head, again * decoder + 2 * head)
            )
        return found

    def _span(self, stage: int) -> tuple[int, int]:
        start = sum(self.layers[:stage])
        return start, start + self.layers[stage]


def balanced_split(work: Work, stages: int) -> Split:
    """The split whose busiest stage has least to do; encoder layers count their share of pass 1.

    Args:
        work: Of a model with at least as many layers as stages.
        stages: Pipeline stages.
    """
    flops, layer = work.flops, 1 + work.layer_backward
    # Pass 1 repeats T - 1 of T encoder forwards.
    again = (work.segments - 1) / work.segments if work.recurrent else 0.0
    each = [flops.encoder / work.encoder_layers * (layer + again)] * work.encoder_layers
    each[-1] += flops.writer * (3 + again)
    each += [flops.decoder / work.decoder_layers * layer] * work.decoder_layers
    each[-1] += flops.head * 3
    return Split(_partition(each, stages), work.encoder_layers)


def split_of(config: Config, model: ModelConfig) -> Split:
    """The split of a run: `parallel.pipeline_layers`, or the balanced one.

    Raises:
        NotBuilt: Pipelines cannot cut the model's family.
    """
    if config.parallel.pipeline_layers is not None:
        return Split(tuple(config.parallel.pipeline_layers), stages_of(model).layers(model)[0])
    return balanced_split(Work.of_run(config, model), config.parallel.pipeline)


def _partition(work: Sequence[float], parts: int) -> tuple[int, ...]:
    """Lengths of consecutive, non-empty parts with the smallest largest sum, then the smallest sum of squares."""
    before = [0.0]
    for each in work:
        before.append(before[-1] + each)

    @functools.cache
    def best(stop: int, count: int) -> tuple[float, float, tuple[int, ...]]:
        if count == 1:
            return before[stop], before[stop] ** 2, (stop,)
        found = []
        for start in range(count - 1, stop):
            largest, squares, lengths = best(start, count - 1)
            own = before[stop] - before[start]
            found.append((max(largest, own), squares + own**2, (*lengths, stop - start)))
        return min(found)

    return best(len(work), parts)[2]


def lanes_of_groups(lanes: int, stages: int, lanes_per_micro_batch: int | None) -> list[tuple[int, int]]:
    """(start, stop) of each micro-batch among a replica's lanes; by default as many as stages, where lanes allow."""
    size = lanes_per_micro_batch or max(1, lanes // stages)
    return [(start, min(start + size, lanes)) for start in range(0, lanes, size)]


@functools.lru_cache(maxsize=64)
def replay_schedule(split: Split, work: Work, micro_batches: int, window: int | None = None) -> ReplaySchedule:
    """The schedule of a rollout, ordered by the stages' FLOPs; the same object for the same arguments.

    Args:
        split: Layers by stage.
        work: What the rollout asks of them.
        micro_batches: Groups of lanes.
        window: Segments in flight; None: as many as `default_window` has it.
    """
    layout = split.layout(micro_batches, work.segments, work.recurrent)
    return ReplaySchedule(layout, split.costs(work), window)


def schedule_of(config: Config, model: ModelConfig, lanes: int, num_segments: int | None = None) -> ReplaySchedule:
    """The schedule of a run's rollouts, for that many lanes of a replica.

    Args:
        config: The run.
        model: Its model, with vocab_size.
        lanes: Of a replica.
        num_segments: T of the rollout; None: the largest of the run.
    """
    groups = lanes_of_groups(lanes, config.parallel.pipeline, config.training.lanes_per_micro_batch)
    work, window = Work.of_run(config, model), config.parallel.segments_in_flight
    work = dataclasses.replace(work, segments=num_segments or work.segments)
    return replay_schedule(split_of(config, model), work, len(groups), window)
