# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The messages of a pipeline in one optimizer step, by kind: counted from the schedule, before anything runs.

Per micro-batch of b lanes, and for each segment, in numbers of the weights' dtype (fp32 under autocast too). Of a
memory that one stage writes, with E encoder stages, w the last of them, d = 1 if the decoder begins on the stage after
it and 0 if it begins on w, P decoder stages, N tokens of the decoder's input:

| kind | from -> to | messages a micro-batch | numbers |
|---|---|---|---|
| memory, memory_gradient | w -> each other encoder stage, and back | T (E - 1) | b K D |
| stream | encoder stage -> next, pass 1 and pass 2 | (2T - 1)(E - 1) | b S D |
| stream | decoder stage -> next | T (P - 1) | b N D |
| stream_gradient | the same backwards, pass 2 only | T (E - 1), T (P - 1) | b S D, b N D |
| context, context_gradient | w -> decoder if d; decoder stage -> next, and back | T (d + P - 1) | b S D |

Of layers with memories of their own, with p stages, w that of the last memory (from 0), L inputs of a layer:

| kind | from -> to | messages a micro-batch | numbers |
|---|---|---|---|
| stream | stage -> next, pass 1 up to w and pass 2 | (T - 1) w + T (p - 1) | b L D |
| stream_gradient | the same backwards, pass 2 only | T (p - 1) | b L D |

Without memory slots there is no pass 1: no memories, and T (E - 1) streams between encoder stages. Once a step, if the
token embedding is trained, each stage with a copy of it sends its gradient [V/tensor, D] to stage 0 (shared_gradient)
and gets the new weights (shared_weight). Collectives over the stages end a rollout: a sum of 2T - 1 numbers, and the
memories [B, K, C] from the stages that write them to all.
"""

from collections.abc import Sequence

from memformer.models.configuration import ModelConfig
from memformer.models.registry import stages_of
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.tasks import MEMORY, MEMORY_GRADIENT, Layout

SHARED, SHARED_GRADIENT = "shared_weight", "shared_gradient"
"""Kinds of the messages of the token embedding."""

Traffic = dict[str, list[int]]
"""[messages, bytes] by kind."""


def sharing_stages(layout: Layout, tied: bool) -> list[int]:
    """The stages that hold a copy of stage 0's token embedding: the decoder's first, and the head's if it is tied."""
    head = {layout.stages - 1} if tied else set()
    return sorted((layout.embedding_stages | head) - {0})


def sent_by_stage(
    schedule: ReplaySchedule,
    model: ModelConfig,
    segment_length: int,
    lanes: Sequence[int],
    embedding: int,
    number_bytes: int = 4,
) -> list[Traffic]:
    """What each stage sends in one step that is applied.

    Args:
        schedule: Of the rollout.
        model: The model.
        segment_length: S.
        lanes: b of each micro-batch.
        embedding: Elements of the token embedding that a process has, of V D / tensor; 0: it is not trained.
        number_bytes: Of the weights' dtype.
    """
    found: list[Traffic] = [{} for _ in range(schedule.layout.stages)]

    def count(stage: int, kind: str, numbers: int) -> None:
        entry = found[stage].setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += numbers * number_bytes

    (slots, channels), stages = model.memory_shape, stages_of(model)
    width, lengths = stages.width(model), stages.lengths(model, segment_length)
    for message in schedule.messages():
        stream = lengths[message.decoded] * width
        numbers = slots * channels if message.kind in (MEMORY, MEMORY_GRADIENT) else stream
        count(message.source, message.kind, lanes[message.task.micro_batch] * numbers)
    for stage in sharing_stages(schedule.layout, tied=bool(model.tied())) if embedding else ():
        count(stage, SHARED_GRADIENT, embedding)
        count(0, SHARED, embedding)
    return found
