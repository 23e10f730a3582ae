# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Questions about facts inside a text, of the kinds 1 to 5 of bAbI (Weston et al. 2015) and BABILong (Kuratov et al.
2024): where somebody is, where a thing is, where it was before, what lies beside what, who gave what to whom.

The sentences are our own; people, places and things are few, so that a small model learns them.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import ClassVar

from data_pipeline.tasks.task import NAMES, Question, Random, Story, Task, number, one, some

PEOPLE = NAMES[:4]
PLACES = ("kitchen", "garden", "office", "bedroom", "hallway", "cellar")
THINGS = ("coin", "lamp", "book", "ring")
_MOVED = re.compile(rf"\b({'|'.join(PEOPLE)}) (went to|took|dropped) the ({'|'.join((*PLACES, *THINGS))})\.")
_BESIDE = re.compile(rf"The ({'|'.join(PLACES)}) is (north|south|east|west) of the ({'|'.join(PLACES)})\.")
_GAVE = re.compile(rf"\b({'|'.join(PEOPLE)}) gave the ({'|'.join(THINGS)}) to ({'|'.join(PEOPLE)})\.")
_ASKED = (r"Who gave the (\w+) to (\w+)\?", r"What did (\w+) give to (\w+)\?", r"To whom did (\w+) give the (\w+)\?")
_STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}


class House:
    """Who and what is where, as told sentence by sentence.

    Attributes:
        places: Person -> place; those that are known.
        visited: Thing -> the places where it has been, each as it came there.
    """

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self.visited: dict[str, list[str]] = {thing: [] for thing in THINGS}
        self._holders: dict[str, str] = {}

    def tell(self, who: str, verb: str, what: str) -> None:
        """Takes in `who went to | took | dropped the what`."""
        if verb == "went to":
            self.places[who] = what
        elif verb == "took":
            self._holders[what] = who
        else:
            self._holders.pop(what, None)
        for thing, holder in self._holders.items():
            place, visited = self.places.get(holder), self.visited[thing]
            if place is not None and visited[-1:] != [place]:
                visited.append(place)

    def possible(self) -> list[tuple[str, str, str]]:
        """What may be told next: nobody goes where he is, and things are taken where they are."""
        found = [(who, "went to", place) for who in PEOPLE for place in PLACES if self.places.get(who) != place]
        for thing in THINGS:
            holder, at = self._holders.get(thing), self.visited[thing][-1:]
            if holder is not None:
                found.append((holder, "dropped", thing))
            else:
                found += [(who, "took", thing) for who, place in self.places.items() if not at or at == [place]]
        return found


def told(text: str) -> House:
    """The house that a text tells of."""
    house = House()
    for who, verb, what in _MOVED.findall(text):
        house.tell(who, verb, what)
    return house


def moves(random: Random, count: int, verbs: tuple[str, ...]) -> tuple[str, ...]:
    """Sentences of what may happen in a house; each verb that is possible is equally likely."""
    house, sentences = House(), []
    for _ in range(count):
        possible = [each for each in house.possible() if each[1] in verbs]
        verb = one(random, sorted({each[1] for each in possible}))
        who, _, what = fact = [each for each in possible if each[1] == verb][
            int(random.integers(sum(each[1] == verb for each in possible)))
        ]
        house.tell(*fact)
        sentences.append(f"{who} {verb} the {what}.")
    return tuple(sentences)


@dataclasses.dataclass(frozen=True)
class WhereIs(Task):
    """Kind 1, a single supporting fact: where is Anna?"""

    name: ClassVar[str] = "qa1"
    summary: ClassVar[str] = "where somebody is who went from place to place (one supporting fact)"

    facts: int = number(4, 1, 1000, "sentences that are told")

    @property
    def chance(self) -> float:
        """All places are equally likely."""
        return 1 / len(PLACES)

    def story(self, random: Random, ordinal: int) -> Story:
        """People who walk about; somebody who was spoken of is asked for."""
        facts = moves(random, self.facts, ("went to",))
        house = told(" ".join(facts))
        who = one(random, sorted(house.places))
        return Story(facts, (Question(f"Where is {who}?", f"{house.places[who]}."),))

    def solve(self, text: str, question: str) -> str | None:
        """Where somebody went last."""
        asked = re.search(r"Where is (\w+)\?", question)
        found = re.findall(rf"\b{asked[1]} went to the (\w+)\.", text) if asked else []
        return f"{found[-1]}." if found else None

    def guess(self, random: Random, question: str) -> str:
        """Any place."""
        return f"{one(random, PLACES)}."


@dataclasses.dataclass(frozen=True)
class WhereIsThing(Task):
    """Kind 2, two supporting facts: where is the coin, that Anna took and carried about?"""

    name: ClassVar[str] = "qa2"
    summary: ClassVar[str] = "where a thing is that somebody took along (two supporting facts)"

    facts: int = number(6, 2, 1000, "sentences that are told")

    @property
    def chance(self) -> float:
        """All places are equally likely."""
        return 1 / len(PLACES)

    def story(self, random: Random, ordinal: int) -> Story:
        """People who walk about with things, drawn until a thing has been where the question needs it."""
        while True:
            facts = moves(random, self.facts, ("went to", "took", "dropped"))
            visited = {thing: places for thing, places in told(" ".join(facts)).visited.items() if self._asked(places)}
            if visited:
                thing = one(random, sorted(visited))
                return Story(facts, (self._question(thing, visited[thing]),))

    def _asked(self, places: list[str]) -> bool:
        return bool(places)

    def _question(self, thing: str, places: list[str]) -> Question:
        return Question(f"Where is the {thing}?", f"{places[-1]}.")

    def solve(self, text: str, question: str) -> str | None:
        """Follows the thing from sentence to sentence."""
        asked = re.search(r"Where (?:is|was) the (\w+)", question)
        places = told(text).visited.get(asked[1], []) if asked else []
        return self._question("", places).answer if self._asked(places) else None

    def guess(self, random: Random, question: str) -> str:
        """Any place but the one that is named."""
        return _unnamed(random, PLACES, question)


@dataclasses.dataclass(frozen=True)
class WhereWasThing(WhereIsThing):
    """Kind 3, three supporting facts: where was the coin before it was where it is?"""

    name: ClassVar[str] = "qa3"
    summary: ClassVar[str] = "where a thing was before (three supporting facts)"

    facts: int = number(10, 4, 1000, "sentences that are told")

    @property
    def chance(self) -> float:
        """All places but the one that is named."""
        return 1 / (len(PLACES) - 1)

    def _asked(self, places: list[str]) -> bool:
        return len(places) > 1 and places[-1] not in places[:-1]

    def _question(self, thing: str, places: list[str]) -> Question:
        return Question(f"Where was the {thing} before the {places[-1]}?", f"{places[-2]}.")


@dataclasses.dataclass(frozen=True)
class Beside(Task):
    """Kind 4, two arguments: what is north of the garden, or what is the kitchen north of?"""

    name: ClassVar[str] = "qa4"
    summary: ClassVar[str] = "which place lies north, south, east or west of another"

    facts: int = number(2, 1, len(PLACES) - 1, "sentences that are told")

    @property
    def chance(self) -> float:
        """All places but the one that is named."""
        return 1 / (len(PLACES) - 1)

    def story(self, random: Random, ordinal: int) -> Story:
        """Places in a row that turns, none where another is, told in random order and from either side."""
        rooms, at, taken = some(random, PLACES, self.facts + 1), (0, 0), {(0, 0)}
        facts = []
        for before, after in itertools.pairwise(rooms):
            free = [way for way, (x, y) in _STEPS.items() if (at[0] + x, at[1] + y) not in taken]
            way = one(random, free)
            at = (at[0] + _STEPS[way][0], at[1] + _STEPS[way][1])
            taken.add(at)
            facts.append((after, way, before) if random.integers(2) else (before, _opposite(way), after))
        facts = [facts[place] for place in random.permutation(len(facts))]
        this, way, other = facts[int(random.integers(len(facts)))]
        if random.integers(2):
            question = Question(f"What is {way} of the {other}?", f"{this}.")
        else:
            question = Question(f"What is the {this} {way} of?", f"{other}.")
        return Story(tuple(f"The {this} is {way} of the {other}." for this, way, other in facts), (question,))

    def solve(self, text: str, question: str) -> str | None:
        """Looks in the sentence that says it."""
        direct = re.search(r"What is (\w+) of the (\w+)\?", question)
        inverse = re.search(r"What is the (\w+) (\w+) of\?", question)
        for this, way, other in _BESIDE.findall(text):
            if direct and (way, other) == direct.groups():
                return f"{this}."
            if inverse and (this, way) == inverse.groups():
                return f"{other}."
        return None

    def guess(self, random: Random, question: str) -> str:
        """Any place but the one that is named."""
        return _unnamed(random, PLACES, question)


@dataclasses.dataclass(frozen=True)
class Gave(Task):
    """Kind 5, three arguments: who gave the coin to Carl, what did Anna give to him, who was given the coin by her?"""

    name: ClassVar[str] = "qa5"
    summary: ClassVar[str] = "who gave what to whom"

    facts: int = number(2, 1, 12, "sentences that are told")

    @property
    def chance(self) -> float:
        """The kinds of questions are equally likely, and so are all things, or people but the one that is named."""
        return (2 / (len(PEOPLE) - 1) + 1 / len(THINGS)) / 3

    def story(self, random: Random, ordinal: int) -> Story:
        """Presents, drawn until one of them is told from the others by what the question names."""
        hidden = int(random.integers(3))
        while True:
            facts = []
            for _ in range(self.facts):
                giver, taker = some(random, PEOPLE, 2)
                facts.append((giver, one(random, THINGS), taker))
            shown = [(*fact[:hidden], *fact[hidden + 1 :]) for fact in facts]
            alone = [fact for fact, known in zip(facts, shown, strict=True) if shown.count(known) == 1]
            if alone:
                break
        fact = alone[int(random.integers(len(alone)))]
        giver, thing, taker = fact
        text = (
            f"Who gave the {thing} to {taker}?",
            f"What did {giver} give to {taker}?",
            f"To whom did {giver} give the {thing}?",
        )[hidden]
        sentences = tuple(f"{giver} gave the {thing} to {taker}." for giver, thing, taker in facts)
        return Story(sentences, (Question(text, f"{fact[hidden]}."),))

    def solve(self, text: str, question: str) -> str | None:
        """Looks in the sentence that has all that the question names."""
        for hidden, pattern in enumerate(_ASKED):
            asked = re.search(pattern, question)
            for fact in _GAVE.findall(text) if asked else []:
                if asked and (*fact[:hidden], *fact[hidden + 1 :]) == asked.groups():
                    return f"{fact[hidden]}."
        return None

    def guess(self, random: Random, question: str) -> str:
        """Any person but the one that is named, or any thing."""
        if question.startswith("What"):
            return f"{one(random, THINGS)}."
        return _unnamed(random, PEOPLE, question)


def _unnamed(random: Random, among: Sequence[str], question: str) -> str:
    """One of these that the question does not name, as an answer."""
    return f"{one(random, [each for each in among if each not in question])}."


def _opposite(way: str) -> str:
    x, y = _STEPS[way]
    return next(other for other, step in _STEPS.items() if step == (-x, -y))
