# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What stands in front of a segment, written out lane by lane."""

import pytest
import torch

from memformer.models.overlap import before, causal_mask
from memformer.replay import Segment
from tests.memformer.examples import START, full_segment

LENGTH = 6


def segment() -> Segment:
    """A lane with a whole context, one with a short one, one that knows nothing, one that begins a document."""
    known, reset = torch.tensor([LENGTH, 3, 0, LENGTH]), torch.tensor([False, False, False, True])
    return full_segment(4, LENGTH)._replace(context_length=known, reset=reset, ragged=True)


@pytest.mark.parametrize("every_start", [False, True])
@pytest.mark.parametrize("overlap", [0, 1, 4, LENGTH, 2 * LENGTH])
def test_a_row_begins_with_what_is_known(overlap: int, every_start: bool) -> None:
    given = segment()
    tokens, seen = before(given, overlap, START, every_start)
    assert tokens.shape == seen.shape == (4, max(1, min(overlap, LENGTH) + every_start))
    for lane, known in enumerate([LENGTH, 3, 0, 0]):
        row = given.context[lane, max(0, known - overlap) : known].tolist()
        row = [START, *row] if every_start or not row else row
        assert tokens[lane][seen[lane]].tolist() == row
        assert seen[lane].tolist() == sorted(seen[lane].tolist()), "what is there stands last"


def test_a_query_sees_what_is_there_and_not_after_it() -> None:
    seen = torch.tensor([[False, False, True, True, True], [True] * 5])
    mask = causal_mask(seen)
    assert mask is not None and mask.shape == (2, 1, 5, 5)
    for lane in range(2):
        for query in range(5):
            expected = [key == query or (key < query and bool(seen[lane, key])) for key in range(5)]
            assert mask[lane, 0, query].tolist() == expected, (
                "a place that nothing sees sees itself, so no row is empty"
            )
    assert causal_mask(None) is None
