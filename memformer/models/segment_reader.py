# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentReader`: reads documents token by token, whatever the family; `ReadingState`: all that it remembers of them.

Reading and answering have two prices. A segment that is complete before anyone asked for logits in it is read by the
model's `advance` alone: of a Memformer encoder and writer, no decoder. Only `logits` runs the layers that answer, in
the present segment, and a family keeps what it needs there to go on (`_decode`). So what is remembered between two
calls is the memory, the segment before and the tokens of the present one; everything else follows from them.

Documents are read side by side, each at its own place: their segments need not end together.

Shapes: B documents, R of them, n tokens, S tokens a segment, [K, C] a document's memory, V vocabulary.
"""

import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from memformer.models.graphed import Graphed, graphs_run, lengths_vary
from memformer.replay.segment import Segment

UNASKED = -1  # instead of the tokens that were decoded: nobody has asked for logits in the segment


@dataclasses.dataclass(frozen=True)
class ReadingState:
    """What remains of B documents that were read: a value, which readers copy and never change.

    Attributes:
        memory: The memory that the present segment is read with, [B, K, C].
        context: The segment before it, int64 [B, S].
        tokens: The present one, int64 [B, S]; 0 beyond its count.
        known: Valid tokens of the context: S, or 0 where a document begins; B numbers.
        counts: Tokens of the present segment, 0 to S-1; B numbers.
    """

    memory: torch.Tensor
    context: torch.Tensor
    tokens: torch.Tensor
    known: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def batch_size(self) -> int:
        """Documents B."""
        return len(self.counts)

    @property
    def segment_length(self) -> int:
        """S."""
        return self.tokens.shape[1]

    def rows(self, rows: Sequence[int]) -> "ReadingState":
        """Some of the documents, in any order and any number of times: `rows([0] * 8)` forks the first into eight."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.tokens.device)
        known, counts = (tuple(each[row] for row in rows) for each in (self.known, self.counts))
        return ReadingState(self.memory[index], self.context[index], self.tokens[index], known, counts)


class SegmentReader:
    """Reads B documents side by side and gives the logits of the next token; `protocol.Reader`.

    Args:
        model: In evaluation mode.
        batch_size: Documents B that are read side by side.
        segment_length: S; None: the length the model was trained with.

    Attributes:
        fixed: Whether a family has a `_step`, and its `advance` and that do not wait for the device.

    Raises:
        ValueError: Neither names a segment length.
    """

    fixed = False

    def __init__(self, model: Any, batch_size: int = 1, segment_length: int | None = None) -> None:
        self.model, self.batch_size, self.device = model, batch_size, model.device
        self.segment_length: int = model.config.reading_length(segment_length)
        with torch.no_grad():
            self._memory = model.initial_memory(batch_size).clone()
        self._context = torch.zeros(batch_size, self.segment_length, dtype=torch.int64, device=self.device)
        self._tokens = self._context.clone()
        self._known, self._counts = [0] * batch_size, [0] * batch_size
        self._decoded = [UNASKED] * batch_size  # tokens of the segment whose logits were asked for
        self._logits: torch.Tensor | None = None
        self.wavefront: Any = None
        """A `protocol.Wavefront` by which whole segments are read several at once; None: one after another."""
        # No references to itself, which would keep its tensors until the garbage is collected.
        itself = weakref.proxy(self)
        self._step_graph = Graphed(functools.partial(type(self)._step, itself))
        self._advance_graph = Graphed(functools.partial(SegmentReader._next_memory, itself))

    @torch.no_grad()
    def read(self, tokens: torch.Tensor, counts: Sequence[int] | None = None) -> None:
        """Reads on, segment by segment.

        Args:
            tokens: int64 [B, n], any n.
            counts: How many of each row are read, its first ones, 0 to n; None: all.

        Raises:
            ValueError: There are not as many rows or tokens.
        """
        lanes, width = tokens.shape
        left = [width] * lanes if counts is None else list(counts)
        if lanes != self.batch_size or len(left) != lanes or not all(0 <= each <= width for each in left):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}, counts are {left}: give {self.batch_size} rows and counts "
                "up to their length"
            )
        done = [0] * lanes
        while done != left:
            while self.wavefront is not None and done != (further := self._through(tokens, done, left)):
                done = further
            takes = [min(self.segment_length - c, n - d) for c, n, d in zip(self._counts, left, done, strict=True)]
            self._take(tokens, done, takes)
            done = [d + take for d, take in zip(done, takes, strict=True)]
            full = [row for row, count in enumerate(self._counts) if count == self.segment_length]
            if full:
                self._end(full)

    def _through(self, tokens: torch.Tensor, done: list[int], left: list[int]) -> list[int]:
        """Reads the segments of which rows between two of theirs have two or more at once; what is then done of each.

        As many of each of these rows as of the one with the fewest: the next call goes on with the others.
        """
        length = self.segment_length
        whole = [(n - d) // length * (c == 0) for c, n, d in zip(self._counts, left, done, strict=True)]
        rows = [row for row, count in enumerate(whole) if count > 1]
        if not rows:
            return done
        count = min(whole[row] for row in rows)
        parts = torch.stack([tokens[row, done[row] : done[row] + count * length] for row in rows]).view(
            -1, count, length
        )
        context, full = self._of(self._context, rows), torch.full((len(rows),), length, device=self.device)
        known = torch.tensor([self._known[row] for row in rows], device=self.device)
        segments, begins = [], not all(self._known[row] for row in rows)
        for target in parts.unbind(1):
            segments.append(Segment(context, known, target, full, known == 0, begins, False))
            context, known, begins = target, full, False
        memory = self.wavefront.advance(segments, self._of(self._memory, rows))
        self._memory = self._put(self._memory, rows, memory)
        self._context = self._put(self._context, rows, context.clone())
        for row in rows:
            self._known[row], self._decoded[row] = length, UNASKED
        return [d + count * length * (row in rows) for row, d in enumerate(done)]

    def _take(self, tokens: torch.Tensor, done: list[int], takes: list[int]) -> None:
        """Puts the next tokens of each row into its segment."""
        if len(set(zip(self._counts, done, takes, strict=True))) == 1:
            count, start, take = self._counts[0], done[0], takes[0]
            self._tokens[:, count : count + take] = tokens[:, start : start + take]
        else:
            for row, (count, start, take) in enumerate(zip(self._counts, done, takes, strict=True)):
                self._tokens[row, count : count + take] = tokens[row, start : start + take]
        self._counts = [count + take for count, take in zip(self._counts, takes, strict=True)]

    def _end(self, rows: list[int]) -> None:
        """The segments of these rows are complete: they become the contexts of ones that nothing was read of."""
        for group, decoded in ((self._unasked(rows), False), (self._asked(rows), True)):
            if group:
                memory = self._written(group) if decoded else self._advanced(group)
                self._memory = self._put(self._memory, group, memory)
        if len(rows) == self.batch_size:
            self._context, self._tokens = self._tokens, self._context
        else:
            self._context = self._put(self._context, rows, self._of(self._tokens, rows))
        for row in rows:
            self._known[row], self._counts[row], self._decoded[row] = self.segment_length, 0, UNASKED

    def _unasked(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self._decoded[row] == UNASKED]

    def _asked(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self._decoded[row] != UNASKED]

    def _advanced(self, rows: list[int]) -> torch.Tensor:
        """The next memory of rows [R, K, C] whose segment is complete, as in training."""
        if self._graphs() and len(rows) == self.batch_size and all(self._known):
            return self._advance_graph(self._context, self._tokens, self._memory)
        memory: torch.Tensor = self.model.advance(self._segment(rows), self._of(self._memory, rows))
        return memory

    def _next_memory(self, context_BS: torch.Tensor, tokens_BS: torch.Tensor, memory_BKC: torch.Tensor) -> torch.Tensor:
        """The next memory of all documents, in the middle of each."""
        full_B = torch.full((len(tokens_BS),), tokens_BS.shape[1], device=tokens_BS.device)
        segment = Segment(context_BS, full_B, tokens_BS, full_B, full_B == 0, False, False)
        memory: torch.Tensor = self.model.advance(segment, memory_BKC)
        return memory

    def _graphs(self) -> bool:
        """Whether segments and steps of shapes that stay are launched as graphs here and now."""
        return self.fixed and graphs_run(self.device)

    def _segment(self, rows: list[int]) -> Segment:
        """The present segment of some rows."""
        known, counts = [self._known[row] for row in rows], [self._counts[row] for row in rows]
        begins, short = not all(known), min(counts) < self.segment_length
        known_R, count_R = (torch.tensor(each, device=self.device) for each in (known, counts))
        context, tokens = self._of(self._context, rows), self._of(self._tokens, rows)
        return Segment(context, known_R, tokens, count_R, known_R == 0, begins, short)

    def _of(self, tensor: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The rows of a tensor [B, ...]."""
        return tensor if len(rows) == self.batch_size else tensor[torch.tensor(list(rows), device=self.device)]

    def _put(self, tensor: torch.Tensor, rows: Sequence[int], new: torch.Tensor) -> torch.Tensor:
        """A tensor [B, ...] with new rows; what was given out before is not changed."""
        if len(rows) == self.batch_size:
            return new
        return tensor.index_copy(0, torch.tensor(list(rows), device=self.device), new.to(tensor.dtype))

    @property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Logits of the next token, [B, V]."""
        pending = [row for row in range(self.batch_size) if self._decoded[row] < self._counts[row]]
        stepped = self._one_further(pending) if self._graphs() else []
        if stepped:
            self._answered(stepped, self._of(self._step_graph(*self._step_inputs(stepped)), stepped))
        if rest := [row for row in pending if row not in stepped]:
            with lengths_vary(self.device):
                self._answered(rest, self._decode(rest))
        assert self._logits is not None
        return self._logits

    def _answered(self, rows: list[int], logits_RV: torch.Tensor) -> None:
        """Everything that was read of rows is decoded."""
        self._logits = logits_RV if self._logits is None else self._put(self._logits, rows, logits_RV)
        for row in rows:
            self._decoded[row] = self._counts[row]

    def _decode(self, rows: list[int]) -> torch.Tensor:
        """Runs what was read of the present segment and not decoded yet; logits of what follows, [R, V]."""
        raise NotImplementedError

    def _one_further(self, rows: list[int]) -> list[int]:
        """The rows of which one token is to be decoded, in segments that logits were asked for in."""
        return [row for row in self._asked(rows) if self._counts[row] == self._decoded[row] + 1]

    def _step_inputs(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `_step` takes where one more token of rows was read."""
        everyone = range(self.batch_size)
        decoded = [self._decoded[row] if row in rows else 0 for row in everyone]
        numbers_PB = torch.tensor([[row in rows for row in everyone], decoded, *self._stand(rows)], device=self.device)
        return self._tokens.gather(1, numbers_PB[1][:, None]), numbers_PB, self._memory

    def _stand(self, rows: list[int]) -> list[list[int]]:
        """What a family has to know of where the next token of rows stands, lists of B numbers, of all documents.

        `_step` decodes it then, and what is read of the rows goes on behind it.
        """
        raise NotImplementedError

    def _step(self, tokens_B1: torch.Tensor, numbers_PB: torch.Tensor, memory_BKC: torch.Tensor) -> torch.Tensor:
        """As `_decode`, of one more token of some documents, at shapes that stay (`models.graphed`).

        Args:
            tokens_B1: The tokens, int64.
            numbers_PB: 1 for a document that has one, else 0; how many of its segment's tokens were decoded before; and
                what `_stand` says; int64.
            memory_BKC: What the segments are read with.

        Returns:
            Logits of what follows, [B, V]; of a document that has none, anything. Nothing is kept of those.
        """
        raise NotImplementedError

    def _written(self, rows: list[int]) -> torch.Tensor:
        """The next memory of rows [R, K, C] whose segment is complete and was decoded in part.

        A family that keeps what it decoded need not compute it again.
        """
        return self._advanced(rows)

    @property
    def state(self) -> ReadingState:
        """All that is remembered, as a value."""
        counts = torch.tensor(self._counts, device=self.device)[:, None]
        known = torch.tensor(self._known, device=self.device)[:, None]
        places = torch.arange(self.segment_length, device=self.device)
        return ReadingState(
            self._memory.clone(),
            self._context.where(places < known, 0),
            self._tokens.where(places < counts, 0),
            tuple(self._known),
            tuple(self._counts),
        )

    def restore(self, state: ReadingState) -> None:
        """Goes on from a state in the place of what was read.

        The logits that follow are those of the reader that gave it to the last bit where it had decoded nothing of the
        segment, else to rounding: the segment's tokens are then decoded at once that it decoded one after another.

        Raises:
            ValueError: It is of other sizes.
        """
        expected = (self.batch_size, *self.model.config.memory_shape, self.segment_length)
        found = (state.batch_size, *state.memory.shape[1:], state.segment_length)
        if found != expected:
            raise ValueError(f"a state of [B, K, C, S] = {list(found)} is not of this reader's, {list(expected)}")
        self._memory = state.memory.to(self.device, self._memory.dtype, copy=True)
        self._context = state.context.to(self.device, copy=True)
        self._tokens = state.tokens.to(self.device, copy=True)
        self._known, self._counts = list(state.known), list(state.counts)
        self._decoded, self._logits = [UNASKED] * self.batch_size, None

    def tensors(self) -> list[torch.Tensor]:
        """All that is held between two calls, for who counts bytes."""
        own = [self._memory, self._context, self._tokens, self._logits]
        return [each for each in own if each is not None]
