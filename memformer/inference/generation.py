# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Text generation at constant memory for any length of prompt and continuation.

How a model reads is its family's (`models.registry.Family.reader`); how a token is chosen is here. What a reader
remembers is a value (`models.segment_reader.ReadingState`): a document read once answers many prompts.

Shapes: B documents, V vocabulary.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data_pipeline import Tokenizer
from memformer.models.protocol import MemoryModel, Reader, Wavefront
from memformer.models.registry import family_of


def reader_of(
    model: MemoryModel, batch_size: int = 1, segment_length: int | None = None, wavefront: Wavefront | None = None
) -> Reader:
    """What reads documents with a model and gives the logits of the next token.

    Its `state` goes on in any reader of as many documents: `reader_of(model, 8).restore(state.rows([0] * 8))`.

    Args:
        model: In evaluation mode.
        batch_size: Documents B that are read side by side.
        segment_length: S; None: the length the model was trained with.
        wavefront: Of the model (`registry.wavefronts_of`): reads whole segments that are given several at once, equal
            to rounding, and faster where one segment of one layer keeps the device less than busy.

    Raises:
        ValueError: Neither names a segment length.
    """
    reader: Any = family_of(model.config).reader(model, batch_size, segment_length)
    if wavefront is not None:
        reader.wavefront = wavefront
    found: Reader = reader
    return found


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
    scaled = logits.float() / min(max(temperature, 1e-30), 1e30)  # beyond that float32 has no numbers
    if top_k is not None and top_k < scaled.shape[-1]:
        least = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    probabilities = scaled.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        surplus = ordered.cumsum(-1) - ordered >= top_p
        probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered.masked_fill(surplus, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def read_texts(reader: Reader, texts: Sequence[Sequence[int]]) -> None:
    """Reads on in B documents, each by a text of its own length.

    Args:
        reader: Of B documents.
        texts: Token ids, B texts of any lengths; where nothing was read, an empty one starts a document.
    """
    counts = [len(text) for text in texts]
    padded = torch.zeros(len(texts), max(counts), dtype=torch.int64)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text), dtype=torch.int64)
    reader.read(padded.to(reader.device), counts)


def draw(
    reader: Reader,
    start_token_id: int,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yields the continuation of B documents, one token of each at a time; each is read when the next is asked for.

    Document b draws as it would alone with seed + b, whoever is beside it.

    Args:
        reader: What has read the documents.
        start_token_id: The model's, which never follows.
        max_new_tokens: Tokens of each document; any number, at constant memory.
        temperature: See `choose`.
        top_k: See `choose`.
        top_p: See `choose`.
        seed: Seed of the draws.
    """
    sources = [torch.Generator(device=reader.device).manual_seed(seed + row) for row in range(reader.batch_size)]
    for _ in range(max_new_tokens):
        # The start token stands before every segment, never inside a document.
        logits = reader.logits.index_fill(-1, torch.tensor([start_token_id], device=reader.device), float("-inf"))
        rows = zip(logits[:, None], sources, strict=True)
        tokens_B = torch.cat([choose(row, temperature, top_k, top_p, source) for row, source in rows])
        yield tokens_B.tolist()
        reader.read(tokens_B[:, None])


def generate(
    model: MemoryModel,
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
    reader, start = reader_of(model), model.config.start_token_id
    read_texts(reader, [prompt])
    drawn = draw(reader, start, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    yield from (token for (token,) in drawn)


class Written:
    """The text of one continuation: a character may take several tokens, and is there when its last byte is.

    Args:
        tokenizer: The model's.
        until: Texts before whose first one it ends; what is added then is nothing.

    Attributes:
        text: What is there.
        tokens: Of how many tokens it is.
        ended: Whether one of `until` has come.
    """

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str] = ()) -> None:
        self._tokenizer, self._decoder = tokenizer, codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._until = until
        self.text, self.tokens, self.ended = "", 0, False

    def add(self, token: int) -> str:
        """What a token adds to it, with what belongs to the end that it brings."""
        if self.ended:
            return ""
        self.tokens += 1
        return self._more(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def end(self) -> str:
        """What is left of a character that was begun."""
        return "" if self.ended else self._more(self._decoder.decode(b"", final=True))

    def _more(self, piece: str) -> str:
        known = len(self.text)
        self.text += piece
        found = [self.text.find(stop, max(0, known + 1 - len(stop))) for stop in self._until]
        places = [place for place in found if place >= 0]
        if places:
            self.text, self.ended = self.text[: min(places)], True
        return piece
