# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What comes to the host in one copy: every number as it was, whatever came with it.

The copies are counted on a simulated GPU (tests/simulated_gpu).
"""

import math

import pytest
import torch

from memformer.engine.fetching import Fetching


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_come_as_they_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norms, beside = torch.randn(5, dtype=dtype) * 1e-30, torch.randn(3, dtype=torch.float64)
    beside[1] = math.inf
    fetching = Fetching()
    for values in (norms, norms[0], norms[:0]):
        fetching.take_along(beside)
        found = fetching.fetch(values)
        assert found.dtype == dtype and found.shape == values.shape and torch.equal(found, values)
        assert fetching.taken_along() == fetching.taken_along() == beside.tolist()


def test_a_norm_that_is_not_finite_is_seen() -> None:
    fetching = Fetching()
    fetching.take_along(torch.tensor([math.nan], dtype=torch.float64))
    assert [math.isinf(x) for x in fetching.fetch(torch.tensor([math.inf, 1.0]))] == [True, False]
    assert math.isnan(fetching.taken_along()[0])


def test_what_no_copy_has_taken_along_comes_by_itself() -> None:
    fetching = Fetching()
    assert torch.equal(fetching.fetch(torch.ones(2)), torch.ones(2)), "nothing else is asked for"
    fetching.take_along(torch.tensor([2.0], dtype=torch.float64))
    assert fetching.taken_along() == [2.0]
    fetching.take_along(torch.tensor([3.0], dtype=torch.float64))
    assert fetching.taken_along() == [3.0], "and not what was there before"
