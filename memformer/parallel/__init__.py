# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How a model is spread over processes: tensor parallelism, pipeline stages, activation checkpointing."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.parallel.pipeline.split import split_of
    from memformer.parallel.tensor.sharding import shard_model

__all__ = [
    "shard_model",
    "split_of",
]

__getattr__ = face(
    __name__,
    {
        "shard_model": "tensor.sharding",
        "split_of": "pipeline.split",
    },
)
