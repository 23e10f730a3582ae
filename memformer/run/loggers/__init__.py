# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Where else than in its directory a run's figures go: one small protocol, one module a service."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.run.loggers.protocol import LoggedRun, Logger
    from memformer.run.loggers.registry import Loggers, refuse_missing

__all__ = ["LoggedRun", "Logger", "Loggers", "refuse_missing"]

__getattr__ = face(
    __name__,
    {"LoggedRun": "protocol", "Logger": "protocol", "Loggers": "registry", "refuse_missing": "registry"},
)
