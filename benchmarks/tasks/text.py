# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks inside the books that ship with the project, as bytes: a needle in real text, and counting facts.

Filler is an excerpt of a book from a random place. No book holds a sentence of the forms below.
"""

import functools
import gzip

import numpy as np

from benchmarks.tasks.documents import Question, Story
from data_pipeline.sources import BOOKS
from data_pipeline.tasks.task import NAMES as PEOPLE

NAMES = PEOPLE[:8]
THINGS = ("apple", "book", "coin", "key", "lamp", "ring")
BYTES, START = 256, 256


@functools.cache
def library() -> np.ndarray:
    """All books, one behind another, as bytes."""
    texts = [gzip.decompress(path.read_bytes()) for path in sorted(BOOKS.glob("*.txt.gz"))]
    return np.frombuffer(b"".join(texts), dtype=np.uint8)


def excerpt(random: np.random.Generator, tokens: int) -> np.ndarray:
    """Bytes from a random place of the books, int64; past the end it goes on at the beginning."""
    text = library()
    places = (int(random.integers(len(text))) + np.arange(tokens)) % len(text)
    return text[places].astype(np.int64)


def coded(text: str) -> tuple[int, ...]:
    """The bytes of a sentence."""
    return tuple(text.encode("ascii"))


class Needle:
    """Needle in real text: ` The code of Anna is 7. `, a book, ` What is the code of Anna? ` -> `7`.

    Args:
        needles: People whose codes are told; each is asked for once, in random order.
    """

    name = "needle"
    vocab_size, start_token_id = BYTES + 1, START
    chance = 0.1

    def __init__(self, needles: int = 1) -> None:
        self.needles = needles

    def story(self, random: np.random.Generator) -> Story:
        """Different people, any digits."""
        people = [NAMES[i] for i in random.permutation(len(NAMES))[: self.needles]]
        codes = [str(int(digit)) for digit in random.integers(10, size=self.needles)]
        told = "".join(f" The code of {who} is {code}. " for who, code in zip(people, codes, strict=True))
        return Story(
            coded(told),
            tuple(
                Question(coded(f" What is the code of {people[i]}? "), coded(codes[i]))
                for i in random.permutation(self.needles)
            ),
        )

    def filler(self, random: np.random.Generator, tokens: int) -> np.ndarray:
        """An excerpt."""
        return excerpt(random, tokens)


class Counting:
    """Counting facts: ` Anna takes a coin. ` and ` Anna drops a coin. ` between lines of a book, ` Anna holds ` -> `2`.

    The answer is uniform over 0 .. 3. Between the facts stand `spacing` bytes of a book; the head begins with as many
    as make all heads equally long.

    Args:
        facts: Facts of a document; the answer is taken minus dropped, never below 0 or above 3 on the way.
        spacing: Bytes of the book before each fact.
    """

    name = "counting"
    vocab_size, start_token_id = BYTES + 1, START
    chance = 0.25
    most = 3

    def __init__(self, facts: int = 4, spacing: int = 16) -> None:
        self.facts, self.spacing = facts, spacing
        longest = max(map(len, THINGS)) + len(" Anna takes a . ")
        self._head = facts * (spacing + longest)

    def story(self, random: np.random.Generator) -> Story:
        """A random walk that ends at a uniform answer."""
        answer = int(random.integers(self.most + 1))
        counts = self._walk(answer, random)
        who = NAMES[int(random.integers(len(NAMES)))]
        parts: list[int] = []
        for before, after in zip([0, *counts], counts, strict=False):
            parts += excerpt(random, self.spacing).tolist()
            thing = THINGS[int(random.integers(len(THINGS)))]
            if after != before:
                parts += coded(f" {who} {'takes' if after > before else 'drops'} a {thing}. ")
            else:
                parts += coded(f" {who} finds a {thing}. ")
        head = excerpt(random, self._head - len(parts)).tolist() + parts
        return Story(tuple(head), (Question(coded(f" {who} holds "), coded(str(answer))),))

    def _walk(self, answer: int, random: np.random.Generator) -> list[int]:
        """Counts after each fact, steps of -1, 0 or 1 within 0 .. most, drawn until one ends at the answer."""
        while True:
            counts, count = [], 0
            for _ in range(self.facts):
                count = min(self.most, max(0, count + int(random.integers(-1, 2))))
                counts.append(count)
            if count == answer:
                return counts

    def filler(self, random: np.random.Generator, tokens: int) -> np.ndarray:
        """An excerpt."""
        return excerpt(random, tokens)
