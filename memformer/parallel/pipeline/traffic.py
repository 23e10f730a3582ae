# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The messages of a pipeline in one optimizer step, by kind: counted from the schedule, before anything runs.

Per micro-batch of b lanes, and for each segment, in numbers of the weights' dtype (fp32 under autocast too); E encoder
stages, w the last of them, d = 1 if the decoder begins on the stage after it and 0 if it begins on w, P decoder stages,
N tokens of the decoder's input:

| kind | from -> to | messages a micro-batch | numbers |
|---|---|---|---|
| memory, memory_gradient | w -> each other encoder stage, and back | T (E - 1) | b K D |
| stream | encoder stage -> next, pass 1 and pass 2 | (2T - 1)(E - 1) | b S D |
| stream | decoder stage -> next | T (P - 1) | b N D |
| stream_gradient | the same backwards, pass 2 only | T (E - 1), T (P - 1) | b S D, b N D |
| context, context_gradient | w -> decoder if d; decoder stage -> next, and back | T (d + P - 1) | b S D |

Without memory slots there is no pass 1: no memories, and T (E - 1) streams between encoder stages. Once a step, each
stage with a copy of the token embedding sends its gradient [V/tensor, D] to stage 0 (shared_gradient) and gets the new
weights (shared_weight). Two collectives over the stages end a rollout: a sum of 2T - 1 numbers, and the memories
[B, K, D] from w to all.
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
    head = [layout.stages - 1] if tied else []
    return sorted({layout.decoder_stage, *head} - {0})


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
        embedding: Elements of the token embedding that a process has, of V D / tensor.
        number_bytes: Of the weights' dtype.
    """
    found: list[Traffic] = [{} for _ in range(schedule.layout.stages)]

    def count(stage: int, kind: str, numbers: int) -> None:
        entry = found[stage].setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += numbers * number_bytes

    (slots, channels), stages = model.memory_shape, stages_of(model)
    width, decoder_length = stages.width(model), stages.decoder_length(model, segment_length)
    for message in schedule.messages():
        length = decoder_length if message.decoded else segment_length
        numbers = slots * channels if message.kind in (MEMORY, MEMORY_GRADIENT) else length * width
        count(message.source, message.kind, lanes[message.task.micro_batch] * numbers)
    for stage in sharing_stages(schedule.layout, tied=bool(model.tied())):
        count(stage, SHARED_GRADIENT, embedding)
        count(0, SHARED, embedding)
    return found
