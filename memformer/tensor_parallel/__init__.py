# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tensor parallelism: each layer of a Memformer spread over a few neighbouring processes."""

from memformer.tensor_parallel.collectives import leave_uncompiled
from memformer.tensor_parallel.sharding import Slice, SlicedConstruction, shard_model, slice_of, whole_tensor

__all__ = ["Slice", "SlicedConstruction", "leave_uncompiled", "shard_model", "slice_of", "whole_tensor"]
