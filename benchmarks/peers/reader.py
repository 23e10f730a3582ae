# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Reader`: a language model that reads documents segment by segment, whatever it carries from one to the next.

Every reader predicts every token of a document once, from the tokens before it that its architecture can still see,
the first one from a start token. Shapes: B documents side by side, T segments of a rollout, S tokens a segment, V
vocabulary.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from memformer import Memformer, MemformerConfig
from memformer.replay import Carry, Rollout, Segment, memory_replay_backward

State = Any
"""What a reader carries from segment to segment; None before the first segment of a document."""


class Reader(Protocol):
    """One architecture.

    Attributes:
        name: For the tables.
        module: Its parameters.
    """

    name: str
    module: nn.Module

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """The logits of a segment's tokens [B, S, V], teacher-forced, and the state after it."""

    def skip(self, tokens_BS: torch.Tensor, state: State) -> State:
        """The state after a segment that need not be predicted."""

    def backward(self, tokens_BTS: torch.Tensor, state: State, weights_BTS: torch.Tensor) -> tuple[torch.Tensor, State]:
        """Accumulates the gradients of a rollout's weighted loss; over an optimizer step the weights sum to 1.

        Returns:
            The losses of all tokens in nats, [B, T, S], detached, which may be 0 in segments of which no token counts;
            the state after the rollout, detached.
        """


class MemoryReader:
    """A model of this project of any family, trained by memory replay.

    Args:
        module: A `models.protocol.MemoryModel`.
        name: For the tables.
        memory_reset: Take the memory away at every segment; the segment before stays in view.
        precision: Gives the context of each forward, e.g. an autocast; it is left before the backward, and with it
            what it has cast, which `advance` casts without a graph.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        memory_reset: bool = False,
        precision: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.name, self.module, self.memory_reset, self.precision = name, module, memory_reset, precision

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Predicts a segment and writes it into the memory."""
        rollout, carry = self._rollout(tokens_BS[:, None], state)
        with self.precision():
            logits, memory = self.module.logits(rollout.segment(0, carry), carry.memory)
        return logits, rollout.carry(memory)

    def skip(self, tokens_BS: torch.Tensor, state: State) -> State:
        """What the memory depends on alone (a Memformer's encoder and writer)."""
        rollout, carry = self._rollout(tokens_BS[:, None], state)
        with self.precision():
            return rollout.carry(self.module.advance(rollout.segment(0, carry), carry.memory))

    def backward(self, tokens_BTS: torch.Tensor, state: State, weights_BTS: torch.Tensor) -> tuple[torch.Tensor, State]:
        """Memory replay over the rollout."""
        cell = _WeightedCell(self.module, weights_BTS, self.precision)
        rollout, carry = self._rollout(tokens_BTS, state)
        result = memory_replay_backward(cell, rollout, carry, denominator=1.0)
        return torch.stack(cell.losses[::-1], dim=1), result.carry

    def _rollout(self, tokens_BTS: torch.Tensor, state: State) -> tuple[Rollout, Carry]:
        lanes, segments, length = tokens_BTS.shape
        resets = torch.zeros(lanes, segments, dtype=torch.bool)
        resets[:, 0] = state is None
        rollout = Rollout.of(tokens_BTS, torch.full((lanes, segments), length), resets, self.module.device)
        if state is not None and not self.memory_reset:
            return rollout, state
        initial = self.module.initial_memory(lanes).detach()
        if state is None:
            return rollout, Carry.empty(initial, length)
        return rollout, Carry(initial, state.tokens, state.length, state.ragged)


class MemformerReader(MemoryReader):
    """A Memformer.

    Args:
        config: With `vocab_size` and `start_token_id`.
        name: For the tables.
        memory_reset: As of `MemoryReader`.
    """

    def __init__(self, config: MemformerConfig, name: str = "Memformer", memory_reset: bool = False) -> None:
        super().__init__(Memformer(config), name, memory_reset)


class _WeightedCell:
    """The model as a replay's cell whose tokens count by weight; keeps their losses, the last segment's first.

    A segment of which no token counts is read and not decoded: most segments of a long document with one question.
    """

    def __init__(
        self,
        model: Any,
        weights_BTS: torch.Tensor,
        precision: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.model, self.precision = model, precision
        self.weights = list(weights_BTS.unbind(1))  # the replay takes the last segment first
        self.losses: list[torch.Tensor] = []

    def initial_memory(self, lanes: int) -> torch.Tensor:
        memory: torch.Tensor = self.model.initial_memory(lanes)
        return memory

    def advance(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        with self.precision():
            following: torch.Tensor = self.model.advance(segment, memory)
        return following

    def __call__(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = self.weights.pop()
        if not weights.any():
            following = self.advance(segment, memory)
            if following.requires_grad:  # not so at first without memory slots, where a graph is needed all the same
                self.losses.append(torch.zeros_like(weights))
                return weights.new_zeros(()), weights.sum(), following
        with self.precision():
            logits, memory = self.model.logits(segment, memory)
        losses = losses_of(logits, segment.target)
        self.losses.append(losses.detach())
        return (losses * weights).sum(), weights.sum(), memory


class TruncatedReader:
    """The backward of readers that autograd trains.

    Attributes:
        through_state: Back-propagate through the state over the whole rollout. Otherwise the gradient is cut at every
            segment, which is how models that cache activations are trained.
    """

    name: str
    module: nn.Module
    through_state = False

    def read(self, tokens_BS: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """See `Reader`."""
        raise NotImplementedError

    def skip(self, tokens_BS: torch.Tensor, state: State) -> State:
        """Reads and forgets the logits."""
        return self.read(tokens_BS, state)[1]

    def auxiliary_loss(self) -> torch.Tensor | None:
        """A further loss of the segment read last, in the units of a mean over its tokens."""
        return None

    def backward(self, tokens_BTS: torch.Tensor, state: State, weights_BTS: torch.Tensor) -> tuple[torch.Tensor, State]:
        """One backward a segment, or one for the rollout where the gradient goes through the state."""
        losses: list[torch.Tensor] = []
        pending: list[torch.Tensor] = []
        for tokens_BS, weights_BS in zip(tokens_BTS.unbind(1), weights_BTS.unbind(1), strict=True):
            logits, state = self.read(tokens_BS, state)
            segment = losses_of(logits, tokens_BS)
            losses.append(segment.detach())
            objective = (segment * weights_BS).sum()
            further = self.auxiliary_loss()
            if further is not None:
                objective = objective + further * weights_BS.sum()
            if self.through_state:
                pending.append(objective)
            else:
                objective.backward()
                state = detached(state)
        if pending:
            torch.stack(pending).sum().backward()
        return torch.stack(losses, dim=1), detached(state)


def detached(state: State) -> State:
    """The same state without its graph."""
    if isinstance(state, torch.Tensor):
        return state.detach()
    if isinstance(state, (list, tuple)):
        return type(state)(detached(value) for value in state)
    return state


def shifted(tokens_BS: torch.Tensor, previous: torch.Tensor | None, start_token_id: int) -> torch.Tensor:
    """A decoder's input: the token before each target, the start token before a document's first."""
    if previous is None:
        previous = torch.full_like(tokens_BS[:, 0], start_token_id)
    return torch.cat([previous[:, None], tokens_BS[:, :-1]], dim=1)


def losses_of(logits_BSV: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods in nats, [B, S]; in float32 at least."""
    if logits_BSV.dtype in (torch.bfloat16, torch.float16):
        logits_BSV = logits_BSV.float()
    flat = nn.functional.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS.flatten(), reduction="none")
    return flat.view_as(tokens_BS)


def carried(state: State) -> int:
    """Floating-point numbers of a document's state."""
    if isinstance(state, torch.Tensor):
        return state.numel() if state.is_floating_point() else 0
    if dataclasses.is_dataclass(state):
        return sum(carried(getattr(state, field.name)) for field in dataclasses.fields(state))
    if isinstance(state, (list, tuple)):
        return sum(map(carried, state))
    return 0


def parameters(reader: Reader) -> int:
    """Trainable numbers, each counted once."""
    return sum(parameter.numel() for parameter in reader.module.parameters())
