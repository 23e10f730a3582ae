# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tokenizers made elsewhere: a `tokenizer.json` of Hugging Face's library, run by that library.

The file is taken as it is, but for a start token of this project, which is added behind its last id. Byte-level files
(GPT-2, Llama 3, Qwen), those made from SentencePiece (Llama 2, Gemma, T5) and any other kind are opened; whether a text
comes back from its tokens is asked of each text that is built (`first_loss`), since a file may change, drop or not know
some texts and keep all others. Its own special tokens are ids that no text becomes and that stand for no text.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import START_TOKEN, TO_BYTE, ByteLevelTokenizer, TokenIds, read_tokenizer_file

# Some files have a token of the first name, for their own purpose (gpt-oss); the second is then ours.
START_NAMES = (START_TOKEN, "<|memformer-start|>")
_PART_CHARACTERS = 1 << 16  # longer texts are given to the engine in parts: some kinds take the whole for one word
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK_INSIDE = re.compile(rb"[^\s] ")


class HFTokenizer(ByteLevelTokenizer):
    """A tokenizer file of Hugging Face's library with this project's start token as its last id.

    Args:
        file_text: The file.
        where: Names it in errors.

    Raises:
        UserError: The library cannot read it, or its last id is no start token.
    """

    def __init__(self, file_text: str, where: str) -> None:
        self._engine = _engine(file_text, where)
        self._where = where
        self._content: dict[str, Any] = json.loads(file_text)
        start = start_of(self._content)
        vocab = {token_id: token for token, token_id in self._engine.get_vocab(with_added_tokens=True).items()}
        own = max((token_id for token_id, token in vocab.items() if token not in START_NAMES), default=-1)
        if start is None or start <= own:
            raise UserError(f"{where}: its last id is not {START_TOKEN}; import it with --tokenizer hf:{where}")
        self._byte_level = "ByteLevel" in kinds_of(self._content.get("decoder"))
        self._special = [
            token["id"] for token in self._content["added_tokens"] if token.get("special") and token["id"] < start
        ]
        tokens = [vocab.get(token_id, "") for token_id in range(start)]
        super().__init__(file_text, _byte_level_table(tokens) if self._byte_level else self._table_of(tokens))
        self._adds_blank, self._hides_blank = self._blanks()

    @property
    def description(self) -> str:
        """What kind of tokenizer it is, for people: its model and what it does to texts before."""
        steps = [*kinds_of(self._content.get("normalizer")), *kinds_of(self._content.get("pre_tokenizer"))]
        kind = self._content["model"].get("type", "a model of unknown type")
        return f"{kind} with {', '.join(dict.fromkeys(steps))}" if steps else str(kind)

    def encode(self, text: str) -> TokenIds:
        """The ids of exactly this text, without the tokens that the file would put around it.

        Raises:
            UserError: It has no token for something in the text.
        """
        ids: list[int] = []
        at, size = 0, _PART_CHARACTERS
        while at < len(text):
            part = text[at : at + size]
            if at + size < len(text):
                cut = self._cut(part) if self._can_be_cut else 0
                if not cut:
                    size *= 2
                    continue
                part = part[:cut]
            ids += self._ids(self._continuing if at else self._engine, part)
            at, size = at + len(part), _PART_CHARACTERS
        return np.array(ids, dtype=np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def safe_cut(self, text: str) -> int:
        """Before a blank between two letters, where no token reaches over that; 0 if a text must be seen from its
        start, since something is put in front of it."""
        return self._cut(text) if self._can_be_cut and self._continuing is self._engine else 0

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, U+FFFD where it is not UTF-8."""
        if self._byte_level:
            text = super().decode(ids)
            return text[1:] if self._adds_blank and text.startswith(" ") else text
        return self._decoded(self._engine, [int(token_id) for token_id in ids if token_id < self.start_token_id])

    def first_loss(self, text: str, ids: TokenIds) -> int | None:
        """The first character of a text that its ids do not give back; None where they give back all of it."""
        found = self._decoded(self._engine, ids.tolist())
        if self._byte_level and self._adds_blank:
            found = found.removeprefix(" ")
        if found == text:
            return None
        return next(
            (at for at, (one, other) in enumerate(zip(text, found, strict=False)) if one != other),
            min(len(text), len(found)),
        )

    @cached_property
    def token_byte_lengths(self) -> NDArray[np.int32]:
        """Bytes of text that each id stands for, `[vocab_size]`: none for special tokens."""
        lengths: NDArray[np.int32] = super().token_byte_lengths.copy()
        lengths[self._special] = 0
        return lengths

    def text_bytes(self, ids: TokenIds, begins: bool = True) -> int:
        """Bytes of the text that ids stand for; `begins`: they are the first of a document."""
        hidden = bool(
            begins and len(ids) and (self._adds_blank or self._hides_blank) and self._table[int(ids[0])][:1] == b" "
        )
        return super().text_bytes(ids) - hidden

    def _ids(self, engine: Any, text: str) -> list[int]:
        try:
            ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain Exception where it has no token for something
            reason = " ".join(str(error).split())
            raise UserError(f"{self._where} cannot encode a text ({reason}); give another tokenizer") from None
        return ids

    def _probe(self, engine: Any, text: str) -> list[int]:
        """The ids of a text; none where it has no token for something in it."""
        try:
            return self._ids(engine, text)
        except UserError:
            return []

    @staticmethod
    def _decoded(engine: Any, ids: Sequence[int]) -> str:
        text: str = engine.decode(ids, skip_special_tokens=False)
        return text

    def _blanks(self) -> tuple[bool, bool]:
        """Whether a blank is put in front of a text and comes back, and whether one is and does not."""
        first = self._probe(self._engine, "a")
        if not first:
            return False, False
        decoded = self._decoded(self._engine, first)
        return decoded == " a", decoded == "a" and self._table[first[0]][:1] == b" "

    @cached_property
    def _continuing(self) -> Any:
        """The engine for what goes on in the middle of a text: the same, or one that puts no blank in front."""
        content = json.loads(self._engine.to_str())
        changed = {name: _without_blank(content[name]) for name in ("normalizer", "pre_tokenizer")}
        changed["decoder"] = _without_blank(content["decoder"], decodes=True)
        if all(content[name] == step for name, step in changed.items()):
            return self._engine
        return _engine(json.dumps(content | changed), self._where)

    @cached_property
    def _can_be_cut(self) -> bool:
        """Whether both parts of a text that is cut before a blank between letters have the tokens of the whole."""
        for token_id, piece in enumerate(self._table):
            if _BLANK_INSIDE.search(piece) and token_id not in self._special:
                return False
        return self._decoded(self._continuing, self._probe(self._continuing, " a")) == " a"

    @staticmethod
    def _cut(text: str) -> int:
        place = text.rfind(" ", 0, len(text) - 1)
        while place > 0 and not (text[place - 1].isalpha() and text[place + 1].isalpha()):
            place = text.rfind(" ", 0, place)
        return max(place, 0)

    def _table_of(self, tokens: list[str]) -> list[bytes]:
        """id → bytes: what an id adds between two others."""
        decoder = _steps_of(self._content.get("decoder"))
        fallback = "ByteFallback" in kinds_of(self._content.get("decoder"))
        plain = [_plain(token, decoder) for token in tokens]
        known = (token_id for token_id, token in enumerate(tokens) if token and token_id not in self._special)
        frame = next(iter([*self._probe(self._engine, "a")[-1:], *known]), 0)
        alone, twice = self._decoded(self._engine, [frame]), self._decoded(self._engine, [frame, frame])
        table = []
        for token_id, (token, text) in enumerate(zip(tokens, plain, strict=True)):
            byte = _BYTE.fullmatch(token) if fallback else None
            if byte:
                table.append(bytes([int(byte[1], 16)]))
                continue
            if text is None:  # the library decodes whole sequences only
                between = self._decoded(self._engine, [frame, token_id, frame])
                text = between.removeprefix(alone).removesuffix(twice.removeprefix(alone))
            table.append(text.encode("utf-8"))
        return table


def import_tokenizer(path: str | Path) -> HFTokenizer:
    """Reads `tokenizer.json` (or a directory with one) and adds the start token, if it is not its last id.

    Raises:
        UserError: There is no such file, or it is not a tokenizer of Hugging Face's library.
    """
    file, text, content = read_tokenizer_file(path, "give the path of a tokenizer.json, or of a directory with one")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{file} is not a tokenizer.json of Hugging Face's tokenizers; give another file")
    added = content.get("added_tokens") or []
    ids = _engine(text, str(file)).get_vocab(with_added_tokens=True)
    last = max([*ids.values(), *(token["id"] for token in added)], default=-1)
    if start_of(content) != last:
        name = next(name for name in START_NAMES if name not in ids)
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content["added_tokens"] = [*added, {"id": last + 1, "content": name, **flags}]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    return HFTokenizer(text, str(file))


def number_tokenizer(ids: int) -> HFTokenizer:
    """Stands in for a tokenizer that is not at hand: `ids` ids, each written as its number.

    Raises:
        UserError: There are none.
    """
    if ids < 1:
        raise UserError(f"a vocabulary of {ids} ids holds nothing; give 1 or more")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids, "content": START_TOKEN, **flags}],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {str(number): number for number in range(ids)},
            "unk_token": "unknown",
        },
    }
    return HFTokenizer(json.dumps(content, separators=(",", ":")) + "\n", f"the vocabulary of {ids} ids")


def start_of(content: Any) -> int | None:
    """The id of this project's start token in a tokenizer's file: the last of the added tokens; None if it has none."""
    added = content.get("added_tokens") if isinstance(content, dict) else None
    last = added[-1] if isinstance(added, list) and added else None
    if not isinstance(last, dict) or last.get("content") not in START_NAMES or not last.get("special"):
        return None
    token_id = last.get("id")
    return token_id if isinstance(token_id, int) else None


def kinds_of(step: Any) -> list[str]:
    """The types of a normalizer, pre-tokenizer or decoder, those inside of a sequence one by one."""
    return [str(each.get("type")) for each in _steps_of(step)]


def _steps_of(step: Any) -> list[dict[str, Any]]:
    if not isinstance(step, dict):
        return []
    inner = next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), None)
    return [step] if inner is None else [each for part in inner for each in _steps_of(part)]


def _plain(token: str, decoder: Sequence[dict[str, Any]]) -> str | None:
    """What a token adds inside of a text, where the decoder looks at tokens one by one; None where it does not."""
    if not decoder:
        return f" {token}"
    for step in decoder:
        if step.get("type") == "Replace" and "String" in step["pattern"]:
            token = token.replace(step["pattern"]["String"], step["content"])
        elif step.get("type") == "Metaspace":
            token = token.replace(step["replacement"], " ")
        elif step.get("type") not in ("ByteFallback", "Fuse", "Strip"):
            return None
    return token


def _engine(file_text: str, where: str) -> Any:
    from tokenizers import Tokenizer as Engine

    try:
        engine = Engine.from_str(file_text)
    except Exception as error:  # the library raises plain Exception for a file that it cannot read
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{where} is not a tokenizer.json that can be read ({reason}); give another tokenizer"
        ) from None
    engine.encode_special_tokens = True  # the name of a special token in a text is text
    engine.no_truncation()
    engine.no_padding()
    if hasattr(engine.model, "dropout"):
        engine.model.dropout = None  # a text has the same tokens each time
    return engine


def _byte_level_table(tokens: Sequence[str]) -> list[bytes]:
    """id → bytes of tokens written in the byte-level alphabet; those that are not are what they say."""
    table = []
    for token in tokens:
        try:
            table.append(bytes(TO_BYTE[character] for character in token))
        except KeyError:
            table.append(token.encode("utf-8"))
    return table


def _without_blank(step: Any, decodes: bool = False) -> Any:
    """A step that neither puts a blank in front of a text nor, where it `decodes`, takes one away there."""
    if not isinstance(step, dict):
        return step
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in step:
            inner = [changed for each in step[key] if (changed := _without_blank(each, decodes)) is not None]
            return {**step, key: inner}
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "Strip" and decodes:
        return {**step, "start": 0}
    # The decoder of this type has the field too, and does not ask it.
    return {**step, "add_prefix_space": False} if step["type"] == "ByteLevel" and not decodes else step
