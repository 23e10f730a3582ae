# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which layers each stage holds, what its work is, and the schedule that follows: pure functions of the settings.

The layers stand in the order in which a token passes them: encoder, then decoder. The embedding is with the first
encoder layer, the writer with the last; the decoder's embedding with its first layer, the head with its last.
"""

import dataclasses
import functools
from collections.abc import Sequence

from memformer.config.schema import Config
from memformer.models.memformer import MemformerConfig
from memformer.models.memformer.flops import segment_flops
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.simulate import StageCost
from memformer.parallel.pipeline.tasks import Layout


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

    def layout(self, micro_batches: int, segments: int, recurrent: bool = True) -> Layout:
        """Who does what in a rollout."""
        return Layout(self.stages, micro_batches, segments, self.writer_stage, self.decoder_stage, recurrent)

    def costs(self, config: MemformerConfig, segment_length: int, recompute: bool = False) -> list[StageCost]:
        """FLOPs of each stage for one segment of one lane; `recompute`: activation checkpointing of every layer."""
        flops = segment_flops(config, segment_length)
        found = []
        for stage in range(self.stages):
            encoder = flops.encoder * len(self.encoder(stage)) // config.num_encoder_layers
            decoder = flops.decoder * len(self.decoder(stage)) // config.num_decoder_layers
            # Writer and head are not recomputed.
            writer = flops.writer if stage == self.writer_stage else 0
            head = flops.head if stage == self.stages - 1 else 0
            layers = 3 if recompute else 2
            found.append(
                StageCost(encoder + writer, layers * encoder + 2 * writer, decoder + head, layers * decoder + 2 * head)
            )
        return found

    def _span(self, stage: int) -> tuple[int, int]:
        start = sum(self.layers[:stage])
        return start, start + self.layers[stage]


def balanced_split(
    config: MemformerConfig, stages: int, segment_length: int, num_segments: int, recompute: bool = False
) -> Split:
    """The split whose busiest stage has least to do; encoder layers count their share of pass 1.

    Args:
        config: The model, with at least as many layers as stages.
        stages: Pipeline stages.
        segment_length: S.
        num_segments: T of a rollout; pass 1 repeats T - 1 of T encoder forwards.
        recompute: Whether every layer is recomputed in its backward.
    """
    flops = segment_flops(config, segment_length)
    layers = 4 if recompute else 3
    again = (num_segments - 1) / num_segments if flops.writer else 0.0
    work = [flops.encoder / config.num_encoder_layers * (layers + again)] * config.num_encoder_layers
    work[-1] += flops.writer * (3 + again)
    work += [flops.decoder / config.num_decoder_layers * layers] * config.num_decoder_layers
    work[-1] += flops.head * 3
    return Split(_partition(work, stages), config.num_encoder_layers)


def split_of(config: Config, model: MemformerConfig) -> Split:
    """The split of a run: `parallel.pipeline_layers`, or the balanced one."""
    if config.parallel.pipeline_layers is not None:
        return Split(tuple(config.parallel.pipeline_layers), model.num_encoder_layers)
    recompute = config.activation_checkpointing.mode == "full"
    return balanced_split(
        model, config.parallel.pipeline, config.data.segment_length, config.data.num_segments, recompute
    )


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


def replay_schedule(
    split: Split,
    config: MemformerConfig,
    segment_length: int,
    micro_batches: int,
    num_segments: int,
    recompute: bool = False,
    window: int | None = None,
) -> ReplaySchedule:
    """The schedule of a rollout, ordered by the stages' FLOPs."""
    layout = split.layout(micro_batches, num_segments, bool(config.num_memory_slots))
    return ReplaySchedule(layout, split.costs(config, segment_length, recompute), window)


def schedule_of(config: Config, model: MemformerConfig, lanes: int) -> ReplaySchedule:
    """The schedule of a run's rollouts, for that many lanes of a replica."""
    groups = lanes_of_groups(lanes, config.parallel.pipeline, config.training.lanes_per_micro_batch)
    return replay_schedule(
        split_of(config, model),
        model,
        config.data.segment_length,
        len(groups),
        config.data.num_segments,
        config.activation_checkpointing.mode == "full",
        config.parallel.segments_in_flight,
    )
