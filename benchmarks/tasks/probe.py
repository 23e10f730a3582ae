# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Accuracy by distance, from documents of any length in constant memory.

A document whose question comes at distance d is a prefix of the one with the same facts and filler whose question
comes later, up to that question. So the filler is read once, and at each distance the question is asked on the side,
from a copy of what the reader carries: the same answers as from separate documents, which a test compares.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.peers.reader import Reader, State
from benchmarks.tasks.documents import Task


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of right answer tokens at one distance.

    Attributes:
        distance: Tokens between the head's last and the answer's first.
        right: Answer tokens that were the reader's most likely ones.
        asked: Answer tokens.
    """

    distance: int
    right: int
    asked: int

    @property
    def share(self) -> float:
        """right / asked."""
        return self.right / self.asked


def until_chance(points: Iterator[Accuracy], chance: float) -> list[Accuracy]:
    """The points up to the fourth in a row that is no better than guessing, by less than 0.05."""
    found: list[Accuracy] = []
    for point in points:
        found.append(point)
        if all(each.share < chance + 0.05 for each in found[-4:]) and len(found) >= 4:
            break
    return found


@torch.no_grad()
def accuracy_by_distance(
    reader: Reader,
    task: Task,
    distances: Sequence[int],
    segment_length: int,
    documents: int,
    seed: int,
    lead: int = 0,
) -> Iterator[Accuracy]:
    """Asks each document's first question at every distance, the nearest first; what is not asked for is not read.

    Args:
        reader: A trained reader, in evaluation mode.
        task: All its heads, questions and answers must be of one length.
        distances: In tokens; at least the question's length.
        segment_length: S.
        documents: Documents, read side by side.
        seed: Names the documents.
        lead: Tokens of filler before the head.
    """
    random = np.random.default_rng(seed)
    stories = [task.story(random) for _ in range(documents)]
    heads = np.array([story.head for story in stories], dtype=np.int64)
    questions = np.array([story.questions[0].tokens for story in stories], dtype=np.int64)
    answers = np.array([story.questions[0].answer for story in stories], dtype=np.int64)
    asked, answered = questions.shape[1], answers.shape[1]
    if min(distances) < asked:
        raise ValueError(f"distance {min(distances)} is shorter than the question's {asked} tokens")
    tail = asked + answered + 2 * segment_length
    filler = np.stack([task.filler(random, lead + max(distances) + tail) for _ in range(documents)])
    prefix = np.concatenate([filler[:, :lead], heads, filler[:, lead:]], axis=1)

    state: State = None
    at = 0  # a multiple of the segment length: what has been read
    for distance in sorted(distances):
        begin = lead + heads.shape[1] + distance - asked
        while at + segment_length <= begin:
            state = reader.skip(torch.from_numpy(prefix[:, at : at + segment_length]), state)
            at += segment_length
        first, end = begin + asked, begin + asked + answered
        aside = prefix[:, at : at + -(-(end - at) // segment_length) * segment_length].copy()
        aside[:, begin - at : first - at] = questions
        aside[:, first - at : end - at] = answers
        predicted, branch = [], state
        for segment in torch.from_numpy(aside).split(segment_length, dim=1):
            logits, branch = reader.read(segment, branch)
            predicted.append(logits.argmax(-1))
        said = torch.cat(predicted, dim=1)[:, first - at : end - at].cpu().numpy()
        yield Accuracy(distance, int((said == answers).sum()), answers.size)
