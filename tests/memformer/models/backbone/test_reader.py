# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Token by token the reader gives the logits of training, across segment borders."""

import pytest
import torch

from memformer.models.backbone.reader import BackboneReader
from memformer.replay import Segment
from tests.memformer.models.backbone.examples import MEMORIES, START, config_of, make


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("bos", [None, 3])
def test_the_reader_gives_the_logits_of_training(memory: str, bos: int | None) -> None:
    model = make(config_of("llama", memory, segment_length=4, bos_token_id=bos), moved=0.1).eval()
    tokens = torch.arange(11)[None] * 7 % START
    reader = BackboneReader(model)
    found = []
    for token in tokens[0]:
        found.append(-torch.log_softmax(reader.logits[0], -1)[token])
        reader.read(token[None, None])
    carried, full, expected = model.initial_memory(1), torch.tensor([4]), []
    context = tokens[:, :4]
    for t in range(3):
        part = tokens[:, 4 * t : 4 * t + 4]
        target, length = torch.nn.functional.pad(part, (0, 4 - part.shape[1])), torch.tensor([part.shape[1]])
        losses, carried = model.losses(Segment(context, full, target, length, torch.tensor([t == 0])), carried)
        expected.append(losses[0, : part.shape[1]])
        context = target
    assert torch.allclose(torch.stack(found), torch.cat(expected), atol=1e-12)


def test_a_prompt_at_once_and_ids_that_the_backbone_does_not_have() -> None:
    """The data's start token is one more than its own ids here; of a larger vocabulary only the data's are given."""
    config = config_of("mistral", segment_length=4, vocab_size=32, start_token_id=31, bos_token_id=2)
    for own in (31, 40):
        model = make(type(config)(**vars(config) | {"backbone": config.backbone | {"vocab_size": own}})).eval()
        one, two = BackboneReader(model, 2), BackboneReader(model, 2)
        tokens = torch.arange(18).view(2, 9)
        one.read(tokens)
        for token in tokens.split(1, 1):
            two.read(token)
        assert torch.allclose(one.logits[:, :31], two.logits[:, :31], atol=1e-12)
        assert one.logits.shape == (2, 32)
        assert bool(one.logits[:, 31].isneginf().all()) == (own == 31)


def test_without_a_segment_length_it_is_refused() -> None:
    with pytest.raises(ValueError, match="segment_length is not in the model's configuration"):
        BackboneReader(make(config_of()))
