# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`train_pieces`: carries out a rank's tasks of one rollout, with the messages between the pieces."""

from collections.abc import Callable, Sequence

import torch

from memformer.parallel.channels import Channels, Transfer
from memformer.parallel.segment.schedule import (
    ADVANCE,
    DECODE,
    MEMORY,
    MEMORY_GRADIENT,
    Agree,
    Message,
    SegmentSchedule,
)
from memformer.replay import RolloutPiece
from memformer.run.stop_requests import StepAbandoned


def train_pieces(
    schedule: SegmentSchedule,
    rank: int,
    pieces: Sequence[RolloutPiece],
    before: Sequence[torch.Tensor],
    channels: Channels,
    at_segment: Callable[[], None],
) -> dict[int, torch.Tensor]:
    """Trains this rank's piece of every group's rollout.

    Args:
        schedule: Of the rollout.
        rank: This process among those that share it.
        pieces: By group, what this rank has.
        before: By group, the memory before the rollout, [lanes, K, C].
        channels: To the other ranks.
        at_segment: Called once between two tasks, by all processes at corresponding points; may raise `StepAbandoned`.

    Returns:
        The memory after the rollout, [lanes, K, C], of the groups whose last piece is here.

    Raises:
        StepAbandoned: `at_segment` did, on all processes; no message is left under way.
    """
    received = {
        (message.kind, message.group): channels.receive(message.kind, before[message.group].shape, message.source)
        for message in schedule.incoming(rank)
    }
    sent: dict[Message, Transfer] = {}
    after: dict[int, torch.Tensor] = {}

    def hand_on(message: Message, content: torch.Tensor) -> None:
        sent[message] = channels.send(message.kind, content, message.target)

    def arrived(kind: str, group: int) -> torch.Tensor | None:
        transfer = received.pop((kind, group), None)  # gloo would wait for another message the second time
        return None if transfer is None else transfer.wait()

    for step in schedule.program(rank):
        if isinstance(step, Agree):
            try:
                at_segment()
            except StepAbandoned:
                # Every receive is posted already: what is not sent yet is sent as zeros.
                for message in schedule.outgoing(rank):
                    if message not in sent:
                        hand_on(message, torch.zeros_like(before[message.group]))
                for transfer in (*received.values(), *sent.values()):
                    transfer.wait()
                raise
            continue
        piece, group = pieces[step.group], step.group
        if step.kind == DECODE:
            piece.decode(schedule.batches(schedule.pieces.piece(rank, group))[step.part])
            continue
        if step.kind == ADVANCE:
            memory = arrived(MEMORY, group)
            result = piece.advance(before[group] if memory is None else memory)
        else:
            result = piece.replay(arrived(MEMORY_GRADIENT, group))
        seam = schedule.sent(rank, step)
        if seam is not None:
            hand_on(seam, result)
        elif step.kind == ADVANCE:
            after[group] = result
    for transfer in sent.values():
        transfer.wait()
    return after
