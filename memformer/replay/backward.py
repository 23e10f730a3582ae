# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay back-propagation (the paper's Algorithm 1), and full back-propagation through time, its reference.

Both take the same arguments and return the same result, with the same gradients up to rounding. The replay's peak is
one segment's graph plus T*B*K*D numbers, or (T/k + k)*B*K*D where memories are computed again in groups of k; the
reference's is T graphs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch

from memformer.replay.buffer import ReplayBuffer
from memformer.replay.kept import KeptMemories
from memformer.replay.objectives import with_gradient
from memformer.replay.random_state import segment_seeds
from memformer.replay.rollout import Carry, Rollout
from memformer.replay.segment import Segment


class Cell(Protocol):
    """One step of the recurrence: a model of any family, or a wrapper of one. [K, C] is a lane's memory."""

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """The memory [lanes, K, C] of lanes that have read nothing; differentiable."""

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The next memory [B, K, D], without decoding."""

    def __call__(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of the valid targets' losses, each times its weight (`Segment.weighted`); their number; next memory
        [B, K, D])."""


Backward = Callable[[torch.Tensor, int], Any]
"""Back-propagates a scalar objective; the second argument is the number of objectives still to come this rollout."""


@dataclasses.dataclass(frozen=True)
class RolloutResult:
    """What a rollout leaves behind, apart from the gradients.

    Attributes:
        segment_losses: Sum of the valid targets' losses in nats, times their weights, of each segment, [T], detached.
        segment_tokens: Valid targets of each segment, int64 [T].
        memory_gradient_norms: L2 norm of the objective's gradient with respect to the memory before segments
            1 .. T-1 (the rollout's first memory is where truncation cuts), [T-1]. Scaled where `backward` scales.
        carry: The lanes' state for the next rollout.
    """

    segment_losses: torch.Tensor
    segment_tokens: torch.Tensor
    memory_gradient_norms: torch.Tensor
    carry: Carry


def autograd_backward(objective: torch.Tensor, remaining: int) -> None:
    """The default `backward`: plain autograd."""
    objective.backward()  # type: ignore[no-untyped-call]


def memory_replay_backward(
    cell: Cell,
    rollout: Rollout,
    carry: Carry,
    backward: Backward = autograd_backward,
    *,
    denominator: float,
    seed: int | None = None,
    buffer: ReplayBuffer | None = None,
) -> RolloutResult:
    """Accumulates the gradients of sum(losses) / denominator over a rollout by memory replay (Algorithm 1).

    Pass 1 advances the memory over the first T-1 segments without a graph. Pass 2 recomputes the segments from the
    last to the first, each with a graph of its own, and passes the memory's gradient back.

    Args:
        cell: The model.
        rollout: T segments of B lanes.
        carry: The lanes' state before the rollout; no gradient flows into it.
        backward: Called once a segment with a scalar, e.g. a DeepSpeed engine's backward. The scalar's value is the
            segment's part of the objective; its graph also carries the memory's gradient.
        denominator: The rollout's count of valid targets (of targets with weights, the weights' sum) over all lanes of
            all ranks, divided by the factor by which gradients are averaged afterwards (the data-parallel ranks).
        seed: Seed of the rollout's random numbers; None draws one.
        buffer: Where memories are kept between the passes, and which of them; None keeps all on the device.

    Returns:
        Losses, counts, norms of the memory's gradient, and the carry.
    """
    buffer = ReplayBuffer() if buffer is None else buffer
    kept, last = KeptMemories(rollout.num_segments, buffer.interval), rollout.num_segments - 1
    losses, counts, norms = [], [], []
    with segment_seeds(seed, carry.memory.device) as seed_segment:

        def advanced(t: int, memory: torch.Tensor) -> torch.Tensor:
            seed_segment(t)
            return cell.advance(rollout.segment(t, carry), memory)

        memory = carry.memory
        with torch.no_grad():
            for t in range(last):
                if kept.keeps(t):
                    buffer.push(memory)
                memory = advanced(t, memory)
        buffer.fetch()
        gradient: torch.Tensor | None = None
        for t in range(last, -1, -1):
            if t < last:
                memory = _recalled(t, kept, buffer, advanced)
            memory = memory.detach().requires_grad_(t > 0)
            seed_segment(t)
            loss, count, next_memory = cell(rollout.segment(t, carry), memory)
            if gradient is None:
                # Zeros rather than nothing: the writer takes part in every segment's graph, so that all segments
                # look alike to ZeRO-3 and the writer has a gradient when T = 1.
                gradient, final_memory = torch.zeros_like(next_memory), next_memory.detach()
            backward(with_gradient(loss / denominator, next_memory, gradient), t)
            losses.append(loss.detach())
            counts.append(count)
            if t > 0:
                # A cell without memory slots leaves no gradient.
                gradient = torch.zeros_like(memory) if memory.grad is None else memory.grad
                norms.append(gradient.norm())
            del loss, next_memory
    return result_of(losses[::-1], counts[::-1], norms[::-1], rollout.carry(final_memory))


@torch.no_grad()
def _recalled(
    t: int, kept: KeptMemories, buffer: ReplayBuffer, advanced: Callable[[int, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The memory before segment t: the buffer's newest, or the end of a group that is computed again from it."""
    start = kept.missing_from(t)
    if start is None:
        return buffer.pop()
    memory = buffer.pop(ahead=False)
    for i in range(start, t):
        buffer.push(memory)
        memory = advanced(i, memory)
    buffer.fetch()
    return memory


def bptt_backward(
    cell: Cell,
    rollout: Rollout,
    carry: Carry,
    backward: Backward = autograd_backward,
    *,
    denominator: float,
    seed: int | None = None,
    buffer: ReplayBuffer | None = None,
) -> RolloutResult:
    """The reference of `memory_replay_backward`: one graph over the whole rollout, one backward.

    The arguments and the result are the same; `buffer` is not used, since the graph keeps the memories.
    """
    losses, counts, memories = [], [], []
    with segment_seeds(seed, carry.memory.device) as seed_segment:
        memory = carry.memory.detach()
        for t in range(rollout.num_segments):
            if t > 0:
                # A view: the gradient kept is then that of what follows, not of losses computed from the same tensor.
                memory = memory.view_as(memory) if memory.requires_grad else memory.requires_grad_()
                memory.retain_grad()
                memories.append(memory)
            seed_segment(t)
            loss, count, memory = cell(rollout.segment(t, carry), memory)
            losses.append(loss)
            counts.append(count)
        objective = torch.stack(losses).sum() / denominator
        backward(with_gradient(objective, memory, torch.zeros_like(memory)), 0)
    gradients = (torch.zeros_like(m) if m.grad is None else m.grad for m in memories)
    norms = [gradient.norm() for gradient in gradients]
    return result_of([loss.detach() for loss in losses], counts, norms, rollout.carry(memory))


def result_of(
    losses: list[torch.Tensor], counts: list[torch.Tensor], norms: list[torch.Tensor], carry: Carry
) -> RolloutResult:
    """The result of a rollout from figures of its segments, in their order."""
    stacked = torch.stack(norms) if norms else losses[0].new_zeros(0)
    return RolloutResult(torch.stack(losses), torch.stack(counts), stacked, carry)
