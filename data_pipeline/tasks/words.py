# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Counting over the whole document, as RULER's common and frequent words (Hsieh et al. 2024): of made-up words.

There is no fact to be found: what is asked is how often words come in all of the text. The answer is what counting the
document's words gives; documents in which two words would tie for a place are drawn again.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tasks.filler import Stream, last_blank
from data_pipeline.tasks.task import Question, Random, Story, Task, number, one

_CONSONANTS, _VOWELS = "bdfghklmnprstvwz", "aeiou"
_POSSIBLE = (len(_CONSONANTS) * len(_VOWELS)) ** 2
_WORD = re.compile(r"\b[a-z]{4}\b")
_LETTERS = 5  # of a word and the blank behind it


@dataclasses.dataclass(frozen=True)
class FrequentWords(Task):
    """The most frequent words of a text in which the word of rank r comes as often as r^-2."""

    name: ClassVar[str] = "frequent"
    summary: ClassVar[str] = "the most frequent words of a text of made-up words, the most frequent first"
    filler: ClassVar[str] = "words"
    placed: ClassVar[bool] = False

    words: int = number(3, 1, 32, "words that are asked for")
    vocabulary: int = number(100, 33, 1000, "different words of a document, from the most frequent on")

    @property
    def chance(self) -> float:
        """Words are made up: all rows of different ones are equally likely."""
        return 1 / math.perm(_POSSIBLE, self.words)

    def weights(self) -> NDArray[np.float64]:
        """How often each word of the vocabulary comes beside the others, [vocabulary]."""
        ranks: NDArray[np.float64] = np.arange(1.0, self.vocabulary + 1)
        return ranks**-2

    def story(self, random: Random, ordinal: int) -> Story:
        """One question, about all of the text."""
        return Story((), (Question(self._question(), None),))

    def _question(self) -> str:
        if self.words == 1:
            return "Which word is the most frequent?"
        return f"Which {self.words} words are the most frequent, the most frequent first?"

    def stream(self, random: Random) -> Stream:
        """Words of a vocabulary of its own, drawn by their weights."""
        vocabulary, weights = _made_up(random, self.vocabulary), self.weights()
        seed, shares = int(random.integers(1 << 62)), weights / weights.sum()

        def first(characters: int) -> str:
            count = characters // _LETTERS + 1
            drawn = np.random.default_rng(seed).choice(self.vocabulary, size=count, p=shares)
            text = " ".join(vocabulary[place] for place in drawn)[: max(0, characters)]
            return text if len(text) % _LETTERS == _LETTERS - 1 else text[: last_blank(text, len(text))]

        return first

    def solve(self, text: str, question: str) -> str | None:
        """Counts the words before the question; None where the last place is shared."""
        found = Counter(_WORD.findall(text[: text.rfind(question)])).most_common(self.words + 1)
        counts = [count for _, count in found]
        if len(found) <= self.words or self._tied(counts):
            return None
        return f"{', '.join(self._ordered([word for word, _ in found[: self.words]]))}."

    def _tied(self, counts: list[int]) -> bool:
        return len(set(counts)) < len(counts)

    def _ordered(self, words: list[str]) -> list[str]:
        return words

    def guess(self, random: Random, question: str) -> str:
        """Any words."""
        return f"{', '.join(self._ordered(_made_up(random, self.words)))}."


@dataclasses.dataclass(frozen=True)
class CommonWords(FrequentWords):
    """The words that come ten times as often as the others."""

    name: ClassVar[str] = "common"
    summary: ClassVar[str] = "the words of a text of made-up words that come ten times as often as others"

    words: int = number(10, 1, 32, "words that are asked for")

    @property
    def chance(self) -> float:
        """All sets of words are equally likely."""
        return 1 / math.comb(_POSSIBLE, self.words)

    def weights(self) -> NDArray[np.float64]:
        """Ten for each word that is asked for, one for each of the others, [vocabulary]."""
        return np.where(np.arange(self.vocabulary) < self.words, 10.0, 1.0)

    def _question(self) -> str:
        if self.words == 1:
            return "Which word is the most common?"
        return f"Which {self.words} words are the most common, in alphabetical order?"

    def _tied(self, counts: list[int]) -> bool:
        return counts[-1] == counts[-2]

    def _ordered(self, words: list[str]) -> list[str]:
        return sorted(words)


def _made_up(random: Random, count: int) -> list[str]:
    """So many different words."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(one(random, letters) for letters in (_CONSONANTS, _VOWELS) * 2)] = None
    return list(words)
