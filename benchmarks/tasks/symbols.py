# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks on abstract symbols, with noise between facts and questions."""

import numpy as np

from benchmarks.tasks.documents import Question, Story


class Copy:
    """Copy after delay: `[begin] s_1 .. s_n [end]`, noise, `[recall] s_1 .. s_n`.

    Args:
        symbols: Size of the alphabet that is copied.
        length: n.
        noise: Size of the noise's alphabet, which is another one.
    """

    name = "copy"

    def __init__(self, symbols: int = 8, length: int = 4, noise: int = 8) -> None:
        self.symbols, self.length, self.noise = symbols, length, noise
        self.chance = 1 / symbols
        self._noise = symbols
        self._begin, self._end, self._recall, self.start_token_id = range(symbols + noise, symbols + noise + 4)
        self.vocab_size = symbols + noise + 4

    def story(self, random: np.random.Generator) -> Story:
        """Random symbols, asked for once."""
        said = tuple(int(symbol) for symbol in random.integers(self.symbols, size=self.length))
        return Story((self._begin, *said, self._end), (Question((self._recall,), said),))

    def filler(self, random: np.random.Generator, tokens: int) -> np.ndarray:
        """Noise."""
        return random.integers(self._noise, self._noise + self.noise, size=tokens)


class KeyValueRecall:
    """Key-value recall: facts `k_1=v_1 .. k_p=v_p`, noise, `[query] k_i` -> `v_i` for every pair in random order.

    Args:
        keys: Size of the keys' alphabet; a document uses `pairs` of them.
        values: Size of the values' alphabet.
        pairs: p.
        noise: Size of the noise's alphabet, which is another one.
        joined: A fact is one symbol, of keys * values; otherwise two, the key and the value.
    """

    name = "recall"

    def __init__(self, keys: int = 8, values: int = 8, pairs: int = 4, noise: int = 8, joined: bool = True) -> None:
        self.keys, self.values, self.pairs, self.noise, self.joined = keys, values, pairs, noise, joined
        self.chance = 1 / values
        self._values, self._noise = keys, keys + values
        self._query = self._noise + noise
        self.start_token_id = self._query + 1
        self._facts = self._query + 2
        self.vocab_size = self._facts + (keys * values if joined else 0)

    def story(self, random: np.random.Generator) -> Story:
        """Pairs of different keys and any values."""
        keys = [int(key) for key in random.permutation(self.keys)[: self.pairs]]
        values = [int(value) for value in random.integers(self.values, size=self.pairs)]
        head = []
        for key, value in zip(keys, values, strict=True):
            head += [self._facts + key * self.values + value] if self.joined else [key, self._values + value]
        asked = random.permutation(self.pairs)
        return Story(
            tuple(head),
            tuple(Question((self._query, keys[i]), (self._values + values[i],)) for i in asked),
        )

    def filler(self, random: np.random.Generator, tokens: int) -> np.ndarray:
        """Noise."""
        return random.integers(self._noise, self._noise + self.noise, size=tokens)
