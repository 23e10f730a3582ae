# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Long documents as token shards, and what every lane of the global batch reads from them."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
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
    from data_pipeline.stream_settings import StreamSettings
    from data_pipeline.tokenizer import Tokenizer
    from data_pipeline.tokenizer_choice import load_tokenizer

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
    "StreamSettings",
    "Tokenizer",
    "UserError",
    "build_dataset",
    "lanes_of",
    "load_tokenizer",
    "open_data",
    "trace_rows",
]

__getattr__ = face(
    __name__,
    {
        "Blend": "blend",
        "BuildReport": "build",
        "DamagedDocument": "errors",
        "DocumentIndex": "index",
        "FarSettings": "far",
        "LanePlan": "plan",
        "Reading": "reading",
        "SegmentBatch": "reading",
        "SegmentStream": "stream",
        "ShardStore": "store",
        "Store": "store",
        "StreamSettings": "stream_settings",
        "Tokenizer": "tokenizer",
        "UserError": "errors",
        "build_dataset": "build",
        "lanes_of": "reading",
        "load_tokenizer": "tokenizer_choice",
        "open_data": "opening",
        "trace_rows": "reading",
    },
)
