# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`arrange`: how a run lies on its processes, and what a process of each pipeline stage computes and trains.

Without a pipeline a process has all layers of all stacks, whatever the family. With one, the family's encoder and
decoder layers are split as the run itself splits them.
"""

import dataclasses
import functools
from collections import Counter

from data_pipeline.errors import UserError
from memformer.config.schema import Config
from memformer.config.topology import replicas_of
from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Stages
from memformer.models.registry import family_of, stages_of
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.split import Split, lanes_of_groups, schedule_of, split_of
from memformer.parallel.pipeline.traffic import sharing_stages
from memformer.parallel.segment.schedule import DECODE, SegmentSchedule
from memformer.parallel.segment.sharing import groups_of
from memformer.parallel.segment.sharing import schedule_of as shared_schedule
from memformer.planning.segment_trace import (
    ACTIVATIONS,
    Execution,
    SegmentTrace,
    Shape,
    StackTraces,
    largest_layer,
    recomputation_peak,
    trace_parts,
)
from memformer.replay import DecoderGroups, KeptMemories, kept_memories


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """A run on its processes: the sizes that everything follows from.

    Attributes:
        config: The run; its model has a vocab_size.
        replicas: Data-parallel ranks, which have other lanes.
        groups: Groups of lanes that a process replays one after another.
        lanes: Of a group.
        layers: By pipeline stage: how many layers it has of each stack.
        schedule: Of the pipeline; None without one.
        split: Its layers by stage.
        cut: How the family is cut.
        shared: The schedule of rollouts that several processes share; None where none does.
    """

    config: Config
    replicas: int
    groups: int
    lanes: int
    layers: tuple[dict[str, int], ...]
    schedule: ReplaySchedule | None = None
    split: Split | None = None
    cut: Stages | None = None
    shared: SegmentSchedule | None = None

    @property
    def model(self) -> ModelConfig:
        """The run's model."""
        return self.config.model

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16; `auto` is bf16, as on a GPU."""
        return "bf16" if self.config.precision == "auto" else self.config.precision

    @property
    def ranks(self) -> int:
        """Segment ranks, which share rollouts."""
        return self.config.parallel.segment

    @property
    def gradient_ranks(self) -> int:
        """Processes that gradients and ZeRO's partitions of a parameter are spread over."""
        return self.replicas * self.ranks

    @property
    def segments(self) -> int:
        """Segments of a rollout that a process has, at most."""
        return -(-self.config.data.most_segments // self.ranks)

    @property
    def replica_lanes(self) -> int:
        """Lanes of a replica."""
        return self.config.data.num_lanes // self.replicas

    @property
    def stages(self) -> int:
        """Pipeline stages; 1 without a pipeline."""
        return len(self.layers)

    @property
    def writer_stage(self) -> int:
        """The last stage that writes memory."""
        return self.schedule.layout.writer_stage if self.schedule else 0

    @property
    def embedding_copies(self) -> set[int]:
        """Stages that have a copy of the first one's embedding where that is the head's weight too."""
        return set(sharing_stages(self.schedule.layout, tied=True)) if self.schedule else set()

    def memory_numbers(self, stage: int) -> int:
        """Numbers of a lane's memory that the stage reads."""
        rows, columns = self.model.memory_shape
        return (rows if self.split is None else len(range(rows)[self.split.memory(stage)])) * columns

    @property
    def bubble(self) -> float:
        """Part of the time in which stages or segment ranks wait for each other, 0 .. 1."""
        if self.shared:
            return 1 - self.shared.efficiency
        return self.schedule.bubble if self.schedule else 0.0

    def held_graphs(self, stage: int) -> int:
        """Segments of a group whose graph the stage holds at a time, at most."""
        if self.schedule:
            return self.schedule.held_graphs(stage)
        return (self.window or 1) if self.config.training.replay == "mrbp" else self.segments

    @property
    def window(self) -> int:
        """W, the segments that go along diagonals at a time; 0: one after another."""
        return self.config.training.wavefront_window

    @property
    def windows(self) -> DecoderGroups:
        """A rollout in windows, which are filled from the end."""
        return DecoderGroups(self.config.data.most_segments, self.window)

    @property
    def backwards(self) -> int:
        """Backward passes of a group of lanes in a step."""
        if self.config.training.replay != "mrbp":
            return 1
        return len(self.windows.spans) if self.window else self.segments

    @property
    def decodes_apart(self) -> bool:
        """Whether the decoder has graphs of its own, of one segment or several at once."""
        return self.decoder_batch > 1 or (self.shared is not None and DECODE in self.shared.kinds)

    @property
    def decoder_batch(self) -> int:
        """G, the segments that a decoder takes at once."""
        return self.config.training.segments_per_decoder_batch

    @property
    def memories(self) -> KeptMemories | DecoderGroups:
        """Which memories of a rollout the replay keeps."""
        if self.window:
            return self.windows
        interval = self.config.activation_checkpointing.memory_interval
        return kept_memories(self.config.data.most_segments, interval, self.decoder_batch)

    @property
    def decoders(self) -> int:
        """Calls of the decoder, with a graph, for a group of lanes in a step."""
        return -(-self.segments // self.decoder_batch)

    @property
    def advances(self) -> int:
        """Calls of `advance` for a group of lanes in a step: the replay's first pass, and what it computes again."""
        if self.config.training.replay != "mrbp":
            return 0
        if self.shared:
            return self.segments
        if self.window:
            return self.windows.segments - len(self.windows.spans[-1])
        return self.config.data.most_segments - 1 + self.memories.recomputed

    def layer_passes(self, stage: int) -> int:
        """Forwards of a layer that a process of the stage launches in a step; a backward counts as two.

        Those of a diagonal are launched together.
        """
        layers, segments = self.layers[stage], self.segments
        advanced = self.advanced(stage)
        if self.window:
            replayed_steps, advanced_steps = (
                sum(len(span) + depth - 1 for span in spans)
                for spans, depth in (
                    (self.windows.spans, sum(layers.values())),
                    (self.windows.spans[:-1], sum(advanced.values())),
                )
            )
            return (advanced_steps + (3 + self.execution.recompute) * replayed_steps) * self.groups
        replayed = dict.fromkeys(layers, segments)
        if self.decoder_batch > 1:
            replayed[self.model.stacks[1]] = self.decoders
        with_graph = 3 + self.execution.recompute
        passes = sum(
            self.advances * advanced[name] + with_graph * replayed[name] * count for name, count in layers.items()
        )
        return passes * self.groups

    def advanced(self, stage: int) -> dict[str, int]:
        """How many of the stage's layers pass 1 runs, by stack."""
        whole = self.model.advanced_counts()
        if self.split is None or self.cut is None or self.split.rows is None:
            return {name: min(count, whole[name]) for name, count in self.layers[stage].items()}
        span = self.split.span(stage)
        return _counted(self.model, self.cut, range(span.start, min(span.stop, sum(whole.values()))))

    @property
    def execution(self) -> Execution:
        """How a process computes a segment."""
        return Execution(
            self.lanes,
            self.config.data.segment_length,
            self.config.parallel.tensor,
            self.precision,
            self.config.activation_checkpointing.mode == "full",
            self.config.training.train,
            self.config.optimizer.memory_learning_rate is not None,
            self.decoder_batch,
            self.config.optimizer.name,
        )

    @functools.cached_property
    def traces(self) -> StackTraces:
        """What the parts of the model keep and send."""
        return trace_parts(self.model, self.execution)

    def segment(self, stage: int) -> SegmentTrace:
        """One segment of a stage. What is in no layer is counted with the last stage; what is kept of it with the
        writer's, but for the logits, where a writer is most of it."""
        return self._segments[stage]

    @functools.cached_property
    def _segments(self) -> list[SegmentTrace]:
        return [self._segment_of(stage) for stage in range(self.stages)]

    def _segment_of(self, stage: int) -> SegmentTrace:
        found = self.traces.of(self.layers[stage], rest=stage == self.stages - 1, advanced=self.advanced(stage))
        elsewhere = (stage == self.writer_stage) - (stage == self.stages - 1)
        if not elsewhere or (self.split is not None and self.split.rows is not None):  # there each layer has its own
            return found
        kept = {**found.saved, ACTIVATIONS: found.saved[ACTIVATIONS] + elsewhere * self.traces.rest.saved[ACTIVATIONS]}
        return dataclasses.replace(found, saved=Counter(kept))

    def advanced_layer(self) -> int:
        """Bytes that a layer has under way in the first pass, at most: what it would keep for a graph."""
        return largest_layer(self.model, self.execution)

    def encoder(self, stage: int) -> SegmentTrace:
        """The encoder's layers in one segment, where the decoder is apart from them (`Family.decoder_apart`)."""
        return self.traces.of(self._layers_of(stage, 0), rest=False)

    def decoder(self, stage: int, rest: bool = True) -> SegmentTrace:
        """The decoder's layers in one segment; with `rest`, and what is in no layer."""
        return self.traces.of(self._layers_of(stage, 1), rest=rest)

    def recomputation_peak_of_group(self, stage: int) -> int:
        """Bytes while the largest layer of a decoder that takes several segments at once is recomputed."""
        how = dataclasses.replace(self.execution, lanes=self.lanes * self.decoder_batch)
        return recomputation_peak(self.model, how, self._layers_of(stage, 1))

    def _layers_of(self, stage: int, stack: int) -> dict[str, int]:
        """The stage's layers of one stack of the configuration alone."""
        only = self.model.stacks[stack]
        return {name: count if name == only else 0 for name, count in self.layers[stage].items()}

    def recomputation_peak(self, stage: int) -> int:
        """Bytes while a stage recomputes its largest layer."""
        return recomputation_peak(self.model, self.execution, self.layers[stage])

    def parameters(self, stage: int) -> Counter[Shape]:
        """The parameters that a process of the stage has, frozen ones too."""
        return self._parameters[stage]

    @functools.cached_property
    def _parameters(self) -> list[Counter[Shape]]:
        return [self._parameters_of(stage) for stage in range(self.stages)]

    def _parameters_of(self, stage: int) -> Counter[Shape]:
        found = self.traces.of(self.layers[stage], rest=False).parameters
        for part, shapes in self.traces.rest_parameters.items():
            if self._home(part) == stage:
                alone = self.cut is not None and part == self.cut.embedding
                found = found + (self._without_head(shapes) if alone else shapes)
        return found

    @property
    def embedding(self) -> int:
        """Elements of the first stage's token embedding that a process has."""
        return sum(shape.numel * count for shape, count in self._embedding.items())

    @property
    def trained_embedding(self) -> int:
        """The same if it is trained, else 0."""
        return sum(shape.numel * count for shape, count in self._embedding.items() if shape.trained)

    @property
    def _embedding(self) -> Counter[Shape]:
        return Counter() if self.cut is None else self.traces.rest_parameters[self.cut.embedding]

    @staticmethod
    def _without_head(shapes: Counter[Shape]) -> Counter[Shape]:
        """An embedding's on a stage of its own: the head that it may be tied to, a linear layer, is on another."""
        return Counter(
            {shape._replace(low_precision=shape.low_precision and shape.size < 4): n for shape, n in shapes.items()}
        )

    def _home(self, part: str) -> int:
        """The stage that trains a part of the model which is no layer."""
        places = {"first": 0, "writer": self.writer_stage, "last": self.stages - 1}
        return 0 if self.cut is None else places[self.cut.home[part]]


def arrange(config: Config, model: ModelConfig, world: int, said: str | None = None) -> Arrangement:
    """Lays a run out on so many processes.

    Args:
        config: The run.
        model: Its model, with vocab_size.
        world: Processes.
        said: How the user gave their number, for messages (`replicas_of`).

    Raises:
        UserError: The sizes do not divide, or the model's family is not built for the settings.
    """
    config = config.model_copy(update={"model": model})
    parallel, family = config.parallel, family_of(model)
    for setting, built in (("tensor", family.shard), ("pipeline", family.stages)):
        if built is None and getattr(parallel, setting) > 1:
            raise UserError(
                f"parallel.{setting} is {getattr(parallel, setting)}: not built for family {family.name}, set it to 1"
            )
    replicas = replicas_of(config, world, said)
    own, group = config.data.num_lanes // replicas, config.training.lanes_per_micro_batch
    if parallel.segment > 1:
        shared = shared_schedule(config, model, own, config.data.most_segments)
        start, stop = groups_of(config, own)[0]
        whole = (model.layer_counts(),)
        return Arrangement(config, replicas, shared.pieces.groups, stop - start, whole, shared=shared)
    if family.stages is None or parallel.pipeline == 1:
        size = min(own, group or own)
        return Arrangement(config, replicas, -(-own // size), size, (model.layer_counts(),))
    split, cut = split_of(config, model), stages_of(model)
    layers = tuple(_counted(model, cut, split.span(stage)) for stage in range(split.stages))
    spans = lanes_of_groups(own, parallel.pipeline, group)
    size = spans[0][1] - spans[0][0]
    schedule = schedule_of(config, config.model, own)
    return Arrangement(config, replicas, len(spans), size, layers, schedule, split, cut)


def _counted(model: ModelConfig, cut: Stages, layers: range) -> dict[str, int]:
    """How many of some layers are counted in each stack."""
    stacks = cut.stacks(model)
    found = Counter(stacks[layer] for layer in layers)
    return {stack: found[stack] for stack in model.stacks}
