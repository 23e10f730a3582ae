# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Task`: facts that a document tells once, and questions about them further on, as text.

A task knows no tokenizer and no model. Its settings are the fields of a frozen dataclass, each with a range, so that
one line (`needle:digits=1:keys=4`) gives both the tests of large models and those of tiny ones.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from data_pipeline.errors import UserError

Random = np.random.Generator

NAMES = (
    *("Anna", "Carl", "Dora", "Emil", "Fern", "Hugo", "Iris", "Joan", "Karl", "Lena", "Mara", "Nils", "Olga", "Paul"),
    *("Rosa", "Sven", "Tara", "Ulla", "Vera", "Wim", "Yves", "Zoe", "Abel", "Bela", "Cleo", "Dina", "Egon", "Faye"),
    *("Gert", "Hans", "Ines", "Jana", "Kira", "Leif", "Mona", "Nora", "Otto", "Petra", "Remo", "Silke"),
)
"""People of the tasks; each is one that no other begins with."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, and the one right answer, which follows the question after a blank.

    None: the answer is what the task's solver finds in the whole document.
    """

    text: str
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Story:
    """What a document tells and asks.

    Attributes:
        facts: Sentences in the order in which they are told; what lies between them says nothing about them.
        questions: In the order in which they are asked, at the document's end.
    """

    facts: tuple[str, ...]
    questions: tuple[Question, ...]


def number(default: int, least: int, most: int, meaning: str) -> Any:
    """A setting that is a whole number from `least` to `most`."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most, "meaning": meaning})


def choice(default: str, choices: Sequence[str], meaning: str) -> Any:
    """A setting that is one of a few words."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices), "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Task(ABC):
    """A kind of document; a subclass is a frozen dataclass whose fields are its settings.

    Attributes:
        name: What `--tasks` calls it.
        summary: One line for people.
        filler: What stands between the facts: `text`, an excerpt of the user's text; `words`, the task's own `stream`;
            or sentences that are repeated.
        placed: Whether there are facts, which stand at a depth.
        solves: Whether `solve` finds every answer.
        most: How many different stories there are; None: any number.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    filler: ClassVar[str] = "text"
    placed: ClassVar[bool] = True
    solves: ClassVar[bool] = True
    most: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value, allowed = getattr(self, each.name), each.metadata
            if "choices" in allowed and value not in allowed["choices"]:
                raise UserError(f"{self.name}:{each.name} is {value!r}: choose {' or '.join(allowed['choices'])}")
            if "least" in allowed and not allowed["least"] <= value <= allowed["most"]:
                raise UserError(f"{self.name}:{each.name} is {value}: give {allowed['least']} to {allowed['most']:,}")

    @property
    def label(self) -> str:
        """The task as `--tasks` names it, with the settings that are not the default ones."""
        given = [
            f"{each.name}={getattr(self, each.name)}"
            for each in dataclasses.fields(self)
            if getattr(self, each.name) != each.default
        ]
        return ":".join([self.name, *given])

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """Share of right answers of one who knows the task but not the facts; None: nobody knows."""

    @abstractmethod
    def story(self, random: Random, ordinal: int) -> Story:
        """New facts and questions.

        Args:
            random: Decides them.
            ordinal: Number of the document, from 0, for tasks that have a list of stories.
        """

    def stream(self, random: Random) -> Callable[[int], str]:
        """The task's own filler, where that is `words`: see `filler.Stream`."""
        raise NotImplementedError

    @abstractmethod
    def solve(self, text: str, question: str) -> str | None:
        """The answer, found by reading: the check of every document, and the baseline that must be right.

        Args:
            text: All of the document that stands before the answer.
            question: Its end, the question.

        Returns:
            None where the answer cannot be read off by a rule.
        """

    @abstractmethod
    def guess(self, random: Random, question: str) -> str:
        """An answer of one who has seen the question alone: the baseline whose share of right ones is `chance`."""


def digits(random: Random, count: int) -> str:
    """So many random digits."""
    return "".join(str(digit) for digit in random.integers(10, size=count))


def some(random: Random, among: Sequence[str], count: int) -> list[str]:
    """So many different ones of these, in random order."""
    return [among[place] for place in random.permutation(len(among))[:count]]


def one(random: Random, among: Sequence[str]) -> str:
    """One of these."""
    return among[int(random.integers(len(among)))]
