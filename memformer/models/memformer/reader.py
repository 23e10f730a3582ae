# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemformerReader`: reads tokens one after another at constant memory, for generation.

The state is the memory, the context's keys and values, and the keys and values of the segment being written, with the
overlap in front of it: at most 2 S + w tokens. When the segment is full it becomes the context, and the memory takes in
the one before it, exactly as in training.

Shapes: B documents, S tokens a segment, K slots, D width, V vocabulary.
"""

import torch

from memformer.models import overlap
from memformer.models.memformer.layers import Rotary
from memformer.models.memformer.model import DecoderLayer, Memformer
from memformer.replay import Segment

KeysValues = tuple[torch.Tensor, torch.Tensor]


class MemformerReader:
    """Reads tokens one after another and gives the logits of the next.

    Args:
        model: In evaluation mode.
        batch_size: Documents B that are read side by side.
        segment_length: S; None: the length the model was trained with.

    Raises:
        ValueError: Neither names a segment length.
    """

    def __init__(self, model: Memformer, batch_size: int = 1, segment_length: int | None = None) -> None:
        length = model.config.reading_length(segment_length)
        self.model, self.segment_length, self.batch_size = model, length, batch_size
        self._layers = [layer for layer in model.decoder if isinstance(layer, DecoderLayer)]
        self.device = model.encoder_norm.weight.device
        self._rotary = Rotary.table(0, 2 * length, model.config, self.device)
        with torch.no_grad():
            self._memory = model.initial_memory(batch_size).clone()
        self._tokens = torch.zeros(batch_size, length, dtype=torch.int64, device=self.device)
        self._begin(reset=True)

    @torch.no_grad()
    def _begin(self, reset: bool) -> None:
        """Makes the tokens read so far the context, advances the memory, and starts an empty segment."""
        model, length = self.model, self.segment_length
        # Given up before the next context's are made: otherwise the peak would hold three segments' keys and values.
        self._context: list[KeysValues] = []
        self._own: list[KeysValues | None] = [None] * len(self._layers)
        full = torch.full((self.batch_size,), length, device=self.device)
        flags = torch.full((self.batch_size,), reset, device=self.device)
        segment = Segment(self._tokens, full, self._tokens, full, flags, ragged=reset)
        x_BSD, mask_BS, memory = model.encode(segment, self._memory)
        self._memory = model.write(memory, x_BSD, mask_BS)
        self._mask = None if mask_BS is None else mask_BS[:, None, None, :]
        rows = self._rotary.rows(0, length)
        self._context = [layer.context_keys_values(x_BSD, rows) for layer in self._layers]
        before, _ = overlap.before(segment, 0 if reset else model.config.overlap, model.start_token_id)
        self._tokens = torch.zeros_like(self._tokens)
        self._count = 0
        self._logits = self._decode(before, 1 - before.shape[1])

    def _decode(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """Runs decoder inputs [B, n] from `position` of the segment on; logits [B, V] after the last of them.

        Position 0 is that of the last token in front of the segment; the overlap begins below it.
        """
        model, count = self.model, tokens.shape[1]
        rotary = self._rotary.rows(self.segment_length + position, self.segment_length + position + count)
        y_BSD = model.embedding(tokens)
        for i, layer in enumerate(self._layers):
            h = layer.self_norm(y_BSD)
            keys, values = layer.self_attention.keys_values(h, rotary)
            cached = self._own[i]
            if cached is not None:
                keys, values = torch.cat([cached[0], keys], 2), torch.cat([cached[1], values], 2)
            self._own[i] = (keys, values)
            mask = None
            if count > 1:
                own = torch.arange(keys.shape[2], device=self.device)
                mask = own <= own[-count:, None]
            y_BSD = y_BSD + layer.self_attention.attend(h, (keys, values), rotary, mask)
            y_BSD = layer.attend_context_and_feed(y_BSD, self._context[i], self._mask, rotary)
        return model.whole_logits(model.head(model.decoder_norm(y_BSD[:, -1])))

    @property
    def logits(self) -> torch.Tensor:
        """Logits of the next token, [B, V]."""
        return self._logits

    @torch.no_grad()
    def read(self, tokens: torch.Tensor) -> None:
        """Reads any number of tokens, int64 [B, n], segment by segment."""
        while tokens.shape[1]:
            room = self.segment_length - self._count
            part, tokens = tokens[:, :room], tokens[:, room:]
            self._tokens[:, self._count : self._count + part.shape[1]] = part
            if part.shape[1] == room:
                # A full segment needs no logits of its own: the next one starts with them.
                self._begin(reset=False)
            else:
                self._logits = self._decode(part, self._count + 1)
                self._count += part.shape[1]
