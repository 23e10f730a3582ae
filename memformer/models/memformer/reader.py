# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerReader`: reads tokens one after another at constant memory, for generation.

A segment is read by the encoder and the writer alone. When logits are asked for, the context's keys and values are
computed for every decoder layer, once a segment, and the segment's own are kept beside them, with those of the overlap
in front of it: at most 2 S + w tokens.

Shapes: B documents, R of them that are decoded, n inputs at once, S tokens a segment, K slots, D width, V vocabulary.
"""

from collections.abc import Sequence

import torch

from memformer.models import overlap
from memformer.models.memformer.layers import Rotary
from memformer.models.memformer.model import DecoderLayer, Memformer
from memformer.models.segment_cache import FixedPlaces, Places, SegmentCache
from memformer.models.segment_reader import UNASKED, SegmentReader

KeysValues = tuple[torch.Tensor, torch.Tensor]


class MemformerReader(SegmentReader):
    """Reads tokens one after another and gives the logits of the next; arguments and errors of `SegmentReader`."""

    fixed = True

    def __init__(self, model: Memformer, batch_size: int = 1, segment_length: int | None = None) -> None:
        super().__init__(model, batch_size, segment_length)
        self._layers = [layer for layer in model.decoder if isinstance(layer, DecoderLayer)]
        self._rotary = Rotary.table(0, 2 * self.segment_length, model.config, self.device)
        self._contexts: list[KeysValues] = []
        self._cache = SegmentCache(batch_size, model.config.decoder_length(self.segment_length))
        self._next = self._memory  # where logits were asked for: the memory behind the segment

    def _written(self, rows: list[int]) -> torch.Tensor:
        """The context was encoded when the first logits were asked for."""
        return self._of(self._next, rows)

    def _encode(self, rows: list[int]) -> None:
        """Reads the context of rows, writes the memory, and makes the context's keys and values."""
        model = self.model
        x_RSD, mask_RS, memory = model.encode(self._segment(rows), self._of(self._memory, rows))
        self._next = self._put(self._next, rows, model.write(memory, x_RSD, mask_RS))
        positions = self._rotary.rows(0, self.segment_length)
        made = (layer.context_keys_values(x_RSD, positions) for layer in self._layers)
        if not self._contexts:  # the first time all rows begin
            self._contexts = list(made)
            return
        # Into what is there: one layer's are held twice at a time, and a graph finds them where they were.
        index = slice(None) if len(rows) == self.batch_size else torch.tensor(rows, device=self.device)
        for kept, new in zip(self._contexts, made, strict=True):
            kept[0][index], kept[1][index] = new

    def _decode(self, rows: list[int]) -> torch.Tensor:
        """Runs the inputs front, x_0, x_1, .. that were not run yet, of all rows at once wherever they are."""
        model, length = self.model, self.segment_length
        if begun := self._unasked(rows):
            self._encode(begun)
        # A row that begins a document has the start token alone in front of the segment, the others the overlap.
        front_RP, _ = overlap.before(self._segment(rows), model.config.overlap, model.start_token_id)
        prefix = front_RP.shape[1]
        fronts = [prefix if self._known[row] else 1 for row in rows]
        run = [(front, self._decoded[row], self._counts[row]) for front, row in zip(fronts, rows, strict=True)]
        starts = [0 if decoded == UNASKED else front + decoded for front, decoded, _ in run]
        lengths = [front + count - start for (front, _, count), start in zip(run, starts, strict=True)]
        places = self._cache.place(rows, starts, lengths, self.device)
        inputs_RN = torch.cat([front_RP, self._of(self._tokens, rows)[:, :-1]], 1)
        shift_R1 = torch.tensor([prefix - front for front in fronts], device=self.device)[:, None]
        at_Rn = (places.at + shift_R1).clamp(max=inputs_RN.shape[1] - 1)  # padding stands somewhere
        tokens_Rn = inputs_RN.gather(1, at_Rn)
        # The last token in front of the targets is at position S, as in training.
        return self._answer(rows, tokens_Rn, length + 1 - prefix + at_Rn, places, self._context_mask(rows))

    def _stand(self, rows: list[int]) -> list[list[int]]:
        """See `SegmentReader`: inputs in front of the segment, and the valid tokens of the context."""
        prefix = max(1, min(self.model.config.overlap, self.segment_length))
        return [[prefix if known else 1 for known in self._known], [max(1, known) for known in self._known]]

    def _step(self, tokens_B1: torch.Tensor, numbers_PB: torch.Tensor, memory_BKC: torch.Tensor) -> torch.Tensor:
        """See `SegmentReader`."""
        moves_B, decoded_B, fronts_B, known_B = numbers_PB
        places = self._cache.place_one(fronts_B + decoded_B, moves_B > 0)
        mask = torch.arange(self.segment_length, device=self.device) < known_B[:, None, None, None]
        at_B1 = self.segment_length + 1 + decoded_B[:, None]
        return self._answer(range(self.batch_size), tokens_B1, at_B1, places, mask)

    def _answer(
        self,
        rows: Sequence[int],
        tokens_Rn: torch.Tensor,
        at_Rn: torch.Tensor,
        places: Places | FixedPlaces,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Runs the layers that answer.

        Args:
            rows: Whose inputs they are.
            tokens_Rn: The inputs.
            at_Rn: Their positions.
            places: Where their keys and values stand.
            mask: What they see of the context, bool [R, 1, 1, S]; None: all.

        Returns:
            Logits of what follows the last of each row, [R, V].
        """
        model = self.model
        rotary = Rotary(*(each[at_Rn][:, None] for each in self._rotary))
        y_RnD = model.embedding(tokens_Rn)
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
