# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Answers of a model to the questions of documents: with the memory carried, and with it reset at every segment.

A document is read as in training, segment by segment: what lies before the segments with answers by `advance` alone, at
the price of what the memory depends on; those by all layers, with the head at the answers alone. Memory use does not
depend on the length of documents. What documents that are read side by side have in common at their beginnings is read
once (the choices of one question).

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

from data_pipeline import UserError
from data_pipeline.tasks.prompts import Prompt
from memformer.inference.perplexity import MODES
from memformer.inference.threads import worthwhile_threads
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel
from memformer.processes.topology import Axis
from memformer.replay import Segment

MOST_LOGITS = 1 << 26  # of one call of the model; where answers have more, fewer lanes are asked at once


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


def refuse_without_logits(model: MemoryModel) -> None:
    """Refuses a model that cannot be asked.

    Raises:
        UserError: Models of its family have no `logits(segment, memory, at_2N)`.
    """
    if not callable(getattr(model, "logits", None)):
        raise UserError(f"tasks are not built for family {model.config.family}: its models have no logits of a segment")


@torch.no_grad()
def answer_questions(
    model: MemoryModel,
    prompts: Sequence[Prompt],
    lanes: int = 8,
    segment_length: int | None = None,
    progress: Callable[[int], None] | None = None,
    modes: Sequence[str] = MODES,
    replicas: Axis | None = None,
) -> dict[str, list[tuple[Said, ...]]]:
    """What a model says to the questions of documents.

    Args:
        model: A model of any family; put into evaluation mode for the time.
        prompts: The documents, of any lengths.
        lanes: Documents B read side by side at most, by each replica; changes the result by rounding alone.
        segment_length: S; None: the length the model was trained with.
        progress: Told after each segment how many tokens it had, all lanes together; may raise.
        modes: Of `with_memory` and `memory_reset`, those that are asked for.
        replicas: This replica of the model among several that share the documents, and call this together. They read
            equally many segments of equally many lanes, as ZeRO-3 and what `progress` agrees on ask.

    Returns:
        By mode, for each prompt of this replica what was said to each of its questions.

    Raises:
        UserError: Nothing names a segment length, or `refuse_without_logits` raises it.
    """
    length = segment_length or model.config.segment_length
    if length is None:
        raise UserError("config.json names no segment_length: export the model again")
    refuse_without_logits(model)
    axis = replicas or Axis()
    found: dict[str, list[tuple[Said, ...]]] = {mode: [] for mode in modes}
    with evaluation_mode(model), worthwhile_threads(model, length):
        for first in range(0, len(prompts), lanes * axis.size):
            batch = prompts[first : first + lanes * axis.size]
            own = batch[axis.rank :: axis.size]
            idle = -(-len(batch) // axis.size) - len(own)  # lanes that the other replicas have more
            # The stages of a pipeline count on segments of one length.
            reading = _Batch(model, [*own, *batch[:idle]], length, modes, batch, cut=replicas is None)
            for mode, said in reading.read(progress).items():
                found[mode] += said[: len(own)]
    return found


class _Batch:
    """Documents that are read side by side.

    Args:
        model: What reads them.
        prompts: The documents.
        length: S.
        modes: What is asked for.
        everywhere: The documents, with those that other replicas read at the same time.
        cut: Whether the last segment ends with its answers.
    """

    def __init__(
        self,
        model: MemoryModel,
        prompts: Sequence[Prompt],
        length: int,
        modes: Sequence[str],
        everywhere: Sequence[Prompt],
        cut: bool,
    ) -> None:
        self.model, self.prompts, self.length, self.everywhere = model, prompts, length, everywhere
        self.cut = cut and model.config.segment_length is not None  # else an overlap might be a share of the width
        self.logits: Any = model.logits  # type: ignore[attr-defined]
        self.sizes = np.array([len(prompt.tokens) for prompt in prompts])
        self.end = max((answer[1] for prompt in everywhere for answer in prompt.answers), default=0)
        self.initial = model.initial_memory(len(prompts)).clone()
        self.first_alike = [0] * len(prompts)  # of each, the first one with the same tokens so far: none yet
        self.said: dict[str, list[list[tuple[int, float]]]] = {mode: [[] for _ in prompts] for mode in modes}

    def read(self, progress: Callable[[int], None] | None) -> dict[str, list[tuple[Said, ...]]]:
        """Reads up to the last answer."""
        memory = self.initial
        segment: Segment | None = None
        for start in range(0, self.end, self.length):
            segment = self._segment(start, segment)
            widest = max(len(self._answers(prompt, start)) for prompt in self.everywhere)
            if not widest:
                memory = self._advanced(segment, memory)
            else:
                places = [self._answers(prompt, start) for prompt in self.prompts]
                most = max(1, MOST_LOGITS // (widest * self.model.config.vocab_size))
                if "memory_reset" in self.said:
                    self._ask("memory_reset", segment, self.initial, places, most)
                if "with_memory" in self.said:
                    memory = self._ask("with_memory", segment, memory, places, most)
            if progress:
                progress(int(np.clip(self.sizes - start, 0, self.length).sum()))
        return {
            mode: [told(prompt, said) for prompt, said in zip(self.prompts, lanes, strict=True)]
            for mode, lanes in self.said.items()
        }

    def _segment(self, start: int, before: Segment | None) -> Segment:
        """The segment of every document from this token on, int64 [B, S]; the last may end with its answers."""
        width = min(self.length, self.end - start) if self.cut else self.length
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

    def _ask(
        self, mode: str, segment: Segment, memory: torch.Tensor, places: list[list[int]], most: int
    ) -> torch.Tensor:
        """Notes the most likely token and the right one's log-likelihood at these places; the next memory.

        Not more than so many lanes are asked at once.
        """
        memories = []
        for first in range(0, len(places), most):
            lanes = slice(first, min(first + most, len(places)))
            part = segment.lanes(lanes.start, lanes.stop)
            wanted = [(lane, place) for lane, own in enumerate(places[lanes]) for place in own]
            at_2N = torch.tensor(wanted, dtype=torch.int64, device=part.target.device).view(-1, 2).T
            logits_NV, following = self.logits(part, memory[lanes], at_2N)
            memories.append(following)
            found = best_and_likely(logits_NV, part.target[at_2N[0], at_2N[1]], self.model.config)
            for (lane, _), each in zip(wanted, found, strict=True):
                self.said[mode][first + lane].append(each)
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
