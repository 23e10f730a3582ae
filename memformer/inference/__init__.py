# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a trained model is worth and what it writes: perplexity, text, what its memory keeps."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.inference.generation import generate, reader_of
    from memformer.inference.inspection import MemoryInspector, inspect_tokens
    from memformer.inference.perplexity import Score, evaluate

__all__ = [
    "MemoryInspector",
    "Score",
    "evaluate",
    "generate",
    "inspect_tokens",
    "reader_of",
]

__getattr__ = face(
    __name__,
    {
        "reader_of": "generation",
        "MemoryInspector": "inspection",
        "Score": "perplexity",
        "evaluate": "perplexity",
        "generate": "generation",
        "inspect_tokens": "inspection",
    },
)
