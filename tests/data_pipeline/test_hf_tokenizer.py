# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tokenizers of other make, of every kind: what is built with one gives back its texts and opens again, or is refused.

Covers: data_pipeline/hf_tokenizer.py, data_pipeline/losses.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from data_pipeline import DocumentIndex, ShardStore, UserError, build_dataset, hf_tokenizer
from data_pipeline.hf_tokenizer import import_tokenizer, number_tokenizer
from data_pipeline.tokenizer import BPETokenizer, ByteTokenizer, train_bpe
from data_pipeline.tokenizer_choice import load_tokenizer
from data_pipeline.verify import verify_dataset

TEXTS = [
    "a river and a hill tell of the road, again and again",
    "Zoë sees 東京\tand  a naïve café\r\n",
    "the hill  of a",
]
HARD = [
    *TEXTS,
    " begins with a blank",
    "  two, and at the end too ",
    "🙂\u0000\n\n\nand <s> or </s>, <|start|> and <|endoftext|>",
    "x" * 300 + " y",
]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def without_bytes_as_added(content: dict[str, Any]) -> dict[str, Any]:
    """Training knows the byte tokens as special ones; in real files they are tokens like others."""
    added = [token for token in content["added_tokens"] if token["content"] not in BYTES]
    return {**content, "added_tokens": added}


def llama() -> dict[str, Any]:
    """As the file of Llama 2: a blank is put in front, the whole text is one word, unknown characters are bytes."""
    engine = Engine(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    engine.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    engine.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # type: ignore[assignment]
    special = ["<unk>", "<s>", "</s>", *BYTES]
    engine.train_from_iterator(
        TEXTS[:1] * 9, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    )
    engine.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return without_bytes_as_added({**json.loads(engine.to_str()), "pre_tokenizer": None})


def gemma() -> dict[str, Any]:
    """As the file of Gemma: like Llama's, and nothing is put in front."""
    content = llama()
    content["normalizer"] = content["normalizer"]["normalizers"][1]
    content["decoder"]["decoders"].pop()
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return content


def unigram() -> dict[str, Any]:
    """A unigram model with bytes for unknown characters and a blank in front."""
    engine = Engine(models.Unigram())
    engine.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    engine.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=320, special_tokens=["<unk>", *BYTES], unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator(TEXTS[:1] * 9, trainer)
    content = without_bytes_as_added(json.loads(engine.to_str()))
    content["model"]["byte_fallback"] = True
    return content


def byte_level(prefix: bool = False, alphabet: bool = True) -> dict[str, Any]:
    """As GPT-2's file, with its special token behind the vocabulary."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # type: ignore[assignment]
    engine.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    engine.train_from_iterator(
        TEXTS[:1] * 9, trainers.BpeTrainer(vocab_size=290, initial_alphabet=letters, show_progress=False)
    )
    engine.add_special_tokens(["<|endoftext|>"])
    content: dict[str, Any] = json.loads(engine.to_str())
    return content


def with_gaps() -> dict[str, Any]:
    """Ids that no token has, and a token for runs of blanks that is not special."""
    content = byte_level()
    content["model"]["vocab"] |= {"unused": 400}
    engine = Engine.from_str(json.dumps(content))
    engine.add_tokens([AddedToken("    ", normalized=False), "hill"])
    found: dict[str, Any] = json.loads(engine.to_str())
    return found


def shuffled_ids() -> dict[str, Any]:
    """A file that looks like one of ours, with merges in another order than the ids."""
    content = byte_level()
    vocab = content["model"]["vocab"]
    last = max(vocab.values())
    content["model"]["vocab"] = {
        token: 256 + (last - number) if number >= 256 else number for token, number in vocab.items()
    }
    content["added_tokens"] = []
    return content


def write(folder: Path, content: dict[str, Any]) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


KINDS: list[Callable[[], dict[str, Any]]] = [llama, gemma, unigram, byte_level, with_gaps, shuffled_ids]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_built_gives_back_its_texts_and_opens_again(tmp_path: Path, kind: Callable[[], dict[str, Any]]) -> None:
    file = write(tmp_path, kind())
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in HARD))
    build_dataset([tmp_path / "docs.jsonl"], tmp_path / "set", tokenizer=f"hf:{file}", workers=2)
    index = DocumentIndex.load(tmp_path / "set")
    assert verify_dataset(index) == [] and index.vocab_size == index.tokenizer.start_token_id + 1
    reference, store = Engine.from_file(str(file)), ShardStore(index)
    reference.encode_special_tokens = True
    assert index.vocab_size == 2 + max(reference.get_vocab(with_added_tokens=True).values())
    for document, text in enumerate(HARD):
        ids = store.read(document, 0, int(index.lengths[document]))
        assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids
        assert index.tokenizer.decode(ids.tolist()) == text
        # Bits per byte need the bytes of the text, for tokens that are adopted too.
        assert index.byte_lengths[document] == len(text.encode()) == index.tokenizer.text_bytes(ids)
        shown = b"".join(index.tokenizer.token_bytes(token) for token in ids.tolist())
        assert shown.decode().removeprefix(" ") == text.removeprefix(" ") or shown.decode() == f" {text}"
    again = import_tokenizer(tmp_path / "set")
    assert again.sha256 == index.manifest.tokenizer_sha256  # a start token is added once


def test_a_model_s_directory_is_taken_by_its_tokenizer_json_alone(tmp_path: Path) -> None:
    """As `hf:DIRECTORY` names it: the same tokenizer as by the file; without it, one line and a mend."""
    model = tmp_path / "model"
    model.mkdir()
    file = write(model, llama())
    assert import_tokenizer(model).sha256 == import_tokenizer(file).sha256
    (tmp_path / "text.txt").write_text(HARD[1])
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"^no tokenizer at .*model/tokenizer.json; give the path of a tokenizer.json, or"
    ):
        build_dataset([tmp_path / "text.txt"], tmp_path / "set", tokenizer=f"hf:{model}")
    (model / "tokenizer.model").write_bytes(b"\x0a\x0b")
    with pytest.raises(
        UserError, match=r"tokenizer.json, only tokenizer.model; let transformers write it: Auto"
    ) as said:
        build_dataset([tmp_path / "text.txt"], tmp_path / "set", tokenizer=f"hf:{model}")
    assert "\n" not in str(said.value)
    with pytest.raises(UserError, match=r"tokenizer.model \(not JSON: .*\); give the path of a tokenizer.json"):
        import_tokenizer(model / "tokenizer.model")
    (model / "tokenizer.model").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"tokenizer.model \(not UTF-8\); give"):
        import_tokenizer(model / "tokenizer.model")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("kind", [llama, gemma, unigram])
def test_the_bytes_of_a_token_are_what_it_adds_to_a_text(tmp_path: Path, kind: Callable[[], dict[str, Any]]) -> None:
    tokenizer = import_tokenizer(write(tmp_path, kind()))
    first = tokenizer.encode("a").tolist()
    for token in range(tokenizer.start_token_id):
        name = tokenizer.token_bytes(token)
        if name.isascii() and token not in tokenizer._special:
            assert tokenizer.decode([*first, token, *first]).encode().startswith(b"a" + name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("characters", [7, 40])
def test_long_texts_have_the_tokens_of_the_whole(
    tmp_path: Path, kind: Callable[[], dict[str, Any]], characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kinds would take a long text for one word; they are given parts of it."""
    tokenizer = import_tokenizer(write(tmp_path, kind()))
    text = "".join(HARD)
    whole = tokenizer.encode(text).tolist()
    monkeypatch.setattr(hf_tokenizer, "_PART_CHARACTERS", characters)
    assert tokenizer.encode(text).tolist() == whole
    cut = tokenizer.safe_cut(text)
    assert cut == 0 or [*tokenizer.encode(text[:cut]), *tokenizer.encode(text[cut:])] == whole
    assert (cut == 0) == (kind in (llama, unigram)), "where a blank is put in front, a text is not cut"


def test_tokens_over_blanks_keep_a_text_in_one_piece(tmp_path: Path) -> None:
    content = byte_level()
    content["pre_tokenizer"]["use_regex"] = False
    content["model"]["vocab"] |= {"dĠa": 298}
    content["model"]["merges"].append(["d", "Ġa"])
    content["model"]["vocab"].setdefault("Ġa", 299)
    content["added_tokens"] = []
    tokenizer = import_tokenizer(write(tmp_path, content))
    assert tokenizer.safe_cut("a river and a hill") == 0 and tokenizer.decode(tokenizer.encode(HARD[0])) == HARD[0]


def test_a_blank_that_comes_back_is_taken_off_again(tmp_path: Path) -> None:
    tokenizer = import_tokenizer(write(tmp_path, byte_level(prefix=True)))
    for text in ("a river", "river"):
        ids = tokenizer.encode(text)
        assert tokenizer.first_loss(text, ids) is None
        assert tokenizer.decode(ids) == text and tokenizer.text_bytes(ids) == len(text)
    assert tokenizer.first_loss(" a", tokenizer.encode(" a")) == 0, "nobody can tell it from the text without it"


def word_piece() -> dict[str, Any]:
    engine = Engine(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    engine.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    engine.decoder = decoders.WordPiece()  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    engine.train_from_iterator(TEXTS[:1] * 9, trainer)
    content: dict[str, Any] = json.loads(engine.to_str())
    return content


def test_one_kind_is_taken_where_it_keeps_the_texts_and_refused_where_not(tmp_path: Path) -> None:
    file = write(tmp_path, word_piece())
    (tmp_path / "kept.txt").write_text("a river and a hill")
    build_dataset([tmp_path / "kept.txt"], tmp_path / "set", tokenizer=f"hf:{file}")
    index = DocumentIndex.load(tmp_path / "set")
    ids = ShardStore(index).read(0, 0, int(index.lengths[0]))
    assert index.tokenizer.decode(ids.tolist()) == "a river and a hill" and index.tokenizer.text_bytes(ids) == 18
    texts = ["a river", "a river and A Hill", "the hill", "THE ROAD"]
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps({"text": text, "id": text[-4:]}) for text in texts))
    with pytest.raises(UserError) as caught:
        build_dataset([tmp_path / "docs.jsonl"], tmp_path / "lost", tokenizer=f"hf:{file}")
    said = str(caught.value)
    assert "(WordPiece with BertNormalizer, BertPreTokenizer) does not give back 2 of 4 documents" in said
    assert "the first is Hill, where 'A Hill' at character 12 comes back as 'a hill'" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs.jsonl", "kept.txt", "set", "tokenizer.json"]
    many = "\n".join(json.dumps({"text": f"{number} A"}) for number in range(500))
    (tmp_path / "docs.jsonl").write_text(many)
    with pytest.raises(UserError, match="does not give back 100 or more of 100 documents"):
        build_dataset([tmp_path / "docs.jsonl"], tmp_path / "lost", tokenizer=f"hf:{file}")


def nfc() -> dict[str, Any]:
    return {**byte_level(), "normalizer": {"type": "NFC"}}


@pytest.mark.parametrize(
    ("content", "text", "place"),
    [
        (nfc, "ok e\u0301", 3),
        (lambda: byte_level(alphabet=False), "a hill in 東京", 10),
        (lambda: {**byte_level(), "normalizer": {"type": "Lowercase"}}, "a Hill", 2),
    ],
)
def test_byte_level_files_are_checked_too(
    tmp_path: Path, content: Callable[[], dict[str, Any]], text: str, place: int
) -> None:
    file = write(tmp_path, content())
    (tmp_path / "docs.txt").write_text(text)
    with pytest.raises(UserError, match=rf"1 of 1 documents: the first is docs\.txt, where .* at character {place} "):
        build_dataset([tmp_path / "docs.txt"], tmp_path / "set", tokenizer=f"hf:{file}")


def test_a_file_of_ours_is_told_from_one_that_looks_like_it(tmp_path: Path) -> None:
    train_bpe(TEXTS, 300).save(tmp_path)
    assert type(load_tokenizer(tmp_path)) is BPETokenizer
    ByteTokenizer().save(tmp_path)
    assert type(load_tokenizer(tmp_path)) is ByteTokenizer
    for kind in (byte_level, shuffled_ids):
        import_tokenizer(write(tmp_path, kind())).save(tmp_path)
        assert load_tokenizer(tmp_path).vocab_size == import_tokenizer(tmp_path).vocab_size


def test_a_start_token_of_others_is_theirs(tmp_path: Path) -> None:
    content = byte_level()
    engine = Engine.from_str(json.dumps(content))
    engine.add_special_tokens(["<|start|>", "<|end|>"])  # as in the files of gpt-oss
    file = write(tmp_path, json.loads(engine.to_str()))
    tokenizer = import_tokenizer(file)
    assert tokenizer.start_token_id == engine.get_vocab_size() > (engine.token_to_id("<|start|>") or 0)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).sha256 == tokenizer.sha256


def test_what_has_no_token_is_one_line(tmp_path: Path) -> None:
    engine = Engine(models.WordLevel({"a": 0}))  # type: ignore[call-arg]
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "removed")  # type: ignore[assignment]
    engine.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "docs.txt").write_text("a b")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot encode a text .* give another tokenizer"):
        build_dataset([tmp_path / "docs.txt"], tmp_path / "set", tokenizer=f"hf:{tmp_path}")


def test_numbers_stand_in_for_a_tokenizer_that_is_not_at_hand() -> None:
    tokenizer = number_tokenizer(70_000)
    assert (tokenizer.vocab_size, tokenizer.start_token_id) == (70_001, 70_000)
    ids = tokenizer.encode("5 66000 7")
    assert ids.dtype == np.uint32 and ids.tolist() == [5, 66_000, 7] and tokenizer.decode(ids) == "5 66000 7"
    with pytest.raises(UserError, match="a vocabulary of 0 ids holds nothing"):
        number_tokenizer(0)
