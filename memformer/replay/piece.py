# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`RolloutPiece`: consecutive segments of a rollout, between a memory that comes in and a gradient that comes back.

Where several processes share a rollout each has a piece of it, and at a seam between two pieces B*K*D numbers go
forward in pass 1 and as many backward in pass 2. A piece is computed in three parts, which may lie apart in time:

    advance   needs the memory before the piece     gives the memory after it
    decode    needs `advance`                       decoder of the piece's segments, forward and backward
    replay    needs `decode` and the gradient with respect to the memory after the piece
                                                    gives that with respect to the memory before it

The memory and its gradient wait for nothing but encoders so, since decoders lie between them and not on their way. Of a
cell whose decoder is not apart `replay` does all of it, and there is nothing to decode.
"""

from typing import Any

import torch

from memformer.replay.backward import Backward, autograd_backward
from memformer.replay.buffer import ReplayBuffer
from memformer.replay.grouped import decoder_backward
from memformer.replay.kept import DecoderGroups
from memformer.replay.objectives import given, with_gradient
from memformer.replay.random_state import segment_seeds, stream_of
from memformer.replay.rollout import Carry, Rollout
from memformer.replay.segment import Segment


class RolloutPiece:
    """Some consecutive segments of a rollout, trained by memory replay.

    `advance`, `decode` (of a cell whose decoder is apart) and `replay` are called in this order; `decode` until all
    segments are decoded, at once or in parts, the others once. Random numbers are those that `memory_replay_backward`
    draws for the same segments with the same seed.

    Args:
        cell: The model, a `Cell`; with `group` a `DecoderApart`.
        rollout: All T segments of B lanes. Tokens are needed of the piece's segments and of the one before them.
        carry: The lanes' state before the rollout.
        span: Numbers of the piece's segments, at least one.
        backward: As `memory_replay_backward` takes it; its second argument is 1 but for the piece's last objective.
        denominator: As there.
        seed: Seed of the rollout's random numbers, the same for all of its pieces.
        buffer: Where memories are kept between the passes, all of them; None: on the device.
        group: G, the segments that the decoder takes at once; None: the cell's decoder is not apart.

    Attributes:
        buffer: See above.
    """

    def __init__(
        self,
        cell: Any,
        rollout: Rollout,
        carry: Carry,
        span: range,
        backward: Backward = autograd_backward,
        *,
        denominator: float,
        seed: int,
        buffer: ReplayBuffer | None = None,
        group: int | None = None,
    ) -> None:
        self._cell, self._rollout, self._carry, self._span = cell, rollout, carry, span
        self._backward, self._denominator, self._seed = backward, denominator, seed
        self.buffer = ReplayBuffer() if buffer is None else buffer
        self._group, self._undecoded = group, DecoderGroups(len(span), group or 1).spans
        self._contexts: list[torch.Tensor] = []
        self._streams: list[torch.Tensor] = []
        self._for_contexts: dict[int, torch.Tensor] = {}
        self._device = carry.memory.device
        self._losses: dict[int, torch.Tensor] = {}
        self._squared_norms: dict[int, torch.Tensor] = {}

    @property
    def segment_losses(self) -> torch.Tensor:
        """Sum of the valid targets' losses in nats, times their weights, [T]; 0 of other pieces' segments."""
        return _spread(self._losses, range(self._rollout.num_segments))

    @property
    def squared_norms(self) -> torch.Tensor:
        """Squared L2 norm of the objective's gradient with respect to the memory before segments 1 .. T-1, [T-1].

        0 where that segment is another piece's. Scaled where `backward` scales.
        """
        return _spread(self._squared_norms, range(1, self._rollout.num_segments))

    @torch.no_grad()
    def advance(self, memory: torch.Tensor) -> torch.Tensor:
        """Pass 1.

        Args:
            memory: Before the piece's first segment, [B, K, D].

        Returns:
            The memory after its last, [B, K, D].
        """
        with segment_seeds(self._seed, self._device) as seed_segment:
            for t in self._span:
                self.buffer.push(memory)
                seed_segment(t)
                if self._group is None:
                    memory = self._cell.advance(self._segment(t), memory)
                else:
                    context, memory = self._cell.encode_and_write(self._segment(t), memory)
                    self._contexts.append(context)
                    self._streams.append(stream_of(self._device))
        return memory

    def decode(self, batches: int | None = None) -> None:
        """Losses of the piece's segments, and the gradient of the encoder's outputs, which is kept.

        Args:
            batches: Calls of the decoder, each of at most G segments, from the last ones that are not decoded yet;
                None: as many as there are.
        """
        first, count = self._span[0], len(self._undecoded) if batches is None else batches
        with segment_seeds(self._seed, self._device):
            for span in [self._undecoded.pop() for _ in range(count)]:
                segments = Segment.joined([self._segment(first + own) for own in span])
                found, for_contexts = decoder_backward(
                    self._cell,
                    segments,
                    torch.cat([self._contexts.pop() for _ in span][::-1]),
                    self._streams[span.start : span.stop],
                    lambda losses: self._backward(losses.sum() / self._denominator, 1),
                )
                self._losses |= zip((first + own for own in span), found, strict=True)
                self._for_contexts |= zip(span, for_contexts, strict=True)

    def replay(self, gradient: torch.Tensor | None) -> torch.Tensor:
        """Pass 2.

        Args:
            gradient: With respect to the memory after the piece, [B, K, D]; None: nothing follows it.

        Returns:
            That with respect to the memory before it, [B, K, D]; where truncation cuts, before the rollout, zeros.
        """
        self.buffer.fetch()
        with segment_seeds(self._seed, self._device) as seed_segment:
            for t in reversed(self._span):
                memory = self.buffer.pop().detach().requires_grad_(t > 0)
                seed_segment(t)
                if self._group is None:
                    loss, _, after = self._cell(self._segment(t), memory)
                    # Zeros rather than nothing, so that the writer has a gradient when T = 1 too.
                    gradient = torch.zeros_like(after) if gradient is None else gradient
                    objective = with_gradient(loss / self._denominator, after, gradient)
                    self._losses[t] = loss.detach()
                else:
                    context, after = self._cell.encode_and_write(self._segment(t), memory)
                    gradient = torch.zeros_like(after) if gradient is None else gradient
                    objective = given([context, after], [self._for_contexts.pop(t - self._span[0]), gradient])
                self._backward(objective, int(t > self._span[0]))
                # A cell may leave no gradient, as where every lane starts a document.
                gradient = torch.zeros_like(memory) if memory.grad is None else memory.grad
                if t > 0:
                    self._squared_norms[t] = gradient.square().sum()
        assert gradient is not None
        return gradient

    def _segment(self, t: int) -> Segment:
        return self._rollout.segment(t, self._carry)


def _spread(figures: dict[int, torch.Tensor], segments: range) -> torch.Tensor:
    """Figures of some segments among those of all, the others 0."""
    some = next(iter(figures.values()), torch.zeros(()))
    return torch.stack([figures.get(t, torch.zeros_like(some)) for t in segments]) if segments else some.new_zeros(0)
