# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a trained model is worth: its perplexity with and without memory, and what the memory keeps.

`evaluation.pictures` draws an inspection and needs matplotlib; import it by itself.
"""

from memformer.evaluation.inspection import MemoryInspector, inspect_tokens
from memformer.evaluation.perplexity import Score, evaluate

__all__ = ["MemoryInspector", "Score", "evaluate", "inspect_tokens"]
