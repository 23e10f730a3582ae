# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which tokenizer is meant: by a file, ours or of other make, or by what `--tokenizer` names."""

from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.hf_tokenizer import HFTokenizer, import_tokenizer, start_of
from data_pipeline.tokenizer import (
    SMALLEST_VOCAB,
    ByteTokenizer,
    Tokenizer,
    has_own_words,
    own_tokenizer,
    read_tokenizer_file,
)

_MOST_DIGITS = 9  # more ids than the tokens of any text
_MOST_SHOWN = 40


def load_tokenizer(
    path: str | Path, mend: str = "train one with `memformer data build --tokenizer train-bpe:VOCAB`"
) -> Tokenizer:
    """Reads a tokenizer from its file, or from the `tokenizer.json` of a data set's or a model's directory.

    Args:
        path: The file or directory.
        mend: What to do if there is none.

    Raises:
        UserError: There is no such file, or it is not a byte-level tokenizer with this project's start token.
    """
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
        UserError: VOCAB is not a number, or leaves no room for a merge.
    """
    kind, _, argument = spec.partition(":")
    if kind != "train-bpe":
        return None
    if not argument.isdecimal() or len(argument) > _MOST_DIGITS:
        raise UserError(
            f"tokenizer {spec[:_MOST_SHOWN]!r}: VOCAB must be a whole number of {_MOST_DIGITS} digits or fewer, e.g. "
            "train-bpe:8192"
        )
    if int(argument) < SMALLEST_VOCAB:
        raise UserError(
            f"tokenizer {spec!r}: the vocabulary holds 256 bytes and a start token; ask for {SMALLEST_VOCAB} or more"
        )
    return int(argument)


def _is_foreign(content: Any) -> bool:
    """Whether a file with a start token of this project is one of other make, to be run by the library it is made for.

    A file that cuts text as ours do is ours only if its merges come in the order of its ids and nothing else is done
    to texts: the faster engine merges by id.
    """
    if start_of(content) is None:
        return False
    if not has_own_words(content) or content.get("normalizer") is not None:
        return True
    model, added = content.get("model"), content["added_tokens"]
    vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(vocab, dict) or not isinstance(merges, list) or [each["id"] for each in added] != [len(vocab)]:
        return True
    flags = ("dropout", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if any(model.get(flag) for flag in flags):
        return True
    following = 256
    for pair in merges:
        merged = vocab.get("".join(pair.split(" ") if isinstance(pair, str) else pair), len(vocab))
        following += merged == following
        if merged >= following:
            return True
    return following != len(vocab)
