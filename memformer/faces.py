# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Faces of the rooms; made by the same function as that of `data_pipeline`, which imports nothing from here."""

from data_pipeline.faces import face

__all__ = ["face"]
