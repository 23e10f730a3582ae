# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Text to token ids and back: plain bytes, or byte-level BPE trained here and run by tiktoken's engine.

A tokenizer is one self-contained `tokenizer.json` in the layout of Hugging Face's `tokenizers`, so that other
tools can open it beside an exported model. Both kinds fit that layout: "bytes" is a byte-level BPE without merges
whose ids are the byte values. The last id is always the start token, which stands for no text: it is never stored
in a document, the model puts it in front of a document itself.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.background import Background
from data_pipeline.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
OTHER_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
"""What a model may have in its place: SentencePiece's and older files, which transformers turns into one."""
START_TOKEN = "<|start|>"
SMALLEST_VOCAB = 258  # the bytes, the start token, a merge
# How `tokenizers`' ByteLevel(use_regex=True) cuts text into words before merging, for tiktoken's engine.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same with an end to words: text without blanks (Chinese, genomes, base64) would be one word, and to merge in a
# word takes time that grows with its length. Hardly a word in a language with blanks is longer; from 64 on, tiktoken's
# regular expressions are half as fast.
BOUNDED_PATTERN = GPT2_PATTERN.replace("+", "{1,48}")

_BLANK_AFTER_WORD = re.compile(r"(?<=\S)[ \n]")
_SEARCHED_CHARACTERS = 1 << 16
_MUCH_TEXT = 1 << 20  # characters; so much is tokenized whole without a thought
_SEEN_AHEAD = 4  # characters after a word that say where it ends: those of the longest contraction, and one more
_TICK_SECONDS = 0.5

TokenIds = NDArray[np.uint16] | NDArray[np.uint32]


class Tokenizer(Protocol):
    """What the pipeline, the trainer and generation need from a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the start token included."""

    @property
    def start_token_id(self) -> int:
        """The id that stands before a document's first token; always `vocab_size - 1`."""

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the tokenizer file that `save` writes."""

    def encode(self, text: str) -> TokenIds:
        """The ids of exactly this text, `[tokens]`, uint16 (uint32 above 65,536 ids); no start or end token."""

    def safe_cut(self, text: str) -> int:
        """A place in the text, as late as may be, where it can be cut so that both parts have the tokens of the whole,
        whatever follows the text; 0: none was found."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; bytes that are not UTF-8 become U+FFFD, start tokens become nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; empty for the start token."""

    @property
    def token_byte_lengths(self) -> NDArray[np.int32]:
        """Bytes that each id stands for, `[vocab_size]`: what bits per byte is computed from."""

    def text_bytes(self, ids: TokenIds, begins: bool = True) -> int:
        """Bytes of the text that ids stand for; `begins`: they are the first of a document."""

    def first_loss(self, text: str, ids: TokenIds) -> int | None:
        """The first character of a text that its ids do not give back; None where they give back all of it."""

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer file; into `tokenizer.json` when `path` is a directory."""


class ByteLevelTokenizer:
    """What all kinds share: the file, the table id → bytes, and decoding."""

    def __init__(self, file_text: str, table: Sequence[bytes]) -> None:
        self._file_text = file_text
        self._table = [*table, b""]

    @property
    def vocab_size(self) -> int:
        """Number of ids, the start token included."""
        return len(self._table)

    @property
    def start_token_id(self) -> int:
        """The last id."""
        return len(self._table) - 1

    @property
    def file_bytes(self) -> bytes:
        """What `save` writes."""
        return self._file_text.encode("utf-8")

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of `file_bytes`."""
        return hashlib.sha256(self.file_bytes).hexdigest()

    @cached_property
    def token_byte_lengths(self) -> NDArray[np.int32]:
        """Bytes of each id, `[vocab_size]`."""
        return np.array([len(piece) for piece in self._table], dtype=np.int32)

    def text_bytes(self, ids: TokenIds, begins: bool = True) -> int:
        """Bytes of the text that ids stand for, wherever they are in a document."""
        return int(self.token_byte_lengths[ids].sum())

    def first_loss(self, text: str, ids: TokenIds) -> int | None:
        """None: every text comes back from its bytes."""
        return None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; ValueError outside the vocabulary."""
        if not 0 <= token_id < len(self._table):
            raise ValueError(f"token id {token_id} is outside 0..{len(self._table) - 1}")
        return self._table[token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, U+FFFD where it is not UTF-8."""
        return b"".join(self.token_bytes(int(token_id)) for token_id in ids).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Writes the file; as `tokenizer.json` into a directory."""
        target = Path(path)
        if target.is_dir():
            target = target / TOKENIZER_FILE
        target.write_bytes(self.file_bytes)


class ByteTokenizer(ByteLevelTokenizer):
    """257 ids: the 256 byte values, then the start token (256)."""

    def __init__(self) -> None:
        table = [bytes([value]) for value in range(256)]
        super().__init__(_file_text(table, [], PRE_TOKENIZER), table)

    def encode(self, text: str) -> TokenIds:
        """The bytes of the text's UTF-8, as uint16."""
        return self.encode_bytes(text.encode("utf-8"))

    @staticmethod
    def encode_bytes(content: bytes) -> TokenIds:
        """The values of any bytes (an image's grey values, for instance), as uint16."""
        return np.frombuffer(content, dtype=np.uint8).astype(np.uint16)

    def safe_cut(self, text: str) -> int:
        """Anywhere: the end."""
        return len(text)


class BPETokenizer(ByteLevelTokenizer):
    """Byte-level BPE; ids equal those of `tokenizers` for the same file, found by tiktoken's faster engine.

    The engine releases the interpreter's lock while it works, so threads encode in parallel.

    Args:
        file_text: The tokenizer's file.
        table: Bytes of each id, without the start token.
        pattern: How text is cut into words: `BOUNDED_PATTERN`, or `GPT2_PATTERN` in older files.
    """

    def __init__(self, file_text: str, table: Sequence[bytes], pattern: str = BOUNDED_PATTERN) -> None:
        import tiktoken

        super().__init__(file_text, table)
        self._pattern = pattern
        self._engine = tiktoken.Encoding(
            name="memformer-bpe",
            pat_str=pattern,
            mergeable_ranks={piece: rank for rank, piece in enumerate(table)},
            special_tokens={START_TOKEN: len(table)},
            explicit_n_vocab=len(table) + 1,
        )

    def encode(self, text: str) -> TokenIds:
        """The ids of exactly this text; the start token's name in a text is text like any other."""
        try:
            ids = self._engine.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # its regex engine gives up on runs of a million blanks and the like
            ids = np.array(self._reference.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        return ids.astype(np.uint16) if self.vocab_size <= 1 << 16 else ids.astype(np.uint32)

    def safe_cut(self, text: str) -> int:
        """Before a blank or line end that follows something else, which no word reaches over; where there is none in
        much text, behind a word, if words have an end. The text must begin where a word does."""
        end = len(text)
        while end > 0:
            start = max(end - _SEARCHED_CHARACTERS, 0)
            places = [match.start() for match in _BLANK_AFTER_WORD.finditer(text, start, end)]
            if places:
                break
            end = start
        cut = places[-1] if end > 0 else 0
        if len(text) - cut < _MUCH_TEXT or self._pattern != BOUNDED_PATTERN:
            return cut
        last = cut
        for word in self._words.finditer(text, cut):
            if word.end() > len(text) - _SEEN_AHEAD:
                break  # what follows the text might belong to this word
            last = word.end()
        return last

    @cached_property
    def _words(self) -> Any:
        import regex  # tiktoken needs it too

        return regex.compile(self._pattern)

    @cached_property
    def _reference(self) -> Any:
        """The same tokenizer in its own library: slower, and without limits on the text."""
        from tokenizers import Tokenizer as Reference

        reference = Reference.from_str(self._file_text)
        reference.encode_special_tokens = True  # the start token's name in a text is text
        return reference


def train_bpe(
    texts: Iterable[str], vocab_size: int, progress: Callable[[str, int, int], None] | None = None
) -> BPETokenizer:
    """Trains byte-level BPE on texts; the same texts in the same order give the same file.

    Args:
        texts: The training texts, one a document.
        vocab_size: Ids wanted in all: 256 bytes, the merges, and the start token. A text with too few distinct
            pairs gives fewer; the tokenizer's own `vocab_size` is what counts.
        progress: Called now and then as `progress("training", texts, characters)`, with what was read so far.

    Raises:
        UserError: `vocab_size` leaves no room for a merge.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(
            f"train-bpe:{vocab_size}: the ids hold 256 bytes and a start token; ask for {SMALLEST_VOCAB} or more"
        )
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BOUNDED_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    read = [0, 0]
    left = threading.Event()

    def counted() -> Iterator[str]:
        for text in texts:
            read[0] += 1
            read[1] += len(text)
            if left.is_set():
                return
            yield text

    # In a thread, since the library gives no sign until it has done all, and hears none: this one tells how far it is,
    # and ends at once when a person interrupts it.
    thread = Background(1, "train-bpe")
    try:
        done = thread.submit(lambda: trained.train_from_iterator(counted(), trainer))
        while not wait([done], _TICK_SECONDS).done:
            if progress:
                progress("training", *read)
        done.result()
    except BaseException:
        left.set()
        wait([done], _TICK_SECONDS)  # it must not ask for texts while the interpreter ends
        raise
    finally:
        thread.close()
    if progress:
        progress("training", *read)
    model = json.loads(trained.to_str())["model"]
    table = _table_of(model["vocab"])
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    return BPETokenizer(_file_text(table, merges, BOUNDED_PRE_TOKENIZER), table)


def read_tokenizer_file(path: str | Path, mend: str) -> tuple[Path, str, Any]:
    """A tokenizer's file (that of the directory, where one is given), its text, and the text as JSON.

    Raises:
        UserError: There is no such file (`mend` says what to do), or it is not JSON.
    """
    file = Path(path)
    if file.is_dir():
        file = file / TOKENIZER_FILE
    try:
        text = file.read_bytes().decode("utf-8")
        return file, text, json.loads(text)
    except FileNotFoundError:
        others = [name for name in OTHER_TOKENIZER_FILES if (file.parent / name).is_file()]
        if file == Path(path) or not others:
            raise UserError(f"no tokenizer at {file}; {mend}") from None
        raise UserError(
            f"no tokenizer at {file}, only {', '.join(others)}; let transformers write it: "
            "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not JSON: {error}"
        raise UserError(f"cannot read the tokenizer {file} ({reason}); {mend}") from None
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {file}: {error.strerror or error}") from None


def own_tokenizer(file: Path, text: str, content: Any) -> ByteTokenizer | BPETokenizer:
    """The tokenizer of a file that this project wrote, as `read_tokenizer_file` gives it.

    Raises:
        UserError: It is a tokenizer file of other make.
    """
    try:
        table = _table_of(content["model"]["vocab"])
        added = content["added_tokens"]
        merges = content["model"]["merges"]
        pattern = _PATTERNS.get(json.dumps(content["pre_tokenizer"], sort_keys=True))
        starts = [(token["id"], token["content"]) for token in added] == [(len(table), START_TOKEN)]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a tokenizer file of this project ({type(error).__name__}: {error})") from None
    if pattern is None or not starts or len(table) < 256:
        raise UserError(f"{file} is a tokenizer of another kind; give one made by `memformer data build`")
    if not merges:
        tokenizer = ByteTokenizer()
        if tokenizer.sha256 == hashlib.sha256(text.encode("utf-8")).hexdigest():
            return tokenizer
    return BPETokenizer(text, table, pattern)


def has_own_words(content: Any) -> bool:
    """Whether a `tokenizer.json` cuts text into words as the files of this project do."""
    return isinstance(content, dict) and json.dumps(content.get("pre_tokenizer"), sort_keys=True) in _PATTERNS


def _printable_bytes() -> dict[int, str]:
    """The published byte-level alphabet: printable Latin-1 stands for itself, the other bytes from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    return {value: chr(value) for value in printable} | {value: chr(256 + i) for i, value in enumerate(others)}


_TO_CHARACTER = _printable_bytes()
TO_BYTE = {character: value for value, character in _TO_CHARACTER.items()}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PRE_TOKENIZER: dict[str, Any] = {**_BYTE_LEVEL, "use_regex": True}  # of bytes, and of older files
BOUNDED_PRE_TOKENIZER: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": BOUNDED_PATTERN}, "behavior": "Isolated", "invert": False},
        {**_BYTE_LEVEL, "use_regex": False},
    ],
}
_PATTERNS = {
    json.dumps(PRE_TOKENIZER, sort_keys=True): GPT2_PATTERN,
    json.dumps(BOUNDED_PRE_TOKENIZER, sort_keys=True): BOUNDED_PATTERN,
}


def _table_of(vocab: dict[str, int]) -> list[bytes]:
    """id → bytes of a vocabulary that maps written-out tokens to ids 0..n-1."""
    table: list[bytes] = [b""] * len(vocab)
    for token, token_id in vocab.items():
        table[token_id] = bytes(TO_BYTE[character] for character in token)
    if len(set(table)) != len(table) or b"" in table:
        raise ValueError("the ids of the vocabulary are not 0..n-1")
    return table


def _file_text(table: Sequence[bytes], merges: Iterable[tuple[Any, ...]], pre_tokenizer: dict[str, Any]) -> str:
    """The tokenizer file in the layout of `tokenizers`; a fixed order of keys makes its bytes reproducible."""
    vocab = {"".join(_TO_CHARACTER[value] for value in piece): token_id for token_id, piece in enumerate(table)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(table), "content": START_TOKEN, **flags}],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": PRE_TOKENIZER,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
