# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A run on disk and from outside: its directory, its metrics, its data sets, requests to stop."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.run.data import TrainingData
    from memformer.run.directory import RunDirectory
    from memformer.run.metrics import MetricsWriter
    from memformer.run.stop_requests import StopRequests

__all__ = [
    "MetricsWriter",
    "RunDirectory",
    "StopRequests",
    "TrainingData",
]

__getattr__ = face(
    __name__,
    {
        "MetricsWriter": "metrics",
        "RunDirectory": "directory",
        "StopRequests": "stop_requests",
        "TrainingData": "data",
    },
)
