# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Loss weights from ranges of characters to a column of tokens: each token its own, in both formats, stopped or not."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_pipeline import DocumentIndex, ShardStore, UserError, build_dataset
from data_pipeline.hf_tokenizer import import_tokenizer
from data_pipeline.loss_weights import ONE, parse_ranges, token_weights
from data_pipeline.mds import read_mds_index
from data_pipeline.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from data_pipeline.verify import verify_dataset
from tests.data_pipeline.test_build import files_of
from tests.data_pipeline.test_hf_tokenizer import HARD, KINDS, write
from tests.data_pipeline.test_stores import library

QUESTION = "Zoë read 书 slowly. Who read? "
RECORDS: list[dict[str, Any]] = [
    {
        "id": f"asked-{i}",
        "text": "words " * 40 * i + QUESTION + "Zoë!",
        "loss_weights": [[240 * i + 29, 240 * i + 32, 1]],
    }
    for i in range(6)
]
RECORDS[2]["loss_weights"] = [[0, 5, 0.25], [5, 6, 0], [6, 6, 1], [400, 513, 0.1]]
RECORDS[3]["loss_weights"] = []
del RECORDS[4]["loss_weights"]


def record_file(folder: Path, records: list[dict[str, Any]]) -> Path:
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def build(folder: Path, name: str, key: str | None = "loss_weights", **settings: Any) -> DocumentIndex:
    settings = {"shard_megabytes": 0.004, **settings}
    build_dataset([folder / "records.jsonl"], folder / name, loss_weights_key=key, **settings)
    return DocumentIndex.load(folder / name)


def reference(text: str, ranges: list[list[Any]] | None, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Byte by byte: a token has the largest weight of the characters that it has a byte of."""
    owners = [number for number, character in enumerate(text) for _ in character.encode()]
    pieces = [tokenizer.token_bytes(token) for token in ids]
    if b"".join(pieces) != text.encode():
        assert b"".join(pieces) == b" " + text.encode()  # a blank of the tokenizer's own
        pieces[0] = pieces[0][1:]
    weights, at = [], 0
    for piece in pieces:
        touched = owners[at : at + max(1, len(piece))] or owners[-1:]
        at += len(piece)
        ones = [w for character in touched for s, e, w in ranges or () if s <= character < e]
        weights.append(ONE if ranges is None else round(max(ones, default=0) * ONE))
    return weights


def stored_weights(index: DocumentIndex) -> list[list[int]]:
    weights = index.loss_weights
    assert weights is not None
    store = ShardStore(weights)
    return [store.read(document, 0, int(index.lengths[document])).tolist() for document in range(len(index))]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return record_file(tmp_path, RECORDS)


@pytest.mark.parametrize("kind", [None, 300, *KINDS])
def test_a_token_has_the_largest_weight_of_its_characters(
    tmp_path: Path, kind: Callable[[], dict[str, Any]] | int | None
) -> None:
    if kind is None:
        tokenizer: Tokenizer = ByteTokenizer()
    elif isinstance(kind, int):
        tokenizer = train_bpe([QUESTION * 20], kind)
    else:
        tokenizer = import_tokenizer(write(tmp_path, kind()))
    texts = [*(text for text in HARD if text), *([] if callable(kind) else [QUESTION + "Zoë!"])]
    marked = 0
    for text in texts:
        ids = tokenizer.encode(text)
        for start in range(len(text)):
            ranges: list[list[Any]] = [[0, start, 0.5], [start, start + 1, 1]]
            found = token_weights(text, ids, parse_ranges(ranges, len(text)), tokenizer).tolist()
            assert found == reference(text, ranges, ids.tolist(), tokenizer)
            marked += ONE in found
    assert marked == sum(map(len, texts))  # a marked character is never lost, whatever token it is in


def test_a_marked_word_keeps_the_token_that_begins_with_the_blank_before_it() -> None:
    tokenizer = train_bpe([" answer"] * 50, 270)
    ids = tokenizer.encode("the answer")
    assert tokenizer.decode(ids[-1:].tolist()) == " answer"
    assert token_weights("the answer", ids, parse_ranges([[4, 10, 1]], 10), tokenizer).tolist() == [0, 0, 0, ONE]


def test_tokens_that_do_not_stand_for_the_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"its text has 3 bytes and its tokens stand for 2.*another --tokenizer"):
        token_weights("abc", np.array([97, 98], np.uint16), parse_ranges([[0, 1, 1]], 3), ByteTokenizer())


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"start": 0}, r"is \{'start': 0\}; give a list of \[start, end, weight\]"),
        ("all", "is all; give a list"),
        ([[0, 3]], r"has \[0, 3\] as range 1; give \[start, end, weight\]"),
        ([[0, 3, True]], r"has \[0, 3, True\] as range 1; give \[start"),
        ([[0, 3, 1], [2, 4, 1]], r"has \[2, 4, 1\] as range 2; give whole numbers 3 <= start <= end <= 10"),
        ([[4, 3, 1]], "0 <= start <= end <= 10: ranges count characters, stand in order and do not overlap"),
        ([[0, 11, 1]], "end <= 10"),
        ([[-1, 3, 1]], "whole numbers 0 <="),
        ([[0, 2.5, 1]], "whole numbers"),
        ([[0, 3, 1.5]], r"has \[0, 3, 1.5\] as range 1; give a weight from 0 to 1"),
        ([[0, 3, float("nan")]], "give a weight from 0 to 1"),
        ([[0, 3, "1"]], "give a weight from 0 to 1"),
    ],
)
def test_wrong_ranges_are_bad_records(tmp_path: Path, value: Any, complaint: str) -> None:
    bad = {"text": "0123456789", "loss_weights": value}
    record_file(tmp_path, [RECORDS[0], bad, RECORDS[1]])
    with pytest.raises(
        UserError, match=rf'records.jsonl line 2: "loss_weights" .*{complaint}.*--on-bad-record'
    ) as said:
        build(tmp_path, "set")
    assert "\n" not in str(said.value) and not list(tmp_path.glob("set*"))
    index = build(tmp_path, "skipped", on_bad_record="skip")
    assert [index.name(i) for i in range(len(index))] == ["asked-0", "asked-1"]
    assert index.manifest.settings["bad_records"] == 1
    build(tmp_path, "unread", key=None)  # who does not ask for weights is not held to them


@pytest.mark.parametrize("tokenizer", ["bytes", "train-bpe:290"])
def test_both_formats_store_each_token_s_weight_under_one_fingerprint(
    tmp_path: Path, records: Path, tokenizer: str
) -> None:
    tar, mds = (build(tmp_path, form, format=form, tokenizer=tokenizer) for form in ("webdataset", "mds"))
    expected = [
        reference(each["text"], each.get("loss_weights"), tar.tokenizer.encode(each["text"]).tolist(), tar.tokenizer)
        for each in RECORDS
    ]
    assert stored_weights(tar) == stored_weights(mds) == expected
    assert len(tar.manifest.shards) > 2 and tar.fingerprint == mds.fingerprint
    assert tar.counted_tokens == mds.counted_tokens == sum(map(sum, expected)) / ONE
    assert verify_dataset(tar) == verify_dataset(mds) == []
    shards = [str(tar.shard_path(number)) for number in range(len(tar.manifest.shards))]
    for sample, weights in zip(webdataset.WebDataset(shards, shardshuffle=False), expected, strict=True):
        assert np.frombuffer(sample["loss_weights"], "<u2").tolist() == weights
        assert len(sample["tokens"]) == len(sample["loss_weights"])
    samples = [sample for each in read_mds_index(mds.path) for sample in each.samples()]
    assert [np.frombuffer(sample["loss_weights"][1], "<u2").tolist() for sample in samples] == expected
    assert [sample["name"][1].decode() for sample in samples] == [each["id"] for each in RECORDS]


def test_streaming_itself_reads_the_weights(tmp_path: Path, records: Path) -> None:
    mds = build(tmp_path, "mds", format="mds")
    library("read", mds.path, tmp_path / "read.npz")
    with np.load(tmp_path / "read.npz") as found:
        assert found["loss_weights"].tolist() == list(itertools.chain.from_iterable(stored_weights(mds)))
        assert found["names"].tolist() == [each["id"] for each in RECORDS]
        assert found["ends"].tolist() == mds.lengths.cumsum().tolist()


def test_the_fingerprint_stands_for_the_weights_and_a_program_without_them_refuses(
    tmp_path: Path, records: Path
) -> None:
    weighted, plain = build(tmp_path, "weighted"), build(tmp_path, "plain", key=None)
    assert plain.loss_weights is None and plain.counted_tokens == plain.num_tokens
    assert np.array_equal(weighted.checksums, plain.checksums) and weighted.fingerprint != plain.fingerprint
    record_file(tmp_path, [{**RECORDS[0], "loss_weights": [[29, 32, 0.5]]}, *RECORDS[1:]])
    assert build(tmp_path, "other").fingerprint not in (weighted.fingerprint, plain.fingerprint)
    versions = {name: json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("weighted", "plain")}
    assert {name: each["format_version"] for name, each in versions.items()} == {"weighted": 3, "plain": 2}
    assert "loss_weights" not in versions["plain"]
    manifest = tmp_path / "weighted" / "manifest.json"
    manifest.write_text(json.dumps(versions["weighted"] | {"format_version": 2}))
    with pytest.raises(UserError, match="loss_weights is True at format version 2"):
        DocumentIndex.load(tmp_path / "weighted")


@pytest.mark.parametrize(
    ("form", "digest"),
    [("webdataset", "d1774ac4f352f3766551abfb2cdb226f"), ("mds", "d4f51465df3236d9df62b3bda1bd495f")],
)
def test_a_data_set_without_weights_has_the_bytes_it_had_before_there_were_any(
    tmp_path: Path, form: str, digest: str
) -> None:
    """The digests are of files that the last version without loss weights wrote."""
    record_file(
        tmp_path,
        [
            {"id": f"d{i}", "text": f"the {i}th memory of Zoë " * (3 + 7 * i), "loss_weights": [[0, 3, 1]]}
            for i in range(8)
        ],
    )
    built = build(tmp_path, form, key=None, format=form)
    found = hashlib.sha256()
    for name, content in sorted(files_of(built.path).items()):
        found.update(name.encode() + content)
    assert found.hexdigest()[:32] == digest


def test_a_build_goes_on_with_its_weights_and_not_with_those_of_other_records(tmp_path: Path) -> None:
    record_file(tmp_path, RECORDS)
    whole = files_of(build(tmp_path, "whole").path)
    for first, kept in ((RECORDS[0], "the 4 finished shards are kept"), ({**RECORDS[0], "loss_weights": []}, "kept")):
        record_file(tmp_path, [first, *RECORDS[1:5], {"text": 0}])
        with pytest.raises(UserError, match=kept):
            build(tmp_path, "set")
        record_file(tmp_path, RECORDS)
        assert files_of(build(tmp_path, "set").path) == whole
        for path in sorted((tmp_path / "set").iterdir()):
            path.unlink()
        (tmp_path / "set").rmdir()


def test_what_has_no_weights_counts_whole_and_a_key_that_nothing_has_is_refused(tmp_path: Path, records: Path) -> None:
    (tmp_path / "page.txt").write_text("every token of a page counts")
    build_dataset([records, tmp_path / "page.txt"], tmp_path / "both", loss_weights_key="loss_weights")
    index = DocumentIndex.load(tmp_path / "both")
    assert stored_weights(index)[-1] == [ONE] * len("every token of a page counts")
    plain = record_file(tmp_path, [{"text": "a"}, {"text": "b"}])
    with pytest.raises(UserError, match='--loss-weights-key is "answers", which no record has; name the key'):
        build_dataset([plain], tmp_path / "set", loss_weights_key="answers")
    assert not list(tmp_path.glob("set*"))


@pytest.mark.parametrize(("asked", "there"), [("answers", "loss_weights"), ("answer_weigths", "answer_weights")])
def test_a_mistyped_key_is_refused_at_the_first_record_that_has_another(tmp_path: Path, asked: str, there: str) -> None:
    """Not when all has been read: the second line, which is no JSON, is never come to."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", there: [[0, 1, 1]]}) + "\n{\n")
    said = f'a.jsonl line 1: --loss-weights-key is "{asked}", .* but "{there}": name that key'
    with pytest.raises(UserError, match=said):
        build_dataset([tmp_path / "a.jsonl"], tmp_path / "set", loss_weights_key=asked, on_bad_record="skip")
    lines = ({"text": "a", f"{asked}s": 1}, {"text": "b", asked: [[0, 1, 1]]})  # a number is no list of ranges
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_dataset([tmp_path / "a.jsonl"], tmp_path / "set", loss_weights_key=asked)


def test_digits_that_are_no_number_leave_the_record_s_weights_alone(tmp_path: Path) -> None:
    """Python reads no integer of more than 4,300 digits; the record's other numbers are read as ever."""
    line = '{"text": "who? me", "loss_weights": [[5, 7, 1]], "serial": ' + "7" * 5000 + "}\n"
    (tmp_path / "records.jsonl").write_text(line)
    assert stored_weights(build(tmp_path, "set")) == [[0] * 5 + [ONE] * 2]


def test_parquet_with_a_column_of_weights_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"], "loss_weights": [[[0.0, 1.0, 1.0]]]}), tmp_path / "a.parquet")
    build_dataset([tmp_path / "a.parquet"], tmp_path / "plain")
    with pytest.raises(UserError, match=r'a.parquet: its column "loss_weights" cannot be read, only JSON lines have'):
        build_dataset([tmp_path / "a.parquet"], tmp_path / "set", loss_weights_key="loss_weights")


def test_splits_share_out_texts_with_their_weights(tmp_path: Path, records: Path) -> None:
    build_dataset([records], tmp_path / "set", validation_fraction=0.4, loss_weights_key="loss_weights")
    seen = {}
    for split in ("train", "validation"):
        index = DocumentIndex.load(tmp_path / "set" / split)
        seen |= {index.name(i): weights for i, weights in enumerate(stored_weights(index))}
    build_dataset([records], tmp_path / "one", loss_weights_key="loss_weights")
    one = DocumentIndex.load(tmp_path / "one")
    assert seen == {one.name(i): weights for i, weights in enumerate(stored_weights(one))}


def test_damage_to_weights_is_found(tmp_path: Path, records: Path) -> None:
    index = build(tmp_path, "set")
    weights = index.loss_weights
    assert weights is not None
    shard = bytearray(index.shard_path(0).read_bytes())
    shard[int(weights.offsets[0]) + 3] ^= 1
    index.shard_path(0).write_bytes(shard)
    faults = verify_dataset(index)
    assert [fault.document for fault in faults] == [None, 0] and "loss weights" in faults[1].problem
    assert ShardStore(index).read(0, 0, 5).tolist() == list(b"Zo\xc3\xab ")
    with pytest.raises(UserError, match=r"shard-000000.tar is damaged: document 0 \(asked-0\) .*checksum"):
        ShardStore(weights).read(0, 0, 5)
