# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneReader`: continues documents token by token, at constant memory for any length.

The state is the memory, the segment before, and the keys and values of the present segment's inputs. At the segment's
end the memory's own tokens run on these keys and values, so that no input is computed twice; kinds that write from the
segment's own tokens have kept what left the layer they write behind.

    [memory] [BOS] [last w tokens of the segment before]   x_0  x_1  ..  x_{S-2}    | x_{S-1}: [M write tokens], next
     run when the first logits are asked for, or with x_0   one run for each read     segment

Whole segments of a prompt are read as in training, by the layers that the memory depends on alone.

Shapes: B documents, L inputs of one run, S tokens a segment, w overlap, M write tokens, D width, V ids of the data.
"""

import torch
import torch.nn.functional as F

from memformer.models.backbone.cache import SegmentCache
from memformer.models.backbone.memory import LayerOutput
from memformer.models.backbone.model import Backbone
from memformer.replay.segment import Segment


class BackboneReader:
    """Reads tokens one after another and gives the logits of the next.

    Args:
        model: In evaluation mode.
        batch_size: Documents B that are read side by side.
        segment_length: S; None: the length the model was trained with.

    Raises:
        ValueError: Neither names a segment length.
    """

    def __init__(self, model: Backbone, batch_size: int = 1, segment_length: int | None = None) -> None:
        config, length = model.config, model.config.reading_length(segment_length)
        self.model, self.segment_length, self.device = model, length, model.device
        prefix = max(1, config.overlap_of(length) + config.segment_bos)
        self.cache = SegmentCache(config.memory.front + prefix + length - 1 + config.memory.back)
        with torch.no_grad():
            self._memory = model.initial_memory(batch_size).clone()
        self._context = torch.zeros(batch_size, length, dtype=torch.int64, device=self.device)
        self._known = 0  # tokens of the context: none at a document's beginning, else all
        self._tokens, self._count = self._context.clone(), 0
        self._inputs = 0  # of this segment that were run
        self._last: torch.Tensor | None = None  # what left the last layer at the last of them, [B, D]
        self._kept: torch.Tensor | None = None  # what left the layer that is written behind, [B, S, D]

    @property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Logits of the next token, [B, V]; minus infinity for a start token that the backbone has no id for."""
        if self._last is None:
            self._read_on(self._tokens[:, :0])
        assert self._last is not None
        model, count = self.model, self.model.config.vocab_size or 0
        logits_BV = model.whole_logits(model.head(model.norm(self._last)))
        return F.pad(logits_BV, (0, max(0, count - logits_BV.shape[1])), value=float("-inf"))[:, :count]

    @torch.no_grad()
    def read(self, tokens: torch.Tensor) -> None:
        """Reads any number of tokens, int64 [B, n], segment by segment."""
        while tokens.shape[1]:
            room = self.segment_length - self._count
            part, tokens = tokens[:, :room], tokens[:, room:]
            self._tokens[:, self._count : self._count + part.shape[1]] = part
            if part.shape[1] == self.segment_length and not self._inputs:
                self._next(self.model.advance(self._segment(), self._memory))
                continue
            ends = part.shape[1] == room
            inputs = part[:, :-1] if ends else part  # a segment's last token is an input of the next one alone
            if inputs.shape[1]:
                self._read_on(inputs)
            self._count += part.shape[1]
            if ends:
                self._next(self._written())

    def _segment(self) -> Segment:
        """The present segment, complete."""
        lanes, begins = len(self._tokens), self._known == 0
        known = torch.full((lanes,), self._known, device=self.device)
        length, reset = torch.full_like(known, self.segment_length), torch.full_like(known, begins, dtype=torch.bool)
        return Segment(self._context, known, self._tokens, length, reset, begins, False)

    def _next(self, memory: torch.Tensor) -> None:
        """The segment is complete: it becomes the context of one that nothing has been read of."""
        self._memory, self._known = memory, self.segment_length
        self._context, self._tokens = self._tokens, self._context
        self._count = self._inputs = 0
        self._last = None
        self.cache.clear()

    def _read_on(self, tokens_Bn: torch.Tensor) -> None:
        """Runs the next inputs of the segment; before its first, what stands in front of them."""
        model, begins = self.model, not self._inputs
        words = [self._prefix(), tokens_Bn] if begins else [tokens_Bn]
        tokens = torch.cat(words, 1)
        x_BLD = model.embedding(tokens.masked_fill(tokens == model.start_token_id, model.bos))
        front = model.memory.front(self._memory) if begins else None
        if front is not None:
            x_BLD = torch.cat([front.to(x_BLD.dtype), x_BLD], 1)
        first = self._count + (not begins)  # the last of the prefix predicts the segment's first token
        x_BLD, _ = self._run(x_BLD, len(model.stack), slice(first, self._count + 1 + tokens_Bn.shape[1]))
        self._last = x_BLD[:, -1]

    def _prefix(self) -> torch.Tensor:
        """The start token and the last w tokens of the segment before, as `reading.read` has them, int64 [B, P]."""
        model, config = self.model, self.model.config
        overlap = min(config.overlap_of(self.segment_length), self._known)
        start = self._context.new_full((len(self._context), int(config.segment_bos or overlap == 0)), model.bos)
        return torch.cat([start, self._context[:, self.segment_length - overlap :]], 1)

    def _run(self, x_BLD: torch.Tensor, depth: int, gives: slice | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs inputs behind those that were run, by the first layers.

        Args:
            x_BLD: Their embeddings.
            depth: Layers.
            gives: Which of the segment's S outputs the last inputs give; None: these are the memory's own tokens.

        Returns:
            What left the last of the layers, [B, L, D], and the rows of the next memory that the memory's tokens give.
        """
        model, start = self.model, self._inputs
        self._inputs = stop = start + x_BLD.shape[1]
        at_L = torch.arange(start, stop, device=self.device)
        mask = None  # one input sees all before it; from the first on, transformers' own causal mask is meant
        if start and len(at_L) > 1:
            mask = (torch.arange(stop, device=self.device) <= at_L[:, None])[None, None]
        x_BLD, cos, sin = model.placed(x_BLD, at_L[None])
        written: list[torch.Tensor] = []
        for number, layer in enumerate(model.layers()[:depth]):
            x_BLD = layer(x_BLD, self._memory, mask, cos, sin, self.cache)
            if gives is None:
                rows = model.memory.after(number, LayerOutput(x_BLD, self._memory, slice(0, 0), None))
                written += [] if rows is None else [rows]
            elif number == model.memory.kept:
                if self._kept is None:
                    self._kept = x_BLD.new_empty(len(x_BLD), self.segment_length, x_BLD.shape[2])
                self._kept[:, gives] = x_BLD[:, gives.start - gives.stop :]
        return x_BLD, written

    def _written(self) -> torch.Tensor:
        """The memory behind the complete segment."""
        memory, behind = self.model.memory, self.model.memory.behind(self._memory)
        written: list[torch.Tensor] = []
        if memory.kept is not None:
            assert self._kept is not None
            everything = slice(0, self.segment_length)
            rows = memory.after(memory.kept, LayerOutput(self._kept, self._memory, everything, None))
            written += [] if rows is None else [rows]
        if behind is not None:
            written += self._run(behind.to(self.model.embedding.weight.dtype), memory.depth, None)[1]
        return torch.cat(written, 1).to(self._memory.dtype)
