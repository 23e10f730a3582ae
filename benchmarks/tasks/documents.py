# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents that ask, far on, for something said once.

A document is

    lead  head  filler ... filler  question answer  filler ... filler  question answer  ...

The head holds all facts. The lead, which may be empty, and the filler hold none. An answer's **distance** is the
number of tokens between the head's last token and the answer's first, the question's own tokens included. Only answers
are scored. Everything follows from a `numpy.random.Generator`, so a seed names a document.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from benchmarks.training import Rollout
from data_pipeline.segment_schedule import SegmentSchedule


@dataclass(frozen=True)
class Question:
    """A question, and the one right answer."""

    tokens: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Story:
    """The facts of a document and the questions about them, in the order in which they may be asked."""

    head: tuple[int, ...]
    questions: tuple[Question, ...]


class Task(Protocol):
    """A kind of document.

    Attributes:
        name: For the tables.
        vocab_size: Token ids are below it.
        start_token_id: In no document.
        chance: Expected share of right answer tokens of a reader that knows the task, but not the head.
    """

    name: str
    vocab_size: int
    start_token_id: int
    chance: float

    def story(self, random: np.random.Generator) -> Story:
        """New facts and questions."""

    def filler(self, random: np.random.Generator, tokens: int) -> np.ndarray:
        """`tokens` tokens that say nothing about any story, int64."""


@dataclass(frozen=True)
class Document:
    """Tokens, and where the answers are.

    Attributes:
        tokens: int64 [L].
        answers: True at the tokens of answers, bool [L].
        distances: Distance of each answer, in the order of the document.
    """

    tokens: np.ndarray
    answers: np.ndarray
    distances: tuple[int, ...]


def lay_out(
    task: Task, story: Story, gaps: list[int], length: int, random: np.random.Generator, lead: int = 0
) -> Document:
    """Writes a story as one document.

    Args:
        task: Gives the filler.
        story: What is told and asked.
        gaps: Tokens of filler before each question; a question that would end beyond the document is left out.
        length: Tokens of the document.
        random: Decides the filler.
        lead: Tokens of filler before the head.
    """
    tokens = task.filler(random, length)
    answers = np.zeros(length, dtype=bool)
    told = lead + len(story.head)
    if told > length:
        raise ValueError(f"a document of {length} tokens cannot hold a head that ends at {told}")
    tokens[lead:told] = story.head
    at, distances = told, []
    for gap, question in zip(gaps, story.questions, strict=False):
        asked = at + gap
        answered = asked + len(question.tokens)
        end = answered + len(question.answer)
        if end > length:
            break
        tokens[asked:answered] = question.tokens
        tokens[answered:end] = question.answer
        answers[answered:end] = True
        distances.append(answered - told)
        at = end
    return Document(tokens, answers, tuple(distances))


def training_document(
    task: Task, length: int, max_distance: int, random: np.random.Generator, max_lead: int = 0
) -> Document:
    """A document of `length` tokens whose first question comes at a distance of at most about `max_distance`.

    The lead is uniform up to `max_lead`. The first gap is uniform, so that most questions need more than the segment
    before; the others are log-uniform and short, so that most fit in.
    """
    story = task.story(random)
    lead = int(random.integers(max_lead + 1)) if max_lead else 0
    first = story.questions[0]
    left = length - lead - len(story.head) - len(first.tokens) - len(first.answer)
    room = max(1, min(max_distance, left))
    gaps = [int(random.integers(room + 1)), *(int(16 ** random.random()) - 1 for _ in story.questions[1:])]
    return lay_out(task, story, gaps, length, random, lead)


def training_rollouts(
    task: Task,
    documents: int,
    num_segments: int | Mapping[int, int],
    segment_length: int,
    seed: int,
    curriculum: int = 0,
    max_lead: int = 0,
) -> Iterator[Rollout]:
    """Endless training documents of T * S tokens, one rollout each; only answers count.

    Args:
        task: The kind of document.
        documents: B.
        num_segments: T; a mapping from rollouts done to T lets documents grow, as `data.num_segments` does.
        segment_length: S.
        seed: Names the documents.
        curriculum: Rollouts over which the largest distance grows from a segment to the whole document.
        max_lead: Largest lead.
    """
    random, schedule = np.random.default_rng(seed), SegmentSchedule.of(num_segments)
    for rollout in itertools.count(1):
        segments = schedule.at(rollout - 1)
        length = segments * segment_length
        reach = max(segment_length, length * min(rollout, curriculum + 1) // (curriculum + 1))
        made = [training_document(task, length, reach, random, max_lead) for _ in range(documents)]
        tokens = torch.from_numpy(np.stack([each.tokens for each in made]))
        answers = torch.from_numpy(np.stack([each.answers for each in made])).float()
        shape = (segments, segment_length)
        yield Rollout(tokens.unflatten(1, shape), answers.unflatten(1, shape))
