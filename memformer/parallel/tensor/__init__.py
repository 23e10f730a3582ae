# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tensor parallelism: each layer spread over a few neighbouring processes."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.parallel.tensor.collectives import leave_uncompiled
    from memformer.parallel.tensor.sharding import (
        Slice,
        SlicedConstruction,
        shard_model,
        sharding_of,
        slice_of,
        whole_tensor,
    )

__all__ = [
    "Slice",
    "SlicedConstruction",
    "leave_uncompiled",
    "shard_model",
    "sharding_of",
    "slice_of",
    "whole_tensor",
]

__getattr__ = face(
    __name__,
    {
        "Slice": "sharding",
        "SlicedConstruction": "sharding",
        "leave_uncompiled": "collectives",
        "shard_model": "sharding",
        "sharding_of": "sharding",
        "slice_of": "sharding",
        "whole_tensor": "sharding",
    },
)
