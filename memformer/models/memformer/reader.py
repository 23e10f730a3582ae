# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerReader`: reads tokens one after another at constant memory, for generation.

A segment is read by the encoder and the writer alone. When logits are asked for, the context's keys and values are
computed for every decoder layer, once a segment, and the segment's own are kept beside them: at most 2 S tokens.

Shapes: B documents, R of them that are decoded, n inputs at once, S tokens a segment, K slots, D width, V vocabulary.
"""

import torch

from memformer.models.memformer.layers import Rotary
from memformer.models.memformer.model import DecoderLayer, Memformer
from memformer.models.segment_cache import SegmentCache
from memformer.models.segment_reader import SegmentReader

KeysValues = tuple[torch.Tensor, torch.Tensor]


class MemformerReader(SegmentReader):
    """Reads tokens one after another and gives the logits of the next; arguments and errors of `SegmentReader`."""

    def __init__(self, model: Memformer, batch_size: int = 1, segment_length: int | None = None) -> None:
        super().__init__(model, batch_size, segment_length)
        self._layers = [layer for layer in model.decoder if isinstance(layer, DecoderLayer)]
        self._rotary = Rotary.table(0, 2 * self.segment_length, model.config, self.device)
        self._contexts: list[KeysValues] = []
        self._cache = SegmentCache(batch_size, self.segment_length)
        self._next = self._memory  # where logits were asked for: the memory behind the segment

    def _written(self, rows: list[int]) -> torch.Tensor:
        """The context was encoded when the first logits were asked for."""
        return self._of(self._next, rows)

    def _encode(self, rows: list[int]) -> None:
        """Reads the context of rows, writes the memory, and makes the context's keys and values."""
        model = self.model
        if len(rows) == self.batch_size:
            self._contexts = []  # given up before the next are made, which would else be held beside them
        x_RSD, mask_RS, memory = model.encode(self._segment(rows), self._of(self._memory, rows))
        self._next = self._put(self._next, rows, model.write(memory, x_RSD, mask_RS))
        positions = self._rotary.rows(0, self.segment_length)
        made = (layer.context_keys_values(x_RSD, positions) for layer in self._layers)
        if len(rows) == self.batch_size:
            self._contexts = list(made)
            return
        index = torch.tensor(rows, device=self.device)
        for kept, new in zip(self._contexts, made, strict=True):
            kept[0][index], kept[1][index] = new

    def _decode(self, rows: list[int]) -> torch.Tensor:
        """Runs the inputs start, x_0, x_1, .. that were not run yet, of all rows at once wherever they are."""
        model, length = self.model, self.segment_length
        if begun := self._unasked(rows):
            self._encode(begun)
        starts = [self._decoded[row] + 1 for row in rows]  # UNASKED is -1: the start token has place 0
        counts = [self._counts[row] + 1 - start for row, start in zip(rows, starts, strict=True)]
        places = self._cache.place(rows, starts, counts, self.device)
        tokens_RS = self._of(self._tokens, rows)
        start_R1 = tokens_RS.new_full((len(rows), 1), model.start_token_id)
        inputs_RS = torch.cat([start_R1, tokens_RS[:, :-1]], 1)
        y_RnD = model.embedding(inputs_RS.gather(1, places.at.expand(len(rows), -1)))
        rotary = Rotary(*(each[length + places.at][:, None] for each in self._rotary))
        mask = self._context_mask(rows)
        for i, layer in enumerate(self._layers):
            h = layer.self_norm(y_RnD)
            own = self._cache.update(*layer.self_attention.keys_values(h, rotary), i)
            y_RnD = y_RnD + layer.self_attention.attend(h, own, rotary, places.mask, places.causal)
            keys, values = self._contexts[i]
            y_RnD = layer.attend_context_and_feed(y_RnD, (self._of(keys, rows), self._of(values, rows)), mask, rotary)
        logits_RV: torch.Tensor = model.head.score.whole(model.head(model.decoder_norm(places.last(y_RnD))))
        return logits_RV

    def _context_mask(self, rows: list[int]) -> torch.Tensor | None:
        """True at the context's valid tokens, [R, 1, 1, S]; the start token alone where a document begins."""
        known = [max(1, self._known[row]) for row in rows]
        if min(known) == self.segment_length:
            return None
        known_R111 = torch.tensor(known, device=self.device)[:, None, None, None]
        return torch.arange(self.segment_length, device=self.device) < known_R111

    def tensors(self) -> list[torch.Tensor]:
        """See `SegmentReader`."""
        contexts = [each for pair in self._contexts for each in pair]
        return [*super().tensors(), self._next, *contexts, *self._cache.tensors()]
