# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Needles in a haystack: something said once, asked for at the end.

`passkey` is the task of Mohtashami and Jaggi, "Landmark Attention" (2023); `needle` has the variants of RULER (Hsieh et
al. 2024): what is hidden is a number, a word or a uuid; several keys, several values of one key, several questions.
The sentences are our own.
"""

import dataclasses
import re
from typing import ClassVar

from data_pipeline.errors import UserError
from data_pipeline.tasks.task import NAMES, Question, Random, Story, Task, choice, digits, number, one, some

WORDS = (
    *("anchor", "basket", "candle", "dragon", "engine", "feather", "garlic", "hammer", "island", "jacket", "kettle"),
    *("lantern", "magnet", "needle", "orchid", "pepper", "quarry", "ribbon", "saddle", "temple", "umbrella", "velvet"),
    *("walnut", "yellow", "zipper", "acorn", "barrel", "copper", "daisy", "ember", "falcon", "glacier"),
)
"""What is hidden where it is a word."""
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_UUID = (8, 4, 4, 4, 12)  # hexadecimal digits of its groups


@dataclasses.dataclass(frozen=True)
class PassKey(Task):
    """A number told once in a haystack of five sentences that are repeated."""

    name: ClassVar[str] = "passkey"
    summary: ClassVar[str] = "a number told once among sentences that are repeated"
    filler: ClassVar[str] = GRASS

    digits: int = number(5, 1, 32, "digits of the pass key")

    @property
    def chance(self) -> float:
        """All numbers are equally likely."""
        return 0.1**self.digits

    def story(self, random: Random, ordinal: int) -> Story:
        """A pass key."""
        key = digits(random, self.digits)
        told = f"The pass key is {key}. Remember it. {key} is the pass key."
        return Story((told,), (Question("What is the pass key?", f"{key}."),))

    def solve(self, text: str, question: str) -> str | None:
        """What the text says that the pass key is."""
        found = re.findall(r"The pass key is (\d+)\. Remember it\.", text)
        return f"{found[0]}." if len(found) == 1 else None

    def guess(self, random: Random, question: str) -> str:
        """Any number."""
        return f"{digits(random, self.digits)}."


@dataclasses.dataclass(frozen=True)
class Needle(Task):
    """Codes of people in a text."""

    name: ClassVar[str] = "needle"
    summary: ClassVar[str] = "people's codes told in a text; some are asked for"

    kind: str = choice("number", ("number", "word", "uuid"), "what a code is")
    digits: int = number(7, 1, 32, "digits of a code that is a number")
    keys: int = number(1, 1, len(NAMES), "people whose codes are told")
    values: int = number(1, 1, 16, "codes of each")
    queries: int = number(1, 1, len(NAMES), "people whose codes are asked for, a question each; at most keys")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries > self.keys:
            raise UserError(f"needle:queries is {self.queries}, but keys is {self.keys}: give {self.keys} or fewer")

    @property
    def chance(self) -> float:
        """All codes are equally likely."""
        codes = {"number": 10.0**self.digits, "word": float(len(WORDS)), "uuid": 16.0 ** sum(_UUID)}[self.kind]
        return float(codes**-self.values)

    def story(self, random: Random, ordinal: int) -> Story:
        """Codes of different people, told in random order."""
        people = some(random, NAMES, self.keys)
        codes = {who: [self._code(random) for _ in range(self.values)] for who in people}
        told = [(who, code) for who in people for code in codes[who]]
        order = random.permutation(len(told))
        facts = [told[place] for place in order]
        article = "The" if self.values == 1 else "A"
        sentences = tuple(f"{article} code of {who} is {code}." for who, code in facts)
        questions = []
        for who in some(random, people, self.queries):
            answer = ", ".join(code for whose, code in facts if whose == who)
            questions.append(Question(self._question(who), f"{answer}."))
        return Story(sentences, tuple(questions))

    def _question(self, who: str) -> str:
        if self.values == 1:
            return f"What is the code of {who}?"
        return f"What are the codes of {who}, in the order told?"

    def _code(self, random: Random) -> str:
        if self.kind == "number":
            return digits(random, self.digits)
        if self.kind == "word":
            return one(random, WORDS)
        groups = ("".join(f"{int(digit):x}" for digit in random.integers(16, size=count)) for count in _UUID)
        return "-".join(groups)

    def solve(self, text: str, question: str) -> str | None:
        """The codes that the text tells of who is asked for."""
        asked = re.search(r"codes? of (\w+)(?:, in the order told)?\?", question)
        if asked is None:
            return None
        found = re.findall(rf"\b(?:The|A) code of {asked[1]} is ([\w-]+)\.", text)
        return f"{', '.join(found)}." if found else None

    def guess(self, random: Random, question: str) -> str:
        """Any codes."""
        return f"{', '.join(self._code(random) for _ in range(self.values))}."
