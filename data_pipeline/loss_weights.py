# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Loss weights: how much each token of a document counts as a target, from 0 (not at all) to 1.

A source gives them as ranges of a text's characters; a data set keeps one number a token, in 1/32,768ths. float32 holds
these exactly, and sums of them are exact in any order, so that it is no matter how a batch is divided among processes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenizer import TokenIds, Tokenizer

ONE = 1 << 15
"""What a weight of 1 is stored as."""
WEIGHT_DTYPE = np.dtype("<u2")
USUAL_KEY = "loss_weights"
"""Where records usually have them, for people who forget to ask."""
_SHOWN_CHARACTERS = 60


class WeightedRange(NamedTuple):
    """Characters start .. end-1 of a text (Unicode code points), and their weight in 1/32,768ths."""

    start: int
    end: int
    weight: int


def parse_ranges(value: Any, characters: int) -> tuple[WeightedRange, ...]:
    """The ranges that a record has, `[[start, end, weight], ...]`.

    Args:
        value: As JSON gives it.
        characters: Those of the text.

    Raises:
        ValueError: It is no list of ranges in order, without overlap, within the text; the message says so for people.
    """
    if not isinstance(value, list):
        raise ValueError(f"is {_shown(value)}; give a list of [start, end, weight]")
    ranges: list[WeightedRange] = []
    before = 0
    for number, each in enumerate(value, start=1):
        if not isinstance(each, list) or len(each) != 3 or any(isinstance(part, bool) for part in each):
            raise ValueError(f"has {_shown(each)} as range {number}; give [start, end, weight]")
        start, end, weight = each
        if not isinstance(start, int) or not isinstance(end, int) or not before <= start <= end <= characters:
            raise ValueError(
                f"has {_shown(each)} as range {number}; give whole numbers {before} <= start <= end <= {characters}: "
                "ranges count characters, stand in order and do not overlap"
            )
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise ValueError(f"has {_shown(each)} as range {number}; give a weight from 0 to 1")
        ranges.append(WeightedRange(start, end, round(weight * ONE)))
        before = end
    return tuple(ranges)


def token_weights(
    text: str | bytes, ids: TokenIds, ranges: Sequence[WeightedRange] | None, tokenizer: Tokenizer
) -> NDArray[np.uint16]:
    """The weight of each token, `[tokens]` uint16 in 1/32,768ths: the largest of the characters that it has bytes of.

    The largest, since a token often begins with the blank before a word: a marked word keeps all its tokens. A token
    without bytes has the weight of the character behind it.

    Args:
        text: What was tokenized.
        ids: Its tokens, `[tokens]`.
        ranges: The weights of its characters, 0 outside of them; None: all tokens have weight 1.
        tokenizer: What made the tokens.

    Raises:
        ValueError: The tokens do not tell which bytes of the text they stand for.
    """
    if ranges is None or isinstance(text, bytes):
        return np.full(len(ids), ONE, WEIGHT_DTYPE)
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    characters = np.zeros(len(codes), WEIGHT_DTYPE)
    for start, end, weight in ranges:
        characters[start:end] = weight
    text_bytes = np.repeat(characters, 1 + (codes >= 1 << 7) + (codes >= 1 << 11) + (codes >= 1 << 16))
    sizes = tokenizer.token_byte_lengths[ids].astype(np.int64)
    if len(ids):
        sizes[0] -= sizes.sum() - tokenizer.text_bytes(ids)  # a blank that the tokenizer puts in front of a text
    if sizes.sum() != len(text_bytes):
        raise ValueError(
            f"its text has {len(text_bytes):,} bytes and its tokens stand for {sizes.sum():,}, so nobody knows which "
            "token has which loss weight; give another --tokenizer"
        )
    if not len(text_bytes):
        return np.zeros(len(ids), WEIGHT_DTYPE)
    # reduceat takes the element at the start of an empty range: one more at the end serves tokens behind the last byte.
    weights: NDArray[np.uint16] = np.maximum.reduceat(np.append(text_bytes, text_bytes[-1:]), np.cumsum(sizes) - sizes)
    return weights


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
