# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tokenizers made elsewhere: a byte-level `tokenizer.json` of Hugging Face's library, run by that library.

The file is taken as it is, but for this project's start token, which is added with the next free id. GPT-2, Llama 3,
Qwen and most later models have such a file. Its own special tokens are kept as ids that no text becomes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import START_TOKEN, TO_BYTE, ByteLevelTokenizer, TokenIds, read_tokenizer_file


class HFTokenizer(ByteLevelTokenizer):
    """A tokenizer file of Hugging Face's library with this project's start token in it.

    Args:
        file_text: The file.
        where: Names it in errors.

    Raises:
        UserError: It is not a byte-level tokenizer.
    """

    def __init__(self, file_text: str, where: str) -> None:
        from tokenizers import Tokenizer as Engine

        try:
            content = json.loads(file_text)
            table = _table_of(content)
            self._engine = Engine.from_str(file_text)
        except Exception as error:  # the library raises plain Exception for a file that it cannot read
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{where} is not a byte-level tokenizer.json ({reason}); give another tokenizer") from None
        self._engine.encode_special_tokens = True  # the name of a special token in a text is text
        self._engine.no_truncation()
        self._engine.no_padding()
        super().__init__(file_text, table)

    def encode(self, text: str) -> TokenIds:
        """The ids of exactly this text, without the tokens that the file would put around it."""
        ids = self._engine.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def safe_cut(self, text: str) -> int:
        """Before a blank between two letters: the word patterns in use end a word there."""
        place = text.rfind(" ", 0, len(text) - 1)
        while place > 0 and not (text[place - 1].isalpha() and text[place + 1].isalpha()):
            place = text.rfind(" ", 0, place)
        return max(place, 0)


def import_tokenizer(path: str | Path) -> HFTokenizer:
    """Reads `tokenizer.json` (or a directory with one) and adds the start token, if it does not have it.

    Raises:
        UserError: There is no such file, or it is not a byte-level tokenizer.
    """
    file, text, content = read_tokenizer_file(path, "give the path of a tokenizer.json")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{file} is not a tokenizer.json of Hugging Face's tokenizers; give another file")
    added = content.setdefault("added_tokens", [])
    if not any(token["content"] == START_TOKEN for token in added):
        vocab = content["model"].get("vocab")
        if not isinstance(vocab, dict):
            raise UserError(f"{file} is a tokenizer of another kind; give a byte-level BPE")
        number = 1 + max([*vocab.values(), *(token["id"] for token in added)], default=-1)
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": number, "content": START_TOKEN, **flags})
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    return HFTokenizer(text, str(file))


def _table_of(content: dict[str, Any]) -> Sequence[bytes]:
    """id → bytes, without the start token, which must be the last id."""
    decoders = [content["decoder"], *(content["decoder"].get("decoders") or [])] if content.get("decoder") else []
    if not any(decoder["type"] == "ByteLevel" for decoder in decoders):
        raise ValueError("its decoder is not ByteLevel")
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    vocab = {token_id: token for token, token_id in content["model"]["vocab"].items()}
    last = max([*special, *vocab])
    if special.get(last) != START_TOKEN:
        raise ValueError(f"its last id is not {START_TOKEN}")
    table = []
    for token_id in range(last):
        if token_id in special:
            table.append(special[token_id].encode("utf-8"))
        else:
            table.append(bytes(TO_BYTE[character] for character in vocab.get(token_id, "")))
    return table
