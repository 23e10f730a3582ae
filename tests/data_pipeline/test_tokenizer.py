# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tokenizers: exact round trips, ids equal to those of `tokenizers`, files that can be carried elsewhere.

Covers: data_pipeline/tokenizer_choice.py
"""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as ReferenceTokenizer

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import PRE_TOKENIZER, BPETokenizer, ByteTokenizer, own_tokenizer, train_bpe
from data_pipeline.tokenizer_choice import load_tokenizer, make_tokenizer, training_vocab_size

TEXTS = [
    "It was the best of times; it was the worst of times.\n\n\t  Wasn't it? 1859, 1860 & 18601861.\r\n" * 3,
    "Grüße an Zoë — naïve café, 東京都, 🙂🙂 and \u0000 control bytes; aaaaaaaaaaaaaaaaaaaa bbbb  \n",
]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe(TEXTS, 300)


@given(st.text())
def test_bytes_are_the_utf8_bytes(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16 and bytes(ids.astype(np.uint8)) == text.encode()
    assert tokenizer.decode(ids) == text


def test_bytes_has_257_ids() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.start_token_id) == (257, 256)
    assert tokenizer.token_bytes(255) == b"\xff" and tokenizer.token_bytes(256) == b""
    assert tokenizer.token_byte_lengths.tolist() == [1] * 256 + [0]
    assert tokenizer.decode([256, 104, 105, 0xC3]) == "hi\ufffd"
    with pytest.raises(ValueError, match="257"):
        tokenizer.decode([257])


@settings(max_examples=200)
@given(st.one_of(st.text(), st.text(alphabet="ab ' \nst1é"), st.sampled_from(TEXTS)))
def test_bpe_ids_equal_the_reference(bpe: BPETokenizer, text: str) -> None:
    reference = ReferenceTokenizer.from_str(bpe._file_text)
    reference.encode_special_tokens = True  # a text that spells the start token is a text
    ids = bpe.encode(text)
    assert ids.tolist() == reference.encode(text).ids
    assert bpe.decode(ids) == text
    assert bpe.token_byte_lengths[ids].sum() == len(text.encode())


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=40), min_size=1, max_size=6), st.text(alphabet="abc"))
def test_bpe_ids_equal_the_reference_on_repetitive_words(corpus: list[str], text: str) -> None:
    """Few letters and many overlaps: where merging by token rank could differ from merging by pair rank."""
    tokenizer = train_bpe(corpus, 290)
    assert tokenizer.encode(text).tolist() == ReferenceTokenizer.from_str(tokenizer._file_text).encode(text).ids


def test_bpe_counts_the_start_token_in_its_vocabulary(bpe: BPETokenizer) -> None:
    assert (bpe.vocab_size, bpe.start_token_id) == (300, 299)
    assert ReferenceTokenizer.from_str(bpe._file_text).get_vocab_size() == 300
    assert bpe.encode("<|start|>").max() < bpe.start_token_id  # text never becomes the special id
    assert train_bpe(["ab"], 300).vocab_size < 300


@pytest.fixture(scope="module")
def older(bpe: BPETokenizer) -> BPETokenizer:
    """The same merges in a file as this project once wrote them: a word has no longest."""
    content = json.loads(bpe._file_text)
    content["pre_tokenizer"] = PRE_TOKENIZER
    text = json.dumps(content)
    loaded = own_tokenizer(Path("older.json"), text, content)
    assert isinstance(loaded, BPETokenizer)
    return loaded


def test_bpe_takes_texts_that_its_fast_engine_refuses(bpe: BPETokenizer, older: BPETokenizer) -> None:
    text = "<|start|>" + " " * 1_500_000 + "\u00e9nd"
    with pytest.raises(ValueError, match="backtracking"):
        older._engine.encode_to_numpy(text, disallowed_special=())
    for tokenizer in (bpe, older):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint16 and ids.max() < bpe.start_token_id and bpe.decode(ids) == text


@settings(max_examples=50)
@given(st.one_of(st.text(), st.sampled_from(TEXTS), st.text(alphabet="a ", min_size=60, max_size=300)))
def test_older_files_keep_their_meaning(older: BPETokenizer, bpe: BPETokenizer, text: str) -> None:
    ids = older.encode(text)
    assert ids.tolist() == ReferenceTokenizer.from_str(older._file_text).encode(text).ids
    if max(map(len, re.split(r"(\s+)", text))) <= 48:  # with words of common length they say the same
        assert ids.tolist() == bpe.encode(text).tolist()


UNBROKEN = ["ACGTTGCA" * 400, "東京都港区" * 700, "=" * 3000, " " * 3000 + "x", "a1" * 900, "x" * 47 + "'ll" * 500]


@pytest.mark.parametrize("text", UNBROKEN, ids=["genome", "Chinese", "line", "blanks", "short words", "contractions"])
def test_words_have_an_end(bpe: BPETokenizer, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_bpe([text], 270)
    assert trained.encode(text).tolist() == ReferenceTokenizer.from_str(trained._file_text).encode(text).ids
    assert max(len(trained.token_bytes(token).decode(errors="replace")) for token in range(trained.vocab_size)) <= 49
    whole = bpe.encode(text).tolist()
    monkeypatch.setattr("data_pipeline.tokenizer._MUCH_TEXT", 500)
    for length in (700, 701, 702, 703, len(text) - 1):
        cut = bpe.safe_cut(text[:length])
        assert length - 80 < cut < length
        assert [*bpe.encode(text[:cut]).tolist(), *bpe.encode(text[cut:]).tolist()] == whole


def test_text_without_blanks_takes_no_more_time_than_its_length() -> None:
    """A quadratic way would take minutes for the longer one; the bound is wide, for busy machines."""

    def seconds(characters: int) -> float:
        generator = random.Random(characters)
        text = "".join(generator.choices("ACGT", k=characters))
        began = time.process_time()
        tokenizer = train_bpe([text], 300)
        for cut in range(0, characters, 1 << 20):
            tokenizer.safe_cut(text[cut : cut + (1 << 20)])
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return time.process_time() - began

    short = seconds(100_000)
    assert seconds(800_000) < 30 * max(short, 0.05)


def test_training_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("data_pipeline.tokenizer._TICK_SECONDS", 0.0001)
    train_bpe(TEXTS * 50, 400, lambda *now: told.append(now))
    assert told[-1] == ("training", 100, sum(map(len, TEXTS)) * 50) and len(told) > 2
    assert sorted(told) == told


def test_an_error_of_the_texts_ends_the_training() -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise UserError("the second cannot be read")

    with pytest.raises(UserError, match="the second cannot be read"):
        train_bpe(texts(), 300)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, bpe: BPETokenizer, kind: str) -> None:
    original = ByteTokenizer() if kind == "bytes" else bpe
    original.save(tmp_path)
    for loaded in (load_tokenizer(tmp_path), make_tokenizer(f"bpe:{tmp_path / 'tokenizer.json'}")):
        assert type(loaded) is type(original)
        assert loaded.sha256 == original.sha256 and loaded.vocab_size == original.vocab_size
        assert loaded.encode(TEXTS[1]).tolist() == original.encode(TEXTS[1]).tolist()
    assert (
        ReferenceTokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("hello").ids
        == original.encode("hello").tolist()
    )


def test_training_is_reproducible_in_another_process(bpe: BPETokenizer) -> None:
    code = (
        "import json, sys; from data_pipeline.tokenizer import *; print(train_bpe(json.loads(sys.argv[1]), 300).sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(TEXTS)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bpe.sha256


def test_wide_vocabularies_use_wide_ids() -> None:
    table = [bytes([value]) for value in range(256)] + [b"%05d" % number for number in range(66_000)]
    assert BPETokenizer("", table).encode("hello").dtype == np.uint32


@pytest.mark.parametrize("spec", ["byte", "bpe:", "hf:"])
def test_unknown_names_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match="choose bytes, bpe:FILE, hf:FILE or train-bpe:VOCAB"):
        make_tokenizer(spec)


def test_bad_files_and_sizes_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    file = tmp_path / "other.json"
    for content, complaint in (
        ("{", "cannot read"),
        ("[]", "not a tokenizer file"),
        ('{"model": {}}', "not a tokenizer file"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=complaint):
            load_tokenizer(file)
    ByteTokenizer().save(file)
    file.write_text(file.read_text().replace("<|start|>", "[CLS]"))
    with pytest.raises(UserError, match="another kind"):
        load_tokenizer(file)
    with pytest.raises(UserError, match="258 or more"):
        train_bpe(TEXTS, 257)
    with pytest.raises(UserError, match="258 or more"):
        training_vocab_size("train-bpe:257")
    with pytest.raises(UserError, match="whole number"):
        training_vocab_size("train-bpe:8k")
    assert training_vocab_size("train-bpe:8192") == 8192 and training_vocab_size("bytes") is None
