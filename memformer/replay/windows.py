# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay by windows of W segments, for cells that read several segments at once.

    pass 1   all windows but the last, without a graph; kept: the memory before each window
    pass 2   for each window, the last first: its segments at once, with a graph, and backward

It is the replay of a rollout whose segments are windows, so the gradients are those of back-propagation through time,
whatever W is. A cell whose layers have memories of their own runs a window along the diagonals of segments and layers,
and its graph back along them.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from memformer.replay.backward import Backward, RolloutResult, autograd_backward, result_of
from memformer.replay.buffer import ReplayBuffer
from memformer.replay.kept import DecoderGroups
from memformer.replay.objectives import with_gradient
from memformer.replay.rollout import Carry, Rollout
from memformer.replay.segment import Segment


class WindowCell(Protocol):
    """A cell of several segments that follow each other. [K, C] is a lane's memory."""

    def advance(self, segments: Sequence[Segment], memory: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, C] behind them, without a graph."""

    def scored(
        self, segments: Sequence[Segment], memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of each segment's losses, times their weights, [W]; its valid targets, int64 [W]; and the memory behind
        all of them, with a graph."""


def windowed_replay_backward(
    cell: WindowCell,
    rollout: Rollout,
    carry: Carry,
    backward: Backward = autograd_backward,
    *,
    denominator: float,
    window: int,
    buffer: ReplayBuffer | None = None,
) -> RolloutResult:
    """`memory_replay_backward` by windows: the same gradients up to rounding. No random numbers are drawn for it.

    Args:
        cell: The model.
        rollout: T segments of B lanes.
        carry: The lanes' state before the rollout; no gradient flows into it.
        backward: Called once a window with a scalar, the second argument being the number of calls still to come.
        denominator: As there.
        window: W, the segments whose graph is there at a time.
        buffer: Where the memories before the windows are kept; None: on the device.

    Returns:
        As there, but that the memory's gradients are those before windows 1, 2, ...

    Raises:
        ValueError: The window has no segment.
    """
    if window < 1:
        raise ValueError(f"window is {window}: give the segments whose graph is there at a time, 1 or more")
    buffer = ReplayBuffer() if buffer is None else buffer
    windows = DecoderGroups(rollout.num_segments, window).spans
    segments = [[rollout.segment(t, carry) for t in span] for span in windows]
    memory = carry.memory
    with torch.no_grad():
        for each in segments[:-1]:
            buffer.push(memory)
            memory = cell.advance(each, memory)
    buffer.fetch()
    losses, counts, norms = [], [], []
    gradient: torch.Tensor | None = None
    for number in range(len(windows) - 1, -1, -1):
        if gradient is not None:
            memory = buffer.pop()
        memory = memory.detach().requires_grad_(number > 0)
        losses_W, counts_W, next_memory = cell.scored(segments[number], memory)
        if gradient is None:
            # Zeros rather than nothing, so that the writer has a gradient when there is one segment too.
            gradient, final_memory = torch.zeros_like(next_memory), next_memory.detach()
        backward(with_gradient(losses_W.sum() / denominator, next_memory, gradient), number)
        losses.append(losses_W.detach())
        counts.append(counts_W)
        if number > 0:
            gradient = torch.zeros_like(memory) if memory.grad is None else memory.grad
            norms.append(gradient.norm())
        del losses_W, next_memory
    return result_of(
        list(torch.cat(losses[::-1]).unbind()),
        list(torch.cat(counts[::-1]).unbind()),
        norms[::-1],
        rollout.carry(final_memory),
    )
