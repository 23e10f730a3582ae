# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks on symbols inside a text: copying, key-value recall, and RULER's variable tracking (Hsieh et al. 2024)."""

import dataclasses
import re
import string
from typing import ClassVar

from data_pipeline.errors import UserError
from data_pipeline.tasks.task import Question, Random, Story, Task, digits, number, one, some


@dataclasses.dataclass(frozen=True)
class Copy(Task):
    """Letters, to be said again."""

    name: ClassVar[str] = "copy"
    summary: ClassVar[str] = "letters, to be said again in their order"

    symbols: int = number(8, 2, 26, "size of the alphabet")
    length: int = number(4, 1, 256, "letters to copy")

    @property
    def chance(self) -> float:
        """All rows of letters are equally likely."""
        return float(self.symbols) ** -self.length

    def story(self, random: Random, ordinal: int) -> Story:
        """Random letters."""
        said = self.guess(random, "")
        return Story((f"Copy this: {said}",), (Question("The copy:", said),))

    def solve(self, text: str, question: str) -> str | None:
        """The letters of the text."""
        found = re.findall(r"Copy this: ((?:[a-z] )*[a-z]\.)", text)
        return found[0] if len(found) == 1 else None

    def guess(self, random: Random, question: str) -> str:
        """Any letters."""
        return " ".join(one(random, string.ascii_lowercase[: self.symbols]) for _ in range(self.length)) + "."


@dataclasses.dataclass(frozen=True)
class Recall(Task):
    """Pairs of a letter and a digit, told in one sentence; the digits of some letters are asked for."""

    name: ClassVar[str] = "recall"
    summary: ClassVar[str] = "pairs of a letter and a digit; the digits of some letters are asked for"

    pairs: int = number(4, 1, 26, "pairs that are told")
    keys: int = number(8, 1, 26, "letters that pairs are made of; at least pairs")
    values: int = number(10, 2, 10, "digits that pairs are made of, from 0")
    queries: int = number(1, 1, 26, "letters asked for, a question each; at most pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keys < self.pairs:
            raise UserError(f"recall:keys is {self.keys}, but pairs is {self.pairs}: give {self.pairs} or more")
        if self.queries > self.pairs:
            raise UserError(f"recall:queries is {self.queries}, but pairs is {self.pairs}: give {self.pairs} or fewer")

    @property
    def chance(self) -> float:
        """All digits are equally likely."""
        return 1 / self.values

    def story(self, random: Random, ordinal: int) -> Story:
        """Pairs of different letters and any digits."""
        keys = some(random, string.ascii_lowercase[: self.keys], self.pairs)
        values = {key: str(random.integers(self.values)) for key in keys}
        told = ", ".join(f"{key}={value}" for key, value in values.items())
        asked = some(random, keys, self.queries)
        return Story((f"Note: {told}.",), tuple(Question(f"What is {key}?", f"{values[key]}.") for key in asked))

    def solve(self, text: str, question: str) -> str | None:
        """The digit that the note has with the letter."""
        notes, asked = re.findall(r"Note: ((?:[a-z]=\d, )*[a-z]=\d)\.", text), re.search(r"What is ([a-z])\?", question)
        if len(notes) != 1 or asked is None:
            return None
        told = dict(pair.split("=") for pair in notes[0].split(", "))
        return f"{told[asked[1]]}." if asked[1] in told else None

    def guess(self, random: Random, question: str) -> str:
        """Any digit."""
        return f"{random.integers(self.values)}."


@dataclasses.dataclass(frozen=True)
class Variables(Task):
    """Variables that have the value of another one: which of them have this number?"""

    name: ClassVar[str] = "variables"
    summary: ClassVar[str] = "variables given the value of others; which of them have a number is asked"

    chains: int = number(1, 1, 16, "numbers, each with variables of its own")
    hops: int = number(4, 0, 32, "variables of a chain after its first, each given the value of the one before")
    letters: int = number(3, 1, 8, "letters of a variable's name")
    digits: int = number(5, 1, 16, "digits of a number")

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = self.chains * (self.hops + 1)
        if 2 * wanted > 26**self.letters:
            raise UserError(
                f"variables:letters is {self.letters}, too few for {wanted} names: give more letters, or fewer chains "
                "or hops"
            )
        if 2 * self.chains > 10**self.digits:
            raise UserError(
                f"variables:digits is {self.digits}, too few for {self.chains} numbers: give more digits, or fewer "
                "chains"
            )

    @property
    def chance(self) -> float:
        """Names are random letters; which ones come again is what is asked."""
        return float(26.0 ** -(self.letters * (self.hops + 1)))

    def story(self, random: Random, ordinal: int) -> Story:
        """Chains with different names and numbers, told in turn at random."""
        names: list[str] = []
        while len(names) < self.chains * (self.hops + 1):
            name = self._name(random)
            names += [] if name in names else [name]
        values: list[str] = []
        while len(values) < self.chains:
            value = digits(random, self.digits)
            values += [] if value in values else [value]
        chains = [names[place :: self.chains] for place in range(self.chains)]
        turns = random.permutation([place for place, chain in enumerate(chains) for _ in chain])
        facts, told = [], [0] * self.chains
        for place in turns:
            chain, at = chains[place], told[place]
            facts.append(f"Let {chain[at]} be {chain[at - 1] if at else values[place]}.")
            told[place] += 1
        question = f"Which names have the value {values[0]}, in the order told?"
        return Story(tuple(facts), (Question(question, f"{', '.join(chains[0])}."),))

    def _name(self, random: Random) -> str:
        return "".join(one(random, string.ascii_uppercase) for _ in range(self.letters))

    def solve(self, text: str, question: str) -> str | None:
        """The names that were given the number, directly or not."""
        asked = re.search(r"have the value (\d+),", question)
        values: dict[str, str] = {}
        for name, value in re.findall(r"\bLet ([A-Z]+) be (\w+)\.", text):
            values[name] = values.get(value, value)
        found = [name for name, value in values.items() if asked and value == asked[1]]
        return f"{', '.join(found)}." if found else None

    def guess(self, random: Random, question: str) -> str:
        """Any names."""
        return f"{', '.join(self._name(random) for _ in range(self.hops + 1))}."
