# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Answers of the language model that a memory was added to, alone, with all of a document in its own context.

A model of a family that can do without its memory has `context`, the tokens that it reads at once, and
`without_memory`. A document is read by itself, whole; that of which the context is too short has no answers here, since
what is cut off would decide which. Activations of one layer grow with the document, up to the context; logits are those
of the answers alone, at most `tasks.MOST_LOGITS` numbers at a time.
"""

from collections.abc import Sequence

import torch

from data_pipeline.tasks.prompts import Prompt
from memformer.inference.tasks import MOST_LOGITS, Said, best_and_likely, told
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel, Standalone


def context_of(model: MemoryModel) -> int | None:
    """Tokens that the model reads at once without its memory; None: it cannot do without."""
    return model.context if isinstance(model, Standalone) else None


@torch.no_grad()
def answer_without_memory(model: MemoryModel, prompts: Sequence[Prompt]) -> list[tuple[Said, ...] | None]:
    """What the language model alone says to the questions of documents.

    Args:
        model: As `context_of` wants it; put into evaluation mode for the time.
        prompts: The documents.

    Returns:
        For each prompt what was said to each of its questions; None where its last answer ends behind the context.
    """
    assert isinstance(model, Standalone)
    found: list[tuple[Said, ...] | None] = []
    with evaluation_mode(model):
        for prompt in prompts:
            end = max((last for _, last in prompt.answers), default=0)
            if end > model.context:
                found.append(None)
                continue
            said: list[tuple[int, float]] = []
            if prompt.answers:
                tokens = torch.from_numpy(prompt.tokens[:end].astype("int64")).to(model.device)
                places = [place for first, last in prompt.answers for place in range(first, last)]
                at_P, part = torch.tensor(places, device=model.device), max(1, MOST_LOGITS // model.config.vocab_size)
                logits = model.without_memory(tokens, at_P, part)
                for some_PV, at in zip(logits, torch.split(at_P, part), strict=True):
                    said += best_and_likely(some_PV, tokens[at], model.config)
            found.append(told(prompt, said))
    return found
