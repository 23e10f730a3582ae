# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The configuration of a run: its schema, and where its values come from."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.config.schema import Config, describe_fields, load_config, parse_config

__all__ = [
    "Config",
    "describe_fields",
    "load_config",
    "parse_config",
]

__getattr__ = face(
    __name__,
    {
        "Config": "schema",
        "describe_fields": "schema",
        "load_config": "schema",
        "parse_config": "schema",
    },
)
