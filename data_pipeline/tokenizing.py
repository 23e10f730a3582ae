# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents → tokens: cut into pieces that are tokenized by themselves, by a pool of threads, and taken back in order.

Everything here is linear in the text: a document without a place to cut it, which some tokenizers need whole, is not
searched from its start for every part that comes.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from data_pipeline.errors import UserError
from data_pipeline.loss_weights import WeightedRange
from data_pipeline.records import Corpus
from data_pipeline.splitting import numbered_parts, summed_parts
from data_pipeline.tokenizer import ByteTokenizer, TokenIds, Tokenizer

_IN_FLIGHT_CHARACTERS = 64 << 20  # text waiting for the tokenizer or for the writer


class Piece(NamedTuple):
    """Text that is tokenized by itself: a whole document, or a part of one that ends where tokens end.

    `digest` of a document's last piece stands for all documents up to it (`summed_parts`). A document with loss weights
    is one piece.
    """

    ordinal: int
    name: str
    content: str | bytes
    last: bool
    digest: str
    weights: tuple[WeightedRange, ...] | None = None


def pieces(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Documents whole or in parts; the parts have the tokens of the whole.

    Raises:
        UserError: An image comes to a tokenizer of texts, or a source cannot be read.
    """
    waiting: list[str] = []  # the document's text that is not yet given away
    size = searched = 0
    for ordinal, part, digest in summed_parts(corpus):
        if isinstance(part.content, bytes):
            if not isinstance(tokenizer, ByteTokenizer):
                raise _image_error(part.name)
            yield Piece(ordinal, part.name, part.content, True, digest)
            continue
        waiting.append(part.content)
        size += len(part.content)
        if size < 2 * searched and not part.last:
            continue  # no place to cut was found in half of this
        text = waiting[0] if len(waiting) == 1 else "".join(waiting)
        cut = len(text) if part.last else tokenizer.safe_cut(text)
        waiting = [text[cut:]]
        size = len(waiting[0])
        searched = 0 if part.last else size
        if cut or part.last:
            yield Piece(ordinal, part.name, text[:cut], part.last, digest, part.weights)


def tokenized(
    pieces: Iterator[Piece], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Piece, int, TokenIds, int | None]]:
    """(piece, bytes of its text, tokens, the first character that they do not give back) in the order of the pieces,
    with bounded work under way.

    What comes before a record that stops the build is given back before the error is raised, so that it is not lost.
    """

    def encode(content: str | bytes) -> tuple[int, TokenIds, int | None]:
        if isinstance(content, bytes):
            return len(content), ByteTokenizer.encode_bytes(content), None
        ids = tokenizer.encode(content)
        return len(content.encode("utf-8")), ids, tokenizer.first_loss(content, ids)

    stopped: list[UserError] = []

    def readable() -> Iterator[Piece]:
        try:
            yield from pieces
        except UserError as error:
            stopped.append(error)

    waiting: deque[tuple[Piece, Future[tuple[int, TokenIds, int | None]]]] = deque()
    characters = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
        for piece in readable():
            waiting.append((piece, pool.submit(encode, piece.content)))
            characters += len(piece.content)
            while len(waiting) > 64 * workers or (characters > _IN_FLIGHT_CHARACTERS and len(waiting) > 1):
                first, future = waiting.popleft()
                characters -= len(first.content)
                yield first, *future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, *future.result()
    if stopped:
        raise stopped[0]


def texts(corpus: Corpus, sample: set[int]) -> Iterator[str]:
    """The texts of these documents, long ones in parts: what a tokenizer is trained on.

    Raises:
        UserError: One is an image, or a source cannot be read.
    """
    for ordinal, part in numbered_parts(corpus):
        if ordinal in sample:
            if isinstance(part.content, bytes):
                raise _image_error(part.name)
            yield part.content


def _image_error(name: str) -> UserError:
    return UserError(f"source {name} is an image, whose tokens are bytes; build images with --tokenizer bytes")
