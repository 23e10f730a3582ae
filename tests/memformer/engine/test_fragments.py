# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Parameters cut by rows or columns, then by elements, put together again from any other cut, by counting.

Covers: memformer/checkpoints/tensor_file.py
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memformer.checkpoints.tensor_file import layout_of, write_tensors
from memformer.engine.fragments import FragmentReader, Region

SHAPES = st.sampled_from([(6, 4), (7, 3), (1, 5), (5, 1), (9,), (4, 4)])
CUT = st.tuples(st.sampled_from(["rows", "columns", None]), st.integers(1, 3), st.integers(1, 4))


def regions(shape: tuple[int, ...], cut: tuple[str | None, int, int]) -> list[Region]:
    """What each process of a topology has: blocks of rows or columns, then runs of elements."""
    dimension, processes, replicas = cut
    if len(shape) == 1 and dimension == "columns":
        dimension = None
    found = []
    total = shape[0] if dimension == "rows" else shape[-1]
    for rank in range(processes if dimension else 1):
        ends = (total * rank // processes, total * (rank + 1) // processes)
        block = Region(shape, 0, 0, *((ends, None) if dimension == "rows" else (None, ends if dimension else None)))
        top, bottom, left, right = block.block
        count = (bottom - top) * (right - left)
        for replica in range(replicas):
            start, stop = count * replica // replicas, count * (replica + 1) // replicas
            if start < stop:
                found.append(Region(shape, start, stop, block.rows, block.columns))
    return found


def elements(whole: torch.Tensor, region: Region) -> torch.Tensor:
    """The same by plain indexing."""
    top, bottom, left, right = region.block
    matrix = whole.reshape(whole.shape[0], -1)
    return matrix[top:bottom, left:right].flatten()[region.start : region.stop]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, CUT, CUT)
def test_any_cut_is_read_from_any_other(
    tmp_path: Path, shape: tuple[int, ...], saved: tuple[str | None, int, int], wanted: tuple[str | None, int, int]
) -> None:
    whole = torch.randn(shape)
    files = []
    for number, region in enumerate(regions(shape, saved)):
        tensors = {"weight/p": elements(whole, region)}
        blocks = {"p": region.block} if region.rows or region.columns else {}
        metadata = {"starts": {"p": region.start}, "blocks": blocks, "steps": {"p": 3.0}}
        files.append(tmp_path / f"{number}.safetensors")
        text = {name: json.dumps(value) for name, value in metadata.items()}
        write_tensors(files[-1], layout_of(tensors), tensors.__getitem__, text)
    reader = FragmentReader(files)
    assert torch.equal(reader.read("weight", "p", Region.whole(shape)).view(shape), whole)
    for region in regions(shape, wanted):
        assert torch.equal(reader.read("weight", "p", region), elements(whole, region))
    if len(files) > 1:
        with pytest.raises(ValueError, match="elements are in no file"):
            FragmentReader(files[1:]).read("weight", "p", Region.whole(shape))
