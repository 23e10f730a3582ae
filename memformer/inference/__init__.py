# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a trained model is worth and what it writes: perplexity, text, what its memory keeps."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.inference.generation import draw, generate, read_texts, reader_of
    from memformer.inference.inspection import MemoryInspector, inspect_tokens
    from memformer.inference.perplexity import Score, evaluate
    from memformer.inference.state_file import load_state, save_state

__all__ = [
    "MemoryInspector",
    "Score",
    "draw",
    "evaluate",
    "generate",
    "inspect_tokens",
    "load_state",
    "read_texts",
    "reader_of",
    "save_state",
]

__getattr__ = face(
    __name__,
    {
        "reader_of": "generation",
        "read_texts": "generation",
        "draw": "generation",
        "load_state": "state_file",
        "save_state": "state_file",
        "MemoryInspector": "inspection",
        "Score": "perplexity",
        "evaluate": "perplexity",
        "generate": "generation",
        "inspect_tokens": "inspection",
    },
)
