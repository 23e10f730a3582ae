# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents become pieces that are tokenized by themselves: the same tokens, and no more work than there is text."""

from pathlib import Path

import pytest

from data_pipeline import large_files
from data_pipeline.records import Corpus
from data_pipeline.sources import find_files
from data_pipeline.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, train_bpe
from data_pipeline.tokenizing import pieces, tokenized


class Looking(ByteTokenizer):
    """Counts the characters that are searched for a place to cut, and finds none."""

    searched = 0

    def safe_cut(self, text: str) -> int:
        self.searched += len(text)
        return 0


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(large_files, "PART_BYTES", 1000)
    (tmp_path / "a.txt").write_text("GATTACA" * 10_000)
    (tmp_path / "b.txt").write_text("short")
    return Corpus(find_files([tmp_path]).files)


def joined(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for piece, _, tokens, _ in tokenized(pieces(corpus, tokenizer), tokenizer, 2):
        found.setdefault(piece.name, []).extend(tokens.tolist())
    return found


def test_a_text_that_cannot_be_cut_is_not_searched_again_for_every_part(corpus: Corpus) -> None:
    tokenizer = Looking()
    found = joined(corpus, tokenizer)
    assert bytes(found["a.txt"]) == b"GATTACA" * 10_000 and bytes(found["b.txt"]) == b"short"
    assert tokenizer.searched < 3 * 70_000  # each of the 70 parts from the start would be 2.5 million


def test_text_without_blanks_is_given_away_in_parts(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.tokenizer._MUCH_TEXT", 500)
    tokenizer: BPETokenizer = train_bpe(["GATTACA" * 100], 280)
    lengths = [len(piece.content) for piece in pieces(corpus, tokenizer)]
    assert len(lengths) > 60 and max(lengths) < 1200
    assert joined(corpus, tokenizer)["a.txt"] == tokenizer.encode("GATTACA" * 10_000).tolist()
