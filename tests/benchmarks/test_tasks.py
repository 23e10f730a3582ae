# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The documents of benchmarks/tasks: answers right by construction, distances as said, reproducible."""

import itertools
import re

import numpy as np
import pytest
import torch

from benchmarks.peers.reader import MemformerReader
from benchmarks.tasks.documents import Task, lay_out, training_document, training_rollouts
from benchmarks.tasks.probe import Accuracy, accuracy_by_distance, until_chance
from benchmarks.tasks.symbols import Copy, KeyValueRecall
from benchmarks.tasks.text import NAMES, Counting, Needle, library
from memformer import MemformerConfig

TASKS: dict[str, Task] = {
    "copy": Copy(),
    "recall": KeyValueRecall(),
    "recall-split": KeyValueRecall(joined=False),
    "needle": Needle(2),
    "counting": Counting(),
}


def solve(task: Task, head: tuple[int, ...], question: tuple[int, ...]) -> tuple[int, ...]:
    """The answer, worked out from the facts in another way than the generator does."""
    if isinstance(task, Copy):
        return head[1:-1]
    if isinstance(task, KeyValueRecall):
        first_fact, key = task.vocab_size - task.keys * task.values, question[1]
        if task.joined:
            facts = {(fact - first_fact) // task.values: (fact - first_fact) % task.values for fact in head}
            return (task.keys + facts[key],)
        return (dict(zip(head[::2], head[1::2], strict=True))[key],)
    said, asked = bytes(head).decode("latin1"), bytes(question).decode()
    who = next(name for name in NAMES if name in asked)
    if isinstance(task, Needle):
        match = re.search(f"The code of {who} is ([0-9])", said)
        assert match
        return (ord(match[1]),)
    count = 0
    for verb in re.findall(rf" {who} (takes|drops|finds) a \w+\. ", said):
        count += {"takes": 1, "drops": -1, "finds": 0}[verb]
        assert 0 <= count <= 3
    return (ord(str(count)),)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_right_and_distances_as_said(name: str) -> None:
    task, random = TASKS[name], np.random.default_rng(0)
    for _ in range(20):
        story = task.story(random)
        gaps = [int(gap) for gap in random.integers(0, 50, size=len(story.questions))]
        lead = int(random.integers(20))
        document = lay_out(task, story, gaps, 600, random, lead)
        told = lead + len(story.head)
        assert tuple(document.tokens[lead:told]) == story.head
        assert len(document.distances) == len(story.questions)
        for distance, question in zip(document.distances, story.questions, strict=True):
            at = told + distance
            said = tuple(document.tokens[at : at + len(question.answer)])
            before = tuple(document.tokens[at - len(question.tokens) : at])
            assert before == question.tokens
            assert said == question.answer == solve(task, story.head, question.tokens)
            assert document.answers[at : at + len(question.answer)].all()
        assert document.answers.sum() == sum(len(question.answer) for question in story.questions)
        assert document.distances[0] == gaps[0] + len(story.questions[0].tokens)
        assert document.tokens.min() >= 0
        assert document.tokens.max() < task.vocab_size
        assert task.start_token_id not in document.tokens


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_names_the_documents(name: str) -> None:
    task = TASKS[name]
    one, two, other = (
        next(training_rollouts(task, documents=4, num_segments=4, segment_length=64, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.weights, two.weights)
    assert not torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("name", TASKS)
def test_guessing_gets_chance(name: str) -> None:
    task, random = TASKS[name], np.random.default_rng(0)
    answers = [token for _ in range(400) for token in task.story(random).questions[0].answer]
    most = np.bincount(answers).max() / len(answers)
    assert task.chance - 0.01 <= most <= task.chance + 0.07  # the most frequent of a sample is above its share


def test_training_documents_ask_within_reach_and_the_curriculum_widens_it() -> None:
    task, random = Copy(), np.random.default_rng(0)
    near = [training_document(task, 128, 16, random).distances[0] for _ in range(100)]
    far = [training_document(task, 128, 128, random).distances[0] for _ in range(100)]
    assert max(near) <= 17
    assert max(far) > 90
    assert min(far) < 30
    led = [training_document(task, 64, 16, random, max_lead=12).tokens.tolist() for _ in range(200)]
    begin = task.story(random).head[0]  # stands nowhere else
    assert {tokens.index(begin) for tokens in led} == set(range(13))
    rollouts = training_rollouts(task, 8, 8, 16, seed=0, curriculum=100)
    weights = next(rollouts).weights
    assert weights is not None
    assert weights.flatten(1).nonzero()[:, 1].max() <= 6 + 16 + 1 + 4


def test_training_documents_grow_by_the_schedule() -> None:
    task = Copy()
    rollouts = list(itertools.islice(training_rollouts(task, 32, {0: 2, 3: 4, 5: 16}, 16, seed=0, curriculum=2), 6))
    assert [rollout.tokens.shape for rollout in rollouts] == [(32, segments, 16) for segments in (2, 2, 2, 4, 4, 16)]
    for rollout in rollouts[2:]:  # behind the curriculum answers are anywhere in the document
        assert rollout.weights is not None
        assert rollout.weights.shape == rollout.tokens.shape
        assert rollout.weights.flatten(1).nonzero()[:, 1].max() > rollout.weights[0].numel() * 0.75
    one, same = (next(training_rollouts(task, 4, segments, 16, seed=3)) for segments in (2, {0: 2}))
    assert torch.equal(one.tokens, same.tokens)


def test_a_head_that_does_not_fit_is_refused() -> None:
    story = Copy().story(np.random.default_rng(0))
    with pytest.raises(ValueError, match="cannot hold a head"):
        lay_out(Copy(), story, [0], 5, np.random.default_rng(0))


def test_books_hold_no_fact() -> None:
    text = library().tobytes().decode("latin1")
    assert "The code of" not in text
    assert not re.search(rf" ({'|'.join(NAMES)}) (takes|drops|finds|holds) ", text)


@torch.no_grad()
def test_probing_aside_equals_reading_each_document_alone() -> None:
    task, length = Copy(symbols=2, length=3), 8
    torch.manual_seed(0)
    config = MemformerConfig(
        1, 1, d_model=16, num_heads=2, d_ff=16, num_memory_slots=3, vocab_size=task.vocab_size,
        start_token_id=task.start_token_id,
    )  # fmt: skip
    reader = MemformerReader(config)
    reader.module.eval()
    distances, lead = [1, 5, 6, 7, 8, 9, 23, 24, 40], 6
    found = list(accuracy_by_distance(reader, task, distances, length, documents=16, seed=3, lead=lead))
    assert [point.distance for point in found] == distances

    random = np.random.default_rng(3)
    stories = [task.story(random) for _ in range(16)]
    filler = [task.filler(random, lead + 40 + 4 + 2 * length) for _ in range(16)]
    for point in found:
        right = 0
        for story, text in zip(stories, filler, strict=True):
            question = story.questions[0]
            before, text = text[:lead], text[lead:]
            whole = [*before, *story.head, *text[: point.distance - 1], *question.tokens, *question.answer]
            at = len(whole) - len(question.answer)
            whole += [*text[point.distance - 1 :]][: -len(whole) % length]
            predicted, state = [], None
            for segment in torch.tensor([whole]).split(length, dim=1):
                logits, state = reader.read(segment, state)
                predicted += logits[0].argmax(-1).tolist()
            right += sum(predicted[at + i] == symbol for i, symbol in enumerate(question.answer))
        assert (point.right, point.asked) == (right, 48)


def test_a_curve_is_followed_until_it_stays_at_chance() -> None:
    shares = [100, 20, 90, 12, 14, 12, 13, 99, 99]
    points = (Accuracy(distance, right, 100) for distance, right in enumerate(shares))
    assert [point.right for point in until_chance(points, 0.125)] == shares[:7]
    assert len(until_chance(iter([Accuracy(1, 0, 8)] * 3), 0.125)) == 3
