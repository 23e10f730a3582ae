# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents of tasks as a model is asked them: as tokens, by length and depth."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.tasks.documents import Document, make_document
from data_pipeline.tasks.filler import Texts
from data_pipeline.tasks.task import Task
from data_pipeline.tokenizer import Tokenizer

USE = "evaluate"
"""Names the draws of evaluation, so that documents of `data synthesise` with the same seed are others."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A document as tokens.

    Attributes:
        tokens: Ids of all of it, any unsigned type, [n].
        answers: First token of each answer and the one behind its last, in the order of the document.
    """

    tokens: np.ndarray[Any, Any]
    answers: tuple[tuple[int, int], ...]


def prompt_of(document: Document, tokenizer: Tokenizer) -> Prompt:
    """Tokenizes a document of a task: see `tokenized`."""
    return tokenized(document.text, [(answer.start, answer.end) for answer in document.answers], tokenizer)


def tokenized(text: str, answers: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> Prompt:
    """Tokenizes a text as a whole, as training has it.

    An answer's tokens are those that hold a byte of it: one that the question's end shares counts to the answer.

    Args:
        text: Not empty.
        answers: First character of each answer, which is not empty, and the one behind its last, in order.
        tokenizer: The model's.

    Raises:
        UserError: The tokenizer does not give an answer's text back, so that nobody knows which tokens are its own.
    """
    tokens = tokenizer.encode(text)
    ends = np.cumsum(tokenizer.token_byte_lengths[tokens], dtype=np.int64)
    ends -= ends[-1] - len(text.encode("utf-8"))  # a blank that some tokenizers put before a document, or take away
    found, characters, place = [], 0, 0
    for start, end in answers:
        place += len(text[characters:start].encode("utf-8"))
        wanted = text[start:end].encode("utf-8")
        first, last = np.searchsorted(ends, [place, place + len(wanted) - 1], side="right")
        if wanted.strip() not in b"".join(tokenizer.token_bytes(int(token)) for token in tokens[first : last + 1]):
            raise UserError(f"the model's tokenizer does not give {text[start:end]!r} back: ask with other words")
        found.append((int(first), int(last) + 1))
        characters, place = end, place + len(wanted)
    return Prompt(tokens, tuple(found))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which documents are asked.

    Attributes:
        lengths: Tokens of a document; 0: without filler.
        depths: Shares of the filler before the first fact.
        documents: Documents a cell, a cell being a length and a depth.
        seed: Names the documents.
        lanes: Documents read side by side.
    """

    lengths: Sequence[int]
    depths: Sequence[float]
    documents: int
    seed: int = 0
    lanes: int = 8

    def documents_of(self, task: Task) -> int:
        """Documents a cell: no more than a task has stories."""
        return self.documents if task.most is None else min(self.documents, task.most)

    def cells_of(self, task: Task) -> list[tuple[int, float]]:
        """Lengths and depths; one depth where nothing stands at one: without filler, or without facts."""
        return [
            (length, depth)
            for length in self.lengths
            for depth in (self.depths if task.placed and length else self.depths[:1])
        ]

    def tokens_of(self, task: Task) -> int:
        """Tokens of all documents of a task, about."""
        return self.documents_of(task) * sum(length for length, _ in self.cells_of(task))


@dataclasses.dataclass(frozen=True)
class Cell:
    """The documents of a task at one length and depth.

    Attributes:
        task: What they tell and ask.
        length: Tokens of each at most; 0: without filler.
        depth: Share of the filler before the first fact.
        prompts: The documents.
    """

    task: Task
    length: int
    depth: float
    prompts: tuple[Prompt, ...]


def make_cells(tasks: Iterable[Task], texts: Texts | None, grid: Grid, tokenizer: Tokenizer) -> tuple[Cell, ...]:
    """All documents of a grid, task by task.

    Args:
        tasks: What is told and asked.
        texts: What stands between the facts.
        grid: Lengths, depths, documents.
        tokenizer: The model's.

    Raises:
        UserError: A document does not fit into a length, or the tokenizer has no token for something in it.
    """

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    cells = []
    for task in tasks:
        for length, depth in grid.cells_of(task):
            numbers = range(grid.documents_of(task))
            made = (make_document(task, texts, length, depth, grid.seed, each, USE, count) for each in numbers)
            cells.append(Cell(task, length, depth, tuple(prompt_of(each, tokenizer) for each in made)))
    return tuple(cells)
