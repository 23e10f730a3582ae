# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`DocumentReader`: reads one document segment by segment, as in training, for what looks at the memory meanwhile."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from data_pipeline import UserError
from memformer.inference.threads import worthwhile_threads
from memformer.models.protocol import MemoryModel
from memformer.replay import Segment

COLUMNS = 256  # of a series by write; longer documents are averaged over neighbouring writes


class DocumentReader:
    """Cuts a document into segments, whose writes `_write` looks at.

    A *write* is one update of the memory. Where a write reads the context, write 0 reads the start token and write
    n >= 1 reads segment n-1; where it reads the targets, write n reads segment n.

    Args:
        model: In evaluation mode.
        num_tokens: Length of the document, at least 1.
        reads_targets: See above.
        segment_length: S; None: the length the model was trained with.
        progress: Told after each write how many are done, of how many.

    Raises:
        UserError: Nothing names a segment length.
    """

    def __init__(
        self,
        model: MemoryModel,
        num_tokens: int,
        reads_targets: bool,
        segment_length: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        length = segment_length or model.config.segment_length
        if length is None:
            raise UserError("config.json names no segment_length: export the model again")
        self.model, self.length, self.num_tokens, self.progress = model, length, num_tokens, progress
        self.reads_targets = reads_targets
        self.num_writes = (not reads_targets) + math.ceil(num_tokens / length)
        self.num_columns = min(self.num_writes, COLUMNS)
        self.device = model.device
        with torch.no_grad():
            self.memory = model.initial_memory(1).clone()
        self.done = 0
        self._rest = self._before = np.zeros(0, dtype=np.int64)

    @torch.no_grad()
    def read(self, tokens: np.ndarray[Any, Any]) -> None:
        """Reads the next tokens of the document, any number of them."""
        self._rest = np.concatenate([self._rest, tokens.astype(np.int64)])
        with worthwhile_threads(self.model, self.length):
            if self.done == 0 and not self.reads_targets:
                self._next(np.array([self.model.config.start_token_id]))
            while len(self._rest) >= self.length:
                segment, self._rest = self._rest[: self.length], self._rest[self.length :]
                self._next(segment)

    @torch.no_grad()
    def end(self) -> None:
        """Reads what is left of the document, less than a segment."""
        if len(self._rest):
            with worthwhile_threads(self.model, self.length):
                self._next(self._rest)
            self._rest = self._rest[:0]

    def first_writes(self) -> list[int]:
        """The first write of each column of a series."""
        return [math.ceil(c * self.done / self.num_columns) for c in range(self.num_columns)]

    def _next(self, tokens: np.ndarray[Any, Any]) -> None:
        start = (self.done - (not self.reads_targets)) * self.length
        self._write(self._segment(tokens), tokens, -1 if start < 0 else start)
        self._before = tokens
        self.done += 1
        if self.progress:
            self.progress(self.done, self.num_writes)

    def _write(self, segment: Segment, tokens: np.ndarray[Any, Any], start: int) -> None:
        """Reads and writes one segment; `start` is the position of its first token, -1 of the start token."""
        raise NotImplementedError

    def _segment(self, tokens: np.ndarray[Any, Any]) -> Segment:
        # The first is no reset: its memory is the initial one already, or that moved by a perturbation.
        target, length = self._padded(tokens)
        context, known = self._padded(self._before) if self.reads_targets else (target, length)
        short, ragged = len(tokens) < self.length, len(self._before) < self.length and self.reads_targets
        return Segment(context, known, target, length, length < 0, ragged or short, short)

    def _padded(self, tokens: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        padded = np.zeros((1, self.length), dtype=np.int64)
        padded[0, : len(tokens)] = tokens
        return torch.from_numpy(padded).to(self.device), torch.full((1,), len(tokens), device=self.device)
