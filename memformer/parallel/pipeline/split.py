# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which layers each stage holds, what its work is, and the schedule that follows: pure functions of the settings.

The layers stand in the order in which a token passes them: encoder, then decoder. The embedding is with the first
layer, the writer of a memory with the last encoder layer or, where layers have memories of their own, with each of
these; the decoder's embedding is with its first layer, the head with the last of all.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from data_pipeline.errors import UserError
from memformer.config.schema import Config
from memformer.models.configuration import ModelConfig
from memformer.models.family_record import LayerFlops
from memformer.models.registry import stages_of
from memformer.parallel.pipeline.layouts import LayerMemoryLayout, SharedMemoryLayout
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.simulate import StageCost
from memformer.parallel.pipeline.tasks import Layout


@dataclasses.dataclass(frozen=True)
class Work:
    """What a rollout asks of a model's layers: by it they are split over stages, and a stage's tasks ordered.

    Attributes:
        flops: Of one forward of one lane's segment, by layer.
        encoder_layers: How many of them are encoder layers.
        segments: T of a rollout.
        recomputed: Whether every layer is computed again in its backward (activation checkpointing).
        rows: Rows of the memory that each layer has of its own; None: the last encoder layer writes all.
    """

    flops: tuple[LayerFlops, ...]
    encoder_layers: int
    segments: int
    recomputed: bool
    rows: tuple[int, ...] | None = None

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
        flops, rows = tuple(stages.costs(model, segment_length)), None if stages.rows is None else stages.rows(model)
        return cls(flops, stages.layers(model)[0], num_segments, recomputed, rows)

    @classmethod
    def of_run(cls, config: Config, model: ModelConfig) -> "Work":
        """The work of a run's longest rollouts."""
        recomputed = config.activation_checkpointing.mode == "full"
        return cls.of(model, config.data.segment_length, config.data.most_segments, recomputed)

    @property
    def recurrent(self) -> bool:
        """Whether there is a memory, which pass 1 advances."""
        return any(each.advance for each in self.flops)

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
        rows: As of `Work`.
    """

    layers: tuple[int, ...]
    encoder_layers: int
    rows: tuple[int, ...] | None = None

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.layers)

    def span(self, stage: int) -> range:
        """Numbers of the stage's layers, counted over encoder and decoder together."""
        start = sum(self.layers[:stage])
        return range(start, start + self.layers[stage])

    def encoder(self, stage: int) -> range:
        """Numbers of the stage's encoder layers."""
        span = self.span(stage)
        return range(min(span.start, self.encoder_layers), min(span.stop, self.encoder_layers))

    def decoder(self, stage: int) -> range:
        """Numbers of the stage's decoder layers."""
        span = self.span(stage)
        return range(max(0, span.start - self.encoder_layers), max(0, span.stop - self.encoder_layers))

    @property
    def writer_stage(self) -> int:
        """The last stage that writes memory: of the last encoder layer, or of the last layer with a memory."""
        return self.writer_stages[-1]

    @property
    def writer_stages(self) -> list[int]:
        """The stages that write memory."""
        if self.rows is None:
            return [max(stage for stage in range(self.stages) if self.encoder(stage))]
        return [stage for stage in range(self.stages) if self._rows(self.span(stage))]

    @property
    def decoder_stage(self) -> int:
        """The stage of the first decoder layer, of a model that has a decoder."""
        return min(stage for stage in range(self.stages) if self.decoder(stage))

    def memory(self, stage: int) -> slice:
        """The rows of the memory that the stage reads: those of its own layers, or all."""
        if self.rows is None:
            return slice(None)
        span = self.span(stage)
        before = self._rows(range(span.start))
        return slice(before, before + self._rows(span))

    def own(self, stage: int, places: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
        """By kind, numbers of the parts that go with the stage's layers.

        Args:
            stage: The stage.
            places: Layers by kind, as `family_record.Stages.places` has them.
        """
        span = self.span(stage)
        return {kind: {part for part, layer in enumerate(of) if layer in span} for kind, of in places.items()}

    def layout(self, micro_batches: int, segments: int, recurrent: bool = True) -> Layout:
        """Who does what in a rollout."""
        sizes = self.stages, micro_batches, segments, self.writer_stage
        if self.rows is not None:
            return LayerMemoryLayout(*sizes)
        return SharedMemoryLayout(*sizes, self.decoder_stage, recurrent)

    def costs(self, work: Work) -> list[StageCost]:
        """FLOPs of each stage for one segment of one lane."""
        found = []
        for stage in range(self.stages):
            own = [work.flops[layer] for layer in self.span(stage)]
            encoder = len(self.encoder(stage))
            advance = sum(each.advance for each in own)
            found.append(StageCost(advance, *_passes(own[:encoder], work), *_passes(own[encoder:], work)))
        return found

    def _rows(self, layers: range) -> int:
        return sum((self.rows or ())[layer] for layer in layers)


def _passes(layers: Sequence[LayerFlops], work: Work) -> tuple[int, int]:
    """A forward with a graph and its backward; what is beside the layers is not computed again."""
    layer, beside = sum(each.layer for each in layers), sum(each.beside for each in layers)
    return layer + beside, work.layer_backward * layer + 2 * beside


def balanced_split(work: Work, stages: int) -> Split:
    """The split whose busiest stage has least to do; layers on the memory's path count their share of pass 1.

    Args:
        work: Of a model with at least as many layers as stages.
        stages: Pipeline stages.
    """
    # Pass 1 is of T - 1 of T segments.
    again = (work.segments - 1) / work.segments
    each = [sum(_passes([one], work)) + again * one.advance for one in work.flops]
    return Split(_partition(each, stages), work.encoder_layers, work.rows)


def split_of(config: Config, model: ModelConfig) -> Split:
    """The split of a run: `parallel.pipeline_layers`, or the balanced one.

    Raises:
        NotBuilt: Pipelines cannot cut the model.
        UserError: A stage has nothing to train.
    """
    stages, work = stages_of(model), Work.of_run(config, model)
    split = balanced_split(work, config.parallel.pipeline)
    if config.parallel.pipeline_layers is not None:
        split = dataclasses.replace(split, layers=tuple(config.parallel.pipeline_layers))
    trained = stages.trained(model, config.training.train)
    for stage in range(split.stages):
        if not any(trained[layer] for layer in split.span(stage)):
            raise UserError(
                f"training.train is {config.training.train}, of which the layers of stage {stage} of "
                f"parallel.pipeline {split.stages} have nothing ({'+'.join(map(str, split.layers))} layers): give each "
                "stage a layer that has some by parallel.pipeline_layers, or lower parallel.pipeline"
            )
    return split


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
        window: Segments in flight; None: as many as `Layout.default_window` has it.
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
