# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Long documents as token shards, and what every lane of the global batch reads from them."""

from data_pipeline.blend import Blend
from data_pipeline.build import BuildReport, build_dataset
from data_pipeline.errors import DamagedDocument, UserError
from data_pipeline.far import FarSettings
from data_pipeline.index import DocumentIndex
from data_pipeline.opening import open_data
from data_pipeline.plan import LanePlan
from data_pipeline.reading import Reading, SegmentBatch, lanes_of, trace_rows
from data_pipeline.store import ShardStore, Store
from data_pipeline.stream import SegmentStream
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Blend",
    "BuildReport",
    "DamagedDocument",
    "DocumentIndex",
    "FarSettings",
    "LanePlan",
    "Reading",
    "SegmentBatch",
    "SegmentStream",
    "ShardStore",
    "Store",
    "Tokenizer",
    "UserError",
    "build_dataset",
    "lanes_of",
    "load_tokenizer",
    "open_data",
    "trace_rows",
]
