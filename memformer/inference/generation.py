# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Text generation at constant memory for any length of prompt and continuation.

The state is the memory, the context's keys and values, and the keys and values of the segment being written: at most
2 S tokens. When the segment is full it becomes the context, and the memory takes in the one before it, exactly as in
training.

Shapes: B documents, S tokens a segment, K slots, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch

from memformer.models.memformer import Memformer
from memformer.models.memformer.layers import Rotary
from memformer.models.memformer.model import DecoderLayer
from memformer.replay import Segment

KeysValues = tuple[torch.Tensor, torch.Tensor]


class Generator:
    """Reads tokens one after another and gives the logits of the next.

    Args:
        model: In evaluation mode.
        batch_size: Documents B that are read side by side.
        segment_length: S; None: the length the model was trained with.

    Raises:
        ValueError: Neither names a segment length.
    """

    def __init__(self, model: Memformer, batch_size: int = 1, segment_length: int | None = None) -> None:
        length = segment_length or model.config.segment_length
        if length is None:
            raise ValueError("segment_length is not in the model's configuration: give it")
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
        self._tokens = torch.zeros_like(self._tokens)
        self._count = 0
        start = torch.full((self.batch_size, 1), model.start_token_id, device=self.device)
        self._logits = self._decode(start, 0)

    def _decode(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """Runs decoder inputs [B, n] from `position` of the segment on; logits [B, V] after the last of them."""
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
                rows = torch.arange(position, position + count, device=self.device)[:, None]
                mask = torch.arange(keys.shape[2], device=self.device) <= rows
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


def choose(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draws the next token of each row.

    Args:
        logits: [B, V].
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Draw among the k most likely only.
        top_p: Draw among the most likely tokens that together reach this probability only.
        generator: Source of randomness.

    Returns:
        int64 [B].
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        least = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    probabilities = scaled.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        surplus = ordered.cumsum(-1) - ordered >= top_p
        probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered.masked_fill(surplus, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def generate(
    model: Memformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yields the continuation of one prompt token by token.

    Args:
        model: An exported model.
        prompt: Token ids of any number; empty starts a document.
        max_new_tokens: Tokens to generate; any number, at constant memory.
        temperature: See `choose`.
        top_k: See `choose`.
        top_p: See `choose`.
        seed: Seed of the draws.
    """
    reader = Generator(model)
    source = torch.Generator(device=reader.device).manual_seed(seed)
    reader.read(torch.tensor([list(prompt)], dtype=torch.int64, device=reader.device))
    start = model.start_token_id
    for _ in range(max_new_tokens):
        # The start token stands before every segment, never inside a document.
        logits = reader.logits.index_fill(-1, torch.tensor([start], device=reader.device), float("-inf"))
        token = choose(logits, temperature, top_k, top_p, source)
        yield int(token)
        reader.read(token[:, None])
