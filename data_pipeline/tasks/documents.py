# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A story of a task written into filler as one document of a wanted length, with its answers marked.

    filler  fact  filler  fact  ...  filler  question answer  question answer  ...

The **depth** of a document is the share of its filler that stands before the first fact, 0 to 1; further facts stand at
random places behind it. Questions end the document. Length is in tokens of a tokenizer, all of it included: a document
is the longest of whole words that has no more. Everything follows from a seed and a number, so that a document is the
same however many others are made, and in whatever order.

Every document is read again by its task's solver, which sees the text alone: where filler happens to hold a sentence
of the task, so that the answer is another one or none, other filler is drawn.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.tasks.filler import Stream, Texts, last_blank, repeated
from data_pipeline.tasks.task import Story, Task

Count = Callable[[str], int]
"""Tokens of a text."""

_DRAWS = 20  # of other filler, before the text is said to hold the task's own sentences
_ROUNDS = 12  # of fitting a document into its length
_EXACT = 1000  # a document may be shorter than wanted by its tokens divided by this, beside a word that did not fit


@dataclasses.dataclass(frozen=True)
class Answer:
    """Where a document has a question and its answer, in characters; an answer begins with the blank before it."""

    question: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Document:
    """A document of a task.

    Attributes:
        text: All of it; it ends with the last answer.
        answers: In the order of the text.
        depth: Share of the filler that stands before the first fact.
        name: Task, length, depth and number.
    """

    text: str
    answers: tuple[Answer, ...]
    depth: float
    name: str

    def question(self, answer: Answer) -> str:
        """What is asked."""
        return self.text[answer.question : answer.start]

    def answer(self, answer: Answer) -> str:
        """What is right, without the blank before it."""
        return self.text[answer.start + 1 : answer.end]


def make_document(
    task: Task,
    texts: Texts | None,
    length: int,
    depth: float | None,
    seed: int,
    number: int,
    use: str,
    count: Count,
) -> Document:
    """One document of a task.

    Args:
        task: What it tells and asks.
        texts: What stands between the facts, of tasks whose filler is text; None will do without filler.
        length: Tokens at most; 0: no filler at all.
        depth: See above; None: drawn uniformly.
        seed: Names the documents.
        number: Of the document among those of the same task, length and depth.
        use: What the document is for: documents of different uses never share a random draw.
        count: Tokens of a text.

    Raises:
        UserError: It does not fit, or the text holds the task's own sentences.
    """
    place = "any" if depth is None else f"{depth:g}"
    name = f"{task.label}-{length}-{place}-{number}"
    random = np.random.default_rng([seed, zlib.crc32(f"{use} {task.label} {length} {place}".encode()), number])
    story = task.story(random, number)
    if depth is None:
        depth = float(random.random())
    shares = np.sort(random.random(len(story.facts)))
    shares[:1] = 0  # the first fact stands at the depth
    if length == 0 and task.placed:
        return _written(task, story, "", depth, shares.tolist(), name)
    if length == 0:
        raise UserError(f"{task.label}: without filler there is nothing to count: leave 0 out of --lengths")
    for _ in range(_DRAWS):
        if task.filler == "text":
            if texts is None:
                raise ValueError(f"{task.label} needs texts")
            stream = texts.stream(random)
        else:
            stream = task.stream(random) if task.filler == "words" else repeated(task.filler)
        document = _fitted(task, story, stream, length, depth, shares.tolist(), name, count)
        if solved(task, document) is not False:
            return document
    if not task.placed:
        raise UserError(
            f"{task.label}: {length:,} tokens are too few for words to differ in number: give longer --lengths"
        )
    raise UserError(
        f"{task.label}: the text between the facts holds sentences of the task itself: name another text with --text"
    )


def solved(task: Task, document: Document) -> bool | None:
    """Whether the task's solver finds every answer of a document; None: the task has no solver."""
    found = [
        (task.solve(document.text[: each.start], document.question(each)), document.answer(each))
        for each in document.answers
    ]
    if task.solves:
        return all(said == right for said, right in found)
    return None


def _fitted(
    task: Task,
    story: Story,
    stream: Stream,
    length: int,
    depth: float,
    shares: Sequence[float],
    name: str,
    count: Count,
) -> Document:
    """The story in as much filler as fits: characters are tried until tokens are as many as wanted."""
    best = _written(task, story, "", depth, shares, name)
    least = count(best.text)
    if least > length:
        raise UserError(
            f"{task.label}: a document needs {least:,} tokens, but --lengths has {length:,}: give more, or 0 for "
            "documents without filler"
        )
    below, per_token = 0, 1.0  # characters that are known to fit
    above: tuple[int, int] | None = None  # characters that are known not to, and their tokens
    for _ in range(_ROUNDS):
        if above is None:
            characters = below + max(1, int((length - least) * per_token))
        else:
            share = (length - least) / (above[1] - least)
            characters = min(above[0] - 1, below + max(1, int((above[0] - below) * share)))
        tried = _written(task, story, stream(characters), depth, shares, name)
        tokens = count(tried.text)
        if tokens > length:
            above = (characters, tokens)
        else:
            if tokens > least:
                per_token = (characters - below) / (tokens - least)
            best, least, below = tried, tokens, characters
        if length - least <= length // _EXACT or (above is not None and above[0] - below <= 1):
            break
    return best


def _written(task: Task, story: Story, filler: str, depth: float, shares: Sequence[float], name: str) -> Document:
    """The document with this filler."""
    begin = last_blank(filler, round(depth * len(filler))) if depth < 1 else len(filler)
    pieces, at = [], 0
    for fact, share in zip(story.facts, shares, strict=True):
        place = begin if share == 0 else last_blank(filler, begin + int(share * (len(filler) - begin)))
        place = max(at, place)
        pieces += [filler[at:place].strip(), fact]
        at = place
    pieces.append(filler[at:].strip())
    text = " ".join(piece for piece in pieces if piece)
    answers = []
    for question in story.questions:
        begins = len(text) + bool(text)
        text += " " * bool(text) + question.text
        answer = question.answer or task.solve(text, question.text) or ""
        answers.append(Answer(begins, len(text), len(text) + 1 + len(answer)))
        text += f" {answer}"
    return Document(text, tuple(answers), depth, name)
