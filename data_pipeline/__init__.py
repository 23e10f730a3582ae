# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Long documents as token shards, and what every lane of the global batch reads from them."""

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "UserError", "load_tokenizer"]
