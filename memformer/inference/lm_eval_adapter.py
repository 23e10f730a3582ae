# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemoryLM`: a model of any family answers the requests of EleutherAI's lm-evaluation-harness.

A request's context is a document: it is read from its beginning, segment by segment as in training, with the memory
carried, so its length has no limit and nothing of it is left out. The start token stands before it, as in training; an
empty context is the start token alone. No other token is put in, and none ends a text: `until` does.

Context and continuation are tokenized together, as training has them, and a token that holds a byte of the continuation
counts to it (`tasks.tokenized`). Blanks and line ends at the context's end count to the continuation, as the harness's
own models have it, so that figures can be compared with theirs. What differs: where the last letters of the context and
the first of the continuation are one token, that one is scored too; theirs lose it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from data_pipeline import Tokenizer, UserError
from data_pipeline.tasks.prompts import Prompt, tokenized
from memformer.inference.generation import Written, draw, read_texts, reader_of
from memformer.inference.perplexity import MODES
from memformer.inference.tasks import Said, answer_questions
from memformer.inference.threads import worthwhile_threads
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel

CARRIED = MODES[:1]
NEUTRAL = {"num_beams": 1}
"""Settings of other programs' generation that change nothing at this value."""

Progress = Callable[[str, int, int, str], None]
"""Told the stage, how much of it is done, of how much, and what is counted."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a text goes on.

    Attributes:
        until: Texts before whose first one it ends.
        most: Tokens at most.
        temperature: 0: the most likely token each time.
        top_k: Draw among so many most likely tokens; None: all.
        top_p: Draw among the most likely tokens that together reach it.
    """

    until: tuple[str, ...]
    most: int
    temperature: float
    top_k: int | None
    top_p: float

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Generation":
        """From a task's `generation_kwargs`, with the harness's own defaults and names.

        Raises:
            UserError: A setting is not known here, or has a value that means nothing.
        """
        try:
            settings: dict[str, Any] = dict(normalize_gen_kwargs(given))
            until, most = settings.pop("until"), settings.pop("max_gen_toks")
            drawn, temperature = settings.pop("do_sample"), float(settings.pop("temperature", 1.0))
            top_k, top_p = int(settings.pop("top_k", None) or 0), float(settings.pop("top_p", 1.0))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"generation_kwargs {given}: {error}; mend the task") from None
        for name, value in settings.items():
            if NEUTRAL.get(name) != value:
                raise UserError(f"generation_kwargs has {name}: {value!r}, which is not built here: leave it out")
        for name, value, fits, mend in (
            ("until", until, all(isinstance(each, str) for each in until), "give a text or a list of texts"),
            ("max_gen_toks", most, most >= 0, "give 0 or more"),
            ("temperature", temperature, 0 <= temperature < math.inf, "give 0 or more"),
            ("top_k", top_k, top_k >= 0, "give 1 or more, or leave it out"),
            ("top_p", top_p, 0 < top_p <= 1, "give more than 0 and at most 1"),
        ):
            if not fits:
                raise UserError(f"generation_kwargs has {name}: {value!r}: {mend}")
        return cls(tuple(filter(None, until)), most, temperature if drawn else 0.0, top_k or None, top_p)


def prompt_of_pair(context: str, continuation: str, tokenizer: Tokenizer) -> Prompt:
    """A context and its continuation as tokens: see above.

    Raises:
        UserError: See `tasks.tokenized`.
    """
    text = context + continuation
    return tokenized(text, [(len(context.rstrip()), len(text))], tokenizer)


class MemoryLM(LM):  # type: ignore[misc]  # the harness has no types
    """Answers requests, as many side by side as there are lanes; what is answered changes with these by rounding alone.

    Args:
        model: Of any family, with a segment length in its configuration.
        tokenizer: The model's.
        lanes: Documents read side by side.
        seed: Of what is drawn at a temperature.
        progress: Told now and then how far it is.
    """

    def __init__(
        self,
        model: MemoryModel,
        tokenizer: Tokenizer,
        lanes: int = 8,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.lanes, self.seed, self.progress = model, tokenizer, lanes, seed, progress
        self._device = model.device

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation behind its context: its log-likelihood in nats, and whether greedy generation writes it.

        Raises:
            UserError: See `tasks.tokenized` and `tasks.answer_questions`.
        """
        said = self._said("continuations", [request.args for request in requests])
        return [(each.log_likelihood, each.right) for each in said]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log-likelihood of each text in nats, all of its tokens behind the start token.

        Raises:
            UserError: See `tasks.tokenized` and `tasks.answer_questions`.
        """
        said = self._said("texts", [("", *request.args) for request in requests])
        return [each.log_likelihood for each in said]

    def _said(self, stage: str, asked: list[tuple[str, str]]) -> list[Said]:
        """What is said to each continuation; what is empty is certain."""
        found = [Said(True, 0.0, ())] * len(asked)
        # Long ones first: what does not fit into memory is known at once. Those of one context beside each other.
        order = sorted(
            (number for number, (_, text) in enumerate(asked) if text),
            key=lambda number: (-len(asked[number][0]), asked[number][0], -len(asked[number][1])),
        )
        for first in range(0, len(order), self.lanes):  # as many tokens are held as are read side by side
            batch = order[first : first + self.lanes]
            prompts = [prompt_of_pair(*asked[number], self.tokenizer) for number in batch]
            said = answer_questions(self.model, prompts, self.lanes, modes=CARRIED)[CARRIED[0]]
            for number, (each,) in zip(batch, said, strict=True):
                found[number] = each
            self._tell(f"reading {stage}", first + len(batch), len(order))
        return found

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(stage, done, total, "requests")

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What the model writes behind each context, up to the first text of `until`.

        Raises:
            UserError: See `Generation.of`.
        """
        contexts = [request.args[0] for request in requests]
        wanted = [Generation.of(request.args[1]) for request in requests]
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(wanted))}
        order = sorted(range(len(wanted)), key=lambda one: (kinds[wanted[one]], -len(contexts[one]), contexts[one]))
        found, done = [""] * len(wanted), 0
        while done < len(order):
            kind = wanted[order[done]]
            batch = [one for one in order[done : done + self.lanes] if wanted[one] == kind]
            # A text draws by its place in the order, whatever the lanes.
            texts = self._continued([contexts[one] for one in batch], kind, self.seed + done)
            for one, text in zip(batch, texts, strict=True):
                found[one] = text
            done += len(batch)
            self._tell("writing", done, len(order))
        return found

    def _continued(self, contexts: list[str], kind: Generation, seed: int) -> list[str]:
        """Continuations of contexts side by side; one that is there several times is read once."""
        distinct = list(dict.fromkeys(contexts))
        with evaluation_mode(self.model), worthwhile_threads(self.model, self.model.config.reading_length(None)):
            reader = reader_of(self.model, len(distinct))
            read_texts(reader, [self.tokenizer.encode(context).tolist() for context in distinct])
            if len(distinct) < len(contexts):
                state = reader.state.rows([distinct.index(context) for context in contexts])
                reader = reader_of(self.model, len(contexts))
                reader.restore(state)
            written = [Written(self.tokenizer, kind.until) for _ in contexts]
            drawn = draw(
                reader,
                self.model.config.start_token_id,
                kind.most,
                temperature=kind.temperature,
                top_k=kind.top_k,
                top_p=kind.top_p,
                seed=seed,
            )
            for row in drawn:
                for each, token in zip(written, row, strict=True):
                    each.add(token)
                if all(each.ended for each in written):
                    break
        for each in written:
            each.end()
        return [each.text for each in written]
