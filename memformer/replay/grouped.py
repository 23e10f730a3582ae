# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay whose decoder takes several segments as one batch.

The memory depends on a segment's encoder alone. So what the decoder does for G segments that follow each other can be
done at once, as [G * B, S]: fewer, larger products, fewer launches, and under ZeRO-3 each of its layers is gathered T/G
times instead of T.

    pass 1   encoders of all segments but the last group's, without a graph; kept: the memory before each group
    pass 2   for each group, the last first:
               encoders of its segments, without a graph but for the last; kept: G memories, G encoder outputs
               decoder of the group, forward and backward; kept: the gradient of the G outputs
               for each of its segments, the last first: encoder again, with a graph, and backward

An encoder is computed without a graph 2 - 1/G times a segment instead of once. The peak is the graph of a group's
decoder and of one encoder, beside G*B*S*D numbers of outputs, as many of their gradients, and (T/G + G)*B*K*D.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch

from memformer.replay.backward import Backward, RolloutResult, autograd_backward, result_of
from memformer.replay.buffer import ReplayBuffer
from memformer.replay.kept import DecoderGroups
from memformer.replay.objectives import given
from memformer.replay.random_state import segment_seeds, stream_of, streams_of_parts
from memformer.replay.rollout import Carry, Rollout
from memformer.replay.segment import Segment


class DecoderApart(Protocol):
    """A cell whose memory and decoder both follow from an encoder's output. [K, C] is a lane's memory, W a width."""

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The next memory [B, K, C]."""

    def encode_and_write(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the encoder's output [B, S, W], next memory [B, K, C]); random numbers are the encoder's alone."""

    def score(self, segment: Segment, context: torch.Tensor) -> torch.Tensor:
        """Losses of the targets [B, S], 0 beyond the valid length, from the encoder's output."""


def decoder_backward(
    cell: DecoderApart,
    segments: Segment,
    contexts: torch.Tensor,
    streams: list[torch.Tensor],
    backward: Callable[[torch.Tensor], Any],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Decoder of several segments at once, forward and backward.

    Args:
        cell: The model.
        segments: G of them, joined.
        contexts: The encoder's outputs of all of them, one after another, without a graph.
        streams: Of each segment, the random stream as the encoder has left it.
        backward: Back-propagates the losses [G], within those streams.

    Returns:
        Sum of the losses in nats, times their weights, of each segment, [G], detached; and by segment the gradient with
        respect to the encoder's outputs.
    """
    contexts = contexts.requires_grad_()
    with streams_of_parts(contexts.device, streams):
        losses = segments.weighted(cell.score(segments, contexts)).view(len(streams), -1).sum(1)
        backward(losses)
    assert contexts.grad is not None
    return losses.detach(), contexts.grad.chunk(len(streams))


def grouped_replay_backward(
    cell: DecoderApart,
    rollout: Rollout,
    carry: Carry,
    backward: Backward = autograd_backward,
    *,
    denominator: float,
    seed: int | None = None,
    buffer: ReplayBuffer | None = None,
    group: int,
) -> RolloutResult:
    """`memory_replay_backward` with the decoder of `group` segments at a time: the same gradients up to rounding.

    Random numbers are drawn as there, segment by segment.

    Args:
        cell: The model.
        rollout: T segments of B lanes.
        carry: The lanes' state before the rollout; no gradient flows into it.
        backward: Called once a group and once a segment with a scalar, the second argument being the number of calls
            that are still to come.
        denominator: As there.
        seed: Seed of the rollout's random numbers; None draws one.
        buffer: Where the memories before the groups are kept; None: on the device.
        group: G, the segments that the decoder takes at once.
    """
    buffer = ReplayBuffer() if buffer is None else buffer
    groups = DecoderGroups(rollout.num_segments, group).spans
    left = itertools.count(rollout.num_segments + len(groups) - 1, -1)
    losses, counts, norms = [], [], []
    with segment_seeds(seed, carry.memory.device) as seed_segment:

        def encoded(t: int, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seed_segment(t)
            return cell.encode_and_write(rollout.segment(t, carry), memory)

        memory = carry.memory
        with torch.no_grad():
            for span in groups[:-1]:
                buffer.push(memory)
                for t in span:
                    seed_segment(t)
                    memory = cell.advance(rollout.segment(t, carry), memory)
        buffer.fetch()
        gradient: torch.Tensor | None = None
        for span in reversed(groups):
            if gradient is not None:
                memory = buffer.pop()
            memories, contexts, streams = [], [], []
            for t in span:
                # The last one's graph is kept: it is the first to be asked for.
                with torch.set_grad_enabled(t == span[-1]):
                    memories.append(memory.detach().requires_grad_(t > 0))
                    context, memory = encoded(t, memories[-1])
                contexts.append(context)
                streams.append(stream_of(memory.device))
            if gradient is None:
                # Zeros rather than nothing, so that the writer has a gradient when T = 1 too.
                gradient, final_memory = torch.zeros_like(memory), memory.detach()

            segments = Segment.joined([rollout.segment(t, carry) for t in span])
            joined = torch.cat([each.detach() for each in contexts])
            found, for_contexts = decoder_backward(
                cell, segments, joined, streams, lambda losses: backward(losses.sum() / denominator, next(left))
            )
            losses.append(found)
            counts.append(segments.target_length.view(len(span), -1).sum(1))
            del joined

            for t in reversed(span):
                own = t - span[0]
                if t < span[-1]:
                    context, memory = encoded(t, memories[own])
                backward(given([context, memory], [for_contexts[own], gradient]), next(left))
                if t > 0:
                    # A cell without memory slots leaves no gradient.
                    before = memories[own]
                    gradient = torch.zeros_like(before) if before.grad is None else before.grad
                    norms.append(gradient.norm())
                del context, memory
    return result_of(
        list(torch.cat(losses[::-1]).unbind()),
        list(torch.cat(counts[::-1]).unbind()),
        norms[::-1],
        rollout.carry(final_memory),
    )
