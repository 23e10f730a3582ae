# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Damaged data sets: noticed before wrong tokens are used, by reading and by `verify_dataset`, with names.

Covers: data_pipeline/errors.py, data_pipeline/index.py, data_pipeline/manifest.py, data_pipeline/verify.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import DocumentIndex, ShardStore, UserError
from data_pipeline.verify import verify_dataset


@pytest.fixture
def broken(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "broken")


def rewrite(file: Path, change: Callable[[bytearray], bytearray | None]) -> None:
    content = bytearray(file.read_bytes())
    file.write_bytes(change(content) or content)


def flip(position: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[position] ^= 4

    return change


def document_of(index: DocumentIndex, shard: int) -> int:
    return int(np.flatnonzero(index.shards == shard)[-1])


def test_a_sound_data_set_has_no_fault(dataset: Path) -> None:
    index = DocumentIndex.load(dataset)
    done: list[tuple[int, int]] = []
    assert verify_dataset(index, lambda *now: done.append(now)) == []
    assert done[-1] == (len(index.manifest.shards),) * 2


def test_a_flipped_bit_is_found_in_its_document(broken: Path) -> None:
    index = DocumentIndex.load(broken)
    document = document_of(index, 1)
    rewrite(index.shard_path(1), flip(int(index.offsets[document]) + 1))
    store = ShardStore(index)
    store.read(document_of(index, 0), 0, 1)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"shard-000001\.tar is damaged: document {document} ") as caught:
            store.read(document, 0, 1)
        assert caught.value.exit_code == 1 and index.name(document) in str(caught.value)
    faults = verify_dataset(index)
    assert [(fault.file, fault.document) for fault in faults] == [
        ("shard-000001.tar", None),
        ("shard-000001.tar", document),
    ]
    assert "SHA-256" in faults[0].problem and index.name(document) in faults[1].problem


def test_a_flipped_bit_outside_the_tokens_is_found_too(broken: Path) -> None:
    index = DocumentIndex.load(broken)
    rewrite(index.shard_path(0), flip(3))
    assert [(fault.file, fault.document) for fault in verify_dataset(index)] == [("shard-000000.tar", None)]


@pytest.mark.parametrize("kept", [0, 700])
def test_a_truncated_shard_is_an_error_not_a_crash(broken: Path, kept: int) -> None:
    index = DocumentIndex.load(broken)
    index.shard_path(1).write_bytes(index.shard_path(1).read_bytes()[:kept])
    documents = np.flatnonzero(index.shards == 1).tolist()
    complaint = rf"shard-000001\.tar is damaged: document {documents[0]} .* has {kept} bytes, .*truncated"
    with pytest.raises(UserError, match=complaint):
        ShardStore(index).read(documents[0], 0, 1)
    faults = verify_dataset(index)
    assert [fault.document for fault in faults] == [None, *documents]
    assert faults[-1].problem.endswith("is cut off")


def test_a_missing_shard_is_named(broken: Path) -> None:
    index = DocumentIndex.load(broken)
    index.shard_path(2).unlink()
    with pytest.raises(UserError, match=r"shard-000002\.tar is damaged: document \d+ .* is missing with its shard"):
        ShardStore(index).read(document_of(index, 2), 0, 1)
    assert [(fault.file, fault.problem) for fault in verify_dataset(index)] == [
        ("shard-000002.tar", "cannot be read (No such file or directory)")
    ]


def test_ranges_outside_a_document_are_refused(dataset: Path) -> None:
    index = DocumentIndex.load(dataset)
    length = int(index.lengths[1])
    store = ShardStore(index)
    assert len(store.read(1, length, 0)) == 0
    for start, count in ((-1, 2), (0, length + 1), (length, 1), (3, -1)):
        with pytest.raises(ValueError, match=r"not within document 1"):
            store.read(1, start, count)


def test_another_tokenizer_is_noticed(broken: Path) -> None:
    rewrite(broken / "tokenizer.json", lambda content: content.replace(b'"version":"1.0"', b'"version":"1.1"'))
    index = DocumentIndex.load(broken)
    with pytest.raises(UserError, match="not the tokenizer this data set was built with"):
        _ = index.tokenizer
    assert [fault.file for fault in verify_dataset(index)] == ["tokenizer.json"]
    (broken / "tokenizer.json").unlink()
    assert "no tokenizer at" in verify_dataset(DocumentIndex.load(broken))[0].problem


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: (path / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda path: (path / "documents.npz").unlink(), r"documents\.npz is missing"),
        (lambda path: rewrite(path / "documents.npz", flip(200)), r"documents\.npz is damaged"),
        (lambda path: rewrite(path / "documents.npz", lambda c: c[:300]), r"documents\.npz is damaged"),
        (lambda path: rewrite(path / "manifest.json", lambda c: c[:300]), r"cannot read .*manifest\.json"),
        (lambda path: (path / "manifest.json").write_text("[]"), "is not the manifest"),
        (lambda path: shutil.rmtree(path), "no data set at"),
    ],
)
def test_a_data_set_that_cannot_be_opened_says_why(
    broken: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(broken)
    with pytest.raises(UserError, match=complaint):
        DocumentIndex.load(broken)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format_version": 9}, "format version 9"),
        ({"fingerprint": "0" * 32}, "does not belong to the manifest"),
        ({"token_dtype": "<u4"}, "does not belong to the manifest"),
        ({"columns_sha256": "0" * 64}, "damaged or does not belong to the manifest"),
        ({"documents": 3}, "counts other documents"),
        ({"shards": None}, "is damaged"),
        ({"surprise": 1}, "is damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(broken: Path, change: dict[str, object], complaint: str) -> None:
    file = broken / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=complaint):
        DocumentIndex.load(broken)


def test_padding_share_counts_the_last_segments(dataset: Path) -> None:
    index = DocumentIndex.load(dataset)
    positions = sum(-(-int(length) // 100) * 100 for length in index.lengths)
    assert index.padding_share(100) == pytest.approx(1 - index.num_tokens / positions)
    assert index.padding_share(1) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("settings", None),
        ("token_dtype", "<f4"),
        ("token_dtype", 5),
        ("tokens", None),
        ("text_bytes", "many"),
        ("documents", 0),
        ("shards", [5]),
        ("shards", [{"name": "a", "size_bytes": "1", "sha256": "", "documents": 1, "tokens": 1}]),
    ],
)
def test_a_manifest_with_a_field_of_another_type_is_one_line(broken: Path, key: str, value: object) -> None:
    content = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*; restore the file or build"):
        DocumentIndex.load(broken)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/shard.tar", "a/../../b", "", ".", "a\0b", "a.lock", "twice"])
def test_shards_lie_in_their_data_set(broken: Path, name: str) -> None:
    """Of a data set from elsewhere they would be read, and their copies in a cache be written, where nobody expects."""
    content = json.loads((broken / "manifest.json").read_text())
    content["shards"][0]["name"] = content["shards"][1]["name"] if name == "twice" else name
    (broken / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*(is not a file in|names a shard twice)"):
        DocumentIndex.load(broken)


@pytest.mark.parametrize(("key", "value"), [("shards", []), ("tokens", 1), ("text_bytes", 1), ("documents", 1)])
def test_a_manifest_that_counts_otherwise_than_the_columns_is_refused(broken: Path, key: str, value: object) -> None:
    content = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(it counts other documents"):
        DocumentIndex.load(broken)


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"a\.jsonl is a file, not a data set"):
        DocumentIndex.load(tmp_path / "a.jsonl")


def test_a_tokenizer_that_is_missing_is_to_be_restored_and_not_trained(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer at .*; restore the file or build the data set again"):
        _ = DocumentIndex.load(broken).tokenizer
