# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which tokenizer is meant: by a file, ours or of other make, or by what `--tokenizer` names."""

from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.hf_tokenizer import HFTokenizer, import_tokenizer
from data_pipeline.tokenizer import (
    START_TOKEN,
    ByteTokenizer,
    Tokenizer,
    has_own_words,
    own_tokenizer,
    read_tokenizer_file,
)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a tokenizer from its file, or from the `tokenizer.json` of a data set's or a model's directory.

    Raises:
        UserError: There is no such file, or it is not a byte-level tokenizer with this project's start token.
    """
    mend = "train one with `memformer data build --tokenizer train-bpe:VOCAB`"
    file, text, content = read_tokenizer_file(path, mend)
    return HFTokenizer(text, str(file)) if _is_foreign(content) else own_tokenizer(file, text, content)


def make_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that `--tokenizer` names, except `train-bpe:VOCAB`, which needs the texts (`train_bpe`).

    Raises:
        UserError: The name is unknown, or its file cannot be used.
    """
    if spec == "bytes":
        return ByteTokenizer()
    kind, _, argument = spec.partition(":")
    if kind == "bpe" and argument:
        return load_tokenizer(argument)
    if kind == "hf" and argument:
        return import_tokenizer(argument)
    raise UserError(f"tokenizer {spec!r} is unknown; choose bytes, bpe:FILE, hf:FILE or train-bpe:VOCAB")


def training_vocab_size(spec: str) -> int | None:
    """VOCAB of `train-bpe:VOCAB`; None for a tokenizer that needs no training.

    Raises:
        UserError: VOCAB is not a number.
    """
    kind, _, argument = spec.partition(":")
    if kind != "train-bpe":
        return None
    if not argument.isdecimal():
        raise UserError(f"tokenizer {spec!r}: VOCAB must be a whole number, e.g. train-bpe:8192")
    return int(argument)


def _is_foreign(content: Any) -> bool:
    """Whether a file has this project's start token added to a tokenizer of other make."""
    if not isinstance(content, dict) or has_own_words(content):
        return False
    added = content.get("added_tokens")
    return isinstance(added, list) and any(isinstance(t, dict) and t.get("content") == START_TOKEN for t in added)
