# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Answers of a model to the questions of documents: with the memory carried, and with it reset at every segment.

A document is read as in training, segment by segment: what lies before the segments with answers by `advance` alone, at
the price of what the memory depends on; those by all layers. Memory use does not depend on the length of documents.
What documents that are read side by side have in common at their beginnings is read once (the choices of one question).

Scoring is teacher-forced: the right answer's tokens are put in one after another. An answer counts as right if each of
them was the most likely one, start token aside, which is so exactly if greedy generation would have written it; so no
answer is ever generated further than to its first wrong token. The same pass gives the right answer's likelihood.

Shapes: B documents read side by side, S tokens a segment, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data_pipeline import Tokenizer, UserError
from data_pipeline.tasks import Document
from memformer.inference.perplexity import MODES
from memformer.inference.threads import worthwhile_threads
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel
from memformer.replay import Segment

MOST_LOGITS = 1 << 26  # of one call of the model; where a segment has more, fewer lanes are asked at once


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A document as tokens.

    Attributes:
        tokens: Ids of all of it, any unsigned type, [n].
        answers: First token of each answer and the one behind its last, in the order of the document.
    """

    tokens: np.ndarray[Any, Any]
    answers: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a model says to one question.

    Attributes:
        right: Whether the answer is right in all of its tokens.
        log_likelihood: Of the right answer's tokens, in nats, summed.
        tokens: Ids of what it says: the most likely tokens, up to the first that is wrong.
    """

    right: bool
    log_likelihood: float
    tokens: tuple[int, ...]


def prompt_of(document: Document, tokenizer: Tokenizer) -> Prompt:
    """Tokenizes a document of a task: see `tokenized`."""
    return tokenized(document.text, [(answer.start, answer.end) for answer in document.answers], tokenizer)


def tokenized(text: str, answers: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> Prompt:
    """Tokenizes a text as a whole, as training has it.

    An answer's tokens are those that hold a byte of it: one that the question's end shares counts to the answer.

    Args:
        text: Not empty.
        answers: First character of each answer, which is not empty, and the one behind its last, in order.
        tokenizer: The model's.

    Raises:
        UserError: The tokenizer does not give an answer's text back, so that nobody knows which tokens are its own.
    """
    tokens = tokenizer.encode(text)
    ends = np.cumsum(tokenizer.token_byte_lengths[tokens], dtype=np.int64)
    ends -= ends[-1] - len(text.encode("utf-8"))  # a blank that some tokenizers put before a document, or take away
    found, characters, place = [], 0, 0
    for start, end in answers:
        place += len(text[characters:start].encode("utf-8"))
        wanted = text[start:end].encode("utf-8")
        first, last = np.searchsorted(ends, [place, place + len(wanted) - 1], side="right")
        if wanted.strip() not in b"".join(tokenizer.token_bytes(int(token)) for token in tokens[first : last + 1]):
            raise UserError(f"the model's tokenizer does not give {text[start:end]!r} back: ask with other words")
        found.append((int(first), int(last) + 1))
        characters, place = end, place + len(wanted)
    return Prompt(tokens, tuple(found))


@torch.no_grad()
def answer_questions(
    model: MemoryModel,
    prompts: Sequence[Prompt],
    lanes: int = 8,
    segment_length: int | None = None,
    progress: Callable[[int], None] | None = None,
    modes: Sequence[str] = MODES,
) -> dict[str, list[tuple[Said, ...]]]:
    """What a model says to the questions of documents.

    Args:
        model: A model of any family; put into evaluation mode for the time.
        prompts: The documents, of any lengths.
        lanes: Documents B read side by side at most; changes the result by rounding alone.
        segment_length: S; None: the length the model was trained with.
        progress: Told after each segment how many tokens it had, all lanes together.
        modes: Of `with_memory` and `memory_reset`, those that are asked for.

    Returns:
        By mode, for each prompt what was said to each of its questions.

    Raises:
        UserError: Nothing names a segment length, or models of this family have no `logits(segment, memory)`.
    """
    length = segment_length or model.config.segment_length
    if length is None:
        raise UserError("config.json names no segment_length: export the model again")
    if not callable(getattr(model, "logits", None)):
        raise UserError(f"tasks are not built for family {model.config.family}: its models have no logits of a segment")
    found: dict[str, list[tuple[Said, ...]]] = {mode: [] for mode in modes}
    with evaluation_mode(model), worthwhile_threads(model, length):
        for first in range(0, len(prompts), lanes):
            batch = _Batch(model, prompts[first : first + lanes], length, modes)
            for mode, said in batch.read(progress).items():
                found[mode] += said
    return found


class _Batch:
    """Documents that are read side by side."""

    def __init__(self, model: MemoryModel, prompts: Sequence[Prompt], length: int, modes: Sequence[str]) -> None:
        self.model, self.prompts, self.length = model, prompts, length
        self.logits: Any = model.logits  # type: ignore[attr-defined]
        self.sizes = np.array([len(prompt.tokens) for prompt in prompts])
        self.end = max((answer[1] for prompt in prompts for answer in prompt.answers), default=0)
        self.initial = model.initial_memory(len(prompts)).clone()
        self.first_alike = [0] * len(prompts)  # of each, the first one with the same tokens so far: none yet
        self.said: dict[str, list[list[tuple[int, float]]]] = {mode: [[] for _ in prompts] for mode in modes}

    def read(self, progress: Callable[[int], None] | None) -> dict[str, list[tuple[Said, ...]]]:
        """Reads up to the last answer."""
        memory = self.initial
        segment: Segment | None = None
        for start in range(0, self.end, self.length):
            segment = self._segment(start, segment)
            spans = [self._answers(prompt, start) for prompt in self.prompts]
            if not any(spans):
                memory = self._advanced(segment, memory)
            else:
                if "memory_reset" in self.said:
                    self._ask("memory_reset", segment, self.initial, spans)
                if "with_memory" in self.said:
                    memory = self._ask("with_memory", segment, memory, spans)
            if progress:
                progress(int(np.clip(self.sizes - start, 0, self.length).sum()))
        return {
            mode: [told(prompt, said) for prompt, said in zip(self.prompts, lanes, strict=True)]
            for mode, lanes in self.said.items()
        }

    def _segment(self, start: int, before: Segment | None) -> Segment:
        """The segment of every document that begins with this token, int64 [B, S]; the last ends with its answers."""
        width = self.length
        if self.model.config.segment_length is not None:  # else an overlap might be a share of the width
            width = min(width, self.end - start)
        tokens = np.zeros((len(self.prompts), width), dtype=np.int64)
        alike: dict[tuple[int, bytes], int] = {}
        for lane, prompt in enumerate(self.prompts):
            part = prompt.tokens[start : start + width]
            tokens[lane, : len(part)] = part
            self.first_alike[lane] = alike.setdefault((self.first_alike[lane], part.tobytes()), lane)
        sizes = np.clip(self.sizes - start, 0, width)
        target, lengths = (torch.from_numpy(each).to(self.model.device) for each in (tokens, sizes))
        short, begins = bool((sizes < width).any()), before is None
        reset = torch.full_like(lengths, begins, dtype=torch.bool)
        if before is None:
            context = target.new_zeros(len(target), self.length)
            return Segment(context, torch.zeros_like(lengths), target, lengths, reset, True, short)
        return Segment(before.target, before.target_length, target, lengths, reset, before.short, short)

    def _advanced(self, segment: Segment, memory: torch.Tensor) -> torch.Tensor:
        """The next memory; of documents that are alike so far, one is read."""
        if "with_memory" not in self.said:
            return memory
        rows = sorted(set(self.first_alike))
        if len(rows) == len(self.prompts):
            return self.model.advance(segment, memory)
        index = torch.tensor(rows, device=memory.device)
        following = self.model.advance(segment.rows(index), memory[index])
        return following[torch.tensor([rows.index(row) for row in self.first_alike], device=memory.device)]

    def _answers(self, prompt: Prompt, start: int) -> list[int]:
        """Places in the segment that hold tokens of answers."""
        places = (range(max(start, first), min(start + self.length, end)) for first, end in prompt.answers)
        return [place - start for each in places for place in each]

    def _ask(self, mode: str, segment: Segment, memory: torch.Tensor, places: list[list[int]]) -> torch.Tensor:
        """Notes the most likely token and the right one's log-likelihood at these places; the next memory."""
        config = self.model.config
        most = max(1, MOST_LOGITS // (self.length * config.vocab_size))
        memories = []
        for lane in range(0, len(places), most):
            lanes = slice(lane, min(lane + most, len(places)))
            part = segment.lanes(lanes.start, lanes.stop)
            logits_BSV, following = self.logits(part, memory[lanes])
            memories.append(following)
            for own, wanted in enumerate(places[lanes]):
                if wanted:
                    at = torch.tensor(wanted, device=logits_BSV.device)
                    right = part.target[own].index_select(0, at)
                    found = best_and_likely(logits_BSV[own].index_select(0, at), right, config)
                    self.said[mode][lane + own] += found
        return torch.cat(memories)


def best_and_likely(logits_PV: torch.Tensor, right_P: torch.Tensor, config: Any) -> list[tuple[int, float]]:
    """The most likely token of each place, and the log-likelihood of the right one in nats."""
    logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    likely = logits_PV.log_softmax(-1).gather(1, right_P[:, None])[:, 0]
    # What `generate` never writes: the start token, which stands before every segment and never inside a document, and
    # ids of a pretrained model that are no tokens of the data.
    logits_PV[:, config.start_token_id :][:, :1] = float("-inf")
    best = logits_PV[:, : config.vocab_size].argmax(-1)
    return list(zip(best.tolist(), likely.tolist(), strict=True))


def told(prompt: Prompt, said: Sequence[tuple[int, float]]) -> tuple[Said, ...]:
    """What was said to each question, from what `best_and_likely` gives for all tokens of the answers in turn."""
    answers, done = [], 0
    for first, end in prompt.answers:
        right = prompt.tokens[first:end].tolist()
        best = [token for token, _ in said[done : done + len(right)]]
        likely = sum(value for _, value in said[done : done + len(right)])
        done += len(right)
        wrong = next((place for place, token in enumerate(best) if token != right[place]), None)
        shown = best if wrong is None else best[: wrong + 1]
        answers.append(Said(wrong is None, likely, tuple(shown)))
    return tuple(answers)
