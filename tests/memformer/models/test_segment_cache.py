# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The cache against lists: whatever rows come with however many inputs, each sees its own in order and no others."""

import pytest
import torch

from memformer.models.segment_cache import SegmentCache

B, H, E, CAPACITY = 3, 2, 4, 9
CPU = torch.device("cpu")
RUNS = [
    ("together", [([0, 1, 2], [3, 3, 3]), ([0, 1, 2], [1, 1, 1]), ([0, 1, 2], [2, 2, 2])]),
    ("some together", [([0, 1, 2], [2, 2, 2]), ([0, 2], [1, 1]), ([0, 2], [3, 3]), ([1], [4])]),
    ("apart", [([0, 1, 2], [1, 4, 2]), ([0, 1, 2], [5, 1, 1]), ([1, 2], [2, 3]), ([0, 1, 2], [1, 1, 1])]),
]


@pytest.mark.parametrize("runs", [each for _, each in RUNS], ids=[name for name, _ in RUNS])
def test_each_row_has_its_own_inputs_in_order(runs: list[tuple[list[int], list[int]]]) -> None:
    """Padding is NaN here: it reaches neither what is kept nor, through a mask that hides it, what is seen."""
    torch.manual_seed(0)
    cache = SegmentCache(B, CAPACITY)
    written: list[list[torch.Tensor]] = [[] for _ in range(B)]
    for rows, lengths in runs:
        starts = [len(written[row]) for row in rows]
        new = torch.full((len(rows), H, max(lengths), E), float("nan"))
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            new[number, :, :length] = torch.randn(H, length, E)
            written[row] += list(new[number, :, :length].unbind(1))
        places = cache.place(rows, starts, lengths, CPU)
        keys, values = cache.update(new, 2 * new, 0)
        assert torch.equal(values, 2 * keys) and bool(keys.isfinite().all())
        assert keys.shape == (len(rows), H, places.stop, E)
        at = places.at.expand(len(rows), -1)
        mask = places.mask
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            own = torch.stack(written[row], 1)
            assert torch.equal(keys[number, :, : own.shape[1]], own)
            assert at[number, :length].tolist() == list(range(starts[number], starts[number] + length))
            if mask is not None:
                seen = mask.expand(len(rows), -1, -1, -1)[number, 0, :length].sum(-1)
                assert seen.tolist() == [start + 1 for start in at[number, :length].tolist()]
            else:
                assert places.causal == (length > 1) and (places.causal or places.stop == own.shape[1])
        stream = torch.randn(len(rows), max(lengths), 5)
        last = [stream[number, length - 1] for number, length in enumerate(lengths)]
        assert torch.equal(places.last(stream), torch.stack(last))
    assert sum(each.numel() for each in cache.tensors()) == 2 * B * H * CAPACITY * E


def test_a_new_segment_goes_on_in_the_same_memory() -> None:
    cache = SegmentCache(1, 4)
    first = torch.randn(1, H, 3, E)
    cache.place([0], [0], [3], CPU)
    cache.update(first, first, 7)
    before = [each.data_ptr() for each in cache.tensors()]
    cache.place([0], [0], [1], CPU)
    keys, _ = cache.update(-first[:, :, :1], first[:, :, :1], 7)
    assert torch.equal(keys, -first[:, :, :1]) and [each.data_ptr() for each in cache.tensors()] == before
