# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Builds: exact documents, the same bytes every time, complete or absent, and one clear line for each mistake.

Covers: data_pipeline/dataset_writer.py, data_pipeline/payload.py, data_pipeline/splitting.py
"""

import errno
import fcntl
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_pipeline import DocumentIndex, ShardStore, UserError, build_dataset
from data_pipeline.adopt import adopt
from data_pipeline.build_journal import building
from data_pipeline.manifest import ShardInfo
from data_pipeline.payload import Payload
from data_pipeline.shards import WRITERS, WebDatasetWriter

NAMES = ["a.txt", "deep/book.txt", "deep/packed.txt.gz", *(f"line-{i}" for i in range(9)), "one.md"]


PACKED = ("gz", "bz2", "xz", "zst")


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def texts_of(directory: Path) -> dict[str, str]:
    index = DocumentIndex.load(directory)
    store = ShardStore(index)
    return {index.name(i): index.tokenizer.decode(store.read(i, 0, int(index.lengths[i]))) for i in range(len(index))}


def expected_texts(corpus: Path) -> dict[str, str]:
    texts = {name: (corpus / name).read_bytes().decode() for name in NAMES if name.endswith(("txt", "md"))}
    texts["deep/packed.txt.gz"] = gzip.decompress((corpus / "deep/packed.txt.gz").read_bytes()).decode()
    lines = (corpus / "lines.jsonl").read_text().splitlines()
    return texts | {record["id"]: record["text"] for record in map(json.loads, filter(None, lines))}


@pytest.mark.parametrize("tokenizer", ["bytes", "train-bpe:400"])
def test_documents_come_back_exactly(corpus: Path, tmp_path: Path, tokenizer: str) -> None:
    report = build_dataset([corpus], tmp_path / "set", tokenizer=tokenizer, workers=2)
    assert texts_of(tmp_path / "set") == expected_texts(corpus)
    index = DocumentIndex.load(tmp_path / "set")
    assert [index.name(i) for i in range(len(index))] == NAMES
    manifest = report.manifests[tmp_path / "set"]
    assert manifest == index.manifest
    assert (manifest.documents, report.dropped_documents, manifest.split) == (13, 1, None)
    assert manifest.tokens == index.num_tokens == index.lengths.sum()
    assert (
        manifest.text_bytes == index.byte_lengths.sum() == sum(len(t.encode()) for t in texts_of(index.path).values())
    )
    assert report.vocab_size == index.vocab_size == index.tokenizer.vocab_size
    if tokenizer == "bytes":
        assert np.array_equal(index.lengths, index.byte_lengths)


def test_plain_webdataset_reads_the_same_documents(dataset: Path) -> None:
    index = DocumentIndex.load(dataset)
    store = ShardStore(index)
    shards = [str(index.shard_path(shard)) for shard in range(len(index.manifest.shards))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == len(index)
    for document, sample in enumerate(samples):
        assert sample["__key__"] == f"{document:09d}"
        assert np.array_equal(
            np.frombuffer(sample["tokens"], "<u2"), store.read(document, 0, int(index.lengths[document]))
        )
        record = json.loads(sample["json"])
        assert record == {
            "name": index.name(document),
            "tokens": index.lengths[document],
            "bytes": index.byte_lengths[document],
            "crc32": index.checksums[document],
        }


def test_the_same_bytes_whatever_the_workers_and_the_place(corpus: Path, tmp_path: Path) -> None:
    def build(name: str, workers: int) -> dict[str, bytes]:
        settings: dict[str, Any] = {"tokenizer": "train-bpe:300", "validation_fraction": 0.2, "shard_megabytes": 0.01}
        build_dataset([corpus], tmp_path / name, workers=workers, **settings)
        return files_of(tmp_path / name)

    first = build("first", 1)
    assert first == build("second", 2) == build("deeper/third", 5)
    assert {"train/manifest.json", "train/documents.npz", "train/tokenizer.json", "train/shard-000001.tar"} <= set(
        first
    )
    assert "first" not in first["train/manifest.json"].decode()


def test_shards_keep_to_their_size_except_for_one_large_document(dataset: Path) -> None:
    index = DocumentIndex.load(dataset)
    for number, shard in enumerate(index.manifest.shards):
        assert shard.size_bytes == index.shard_path(number).stat().st_size
        assert shard.documents == (index.shards == number).sum()
        assert shard.size_bytes <= 12_000 + 10_240 or shard.documents == 1  # tar pads its end to 10,240 bytes


def test_wide_tokens_are_stored_as_uint32(tmp_path: Path) -> None:
    tokens = np.array([1, 70_000, 3], np.uint32)
    for writer_class in WRITERS.values():
        finished: list[tuple[ShardInfo, list[int], list[int]]] = []
        writer = writer_class(tmp_path, [], 10**6, lambda *shard, to=finished: to.append(shard), False)
        with Payload(np.dtype("<u4")) as payload:
            payload.append(tokens, 9)
            writer.add(0, "wide", payload)
        writer.close()
        ((shard, (offset,), _),) = finished
        content = (tmp_path / shard.name).read_bytes()
        assert np.array_equal(np.frombuffer(content, "<u4", 3, offset), tokens)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_splits_share_the_documents_out(corpus: Path, tmp_path: Path, fraction: float) -> None:
    out = tmp_path / "set"
    report = build_dataset([corpus], out, validation_fraction=fraction)
    train, validation = texts_of(out / "train"), texts_of(out / "validation")
    assert train and validation and not set(train) & set(validation)
    assert {**train, **validation} == expected_texts(corpus)
    assert [manifest.split for manifest in report.manifests.values()] == ["train", "validation"]
    if fraction == 0.5:
        share = report.manifests[out / "validation"].text_bytes / sum(m.text_bytes for m in report.manifests.values())
        assert 0.25 <= share <= 0.5
    with pytest.raises(UserError, match=r"holds the data sets .*/train and .*/validation"):
        DocumentIndex.load(out)


def test_copies_of_a_text_stay_on_one_side(tmp_path: Path) -> None:
    source = tmp_path / "copies.jsonl"
    source.write_text("\n".join(json.dumps({"text": f"text {i % 5}", "id": i}) for i in range(20)))
    build_dataset([source], tmp_path / "set", validation_fraction=0.4)
    train, validation = (set(texts_of(tmp_path / "set" / split).values()) for split in ("train", "validation"))
    assert len(train) == 3 and len(validation) == 2 and not train & validation


def test_validation_text_does_not_train_the_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "two.jsonl"
    source.write_text('{"text": "abababababababab"}\n{"text": "cdcd"}\n')
    build_dataset([source], tmp_path / "set", tokenizer="train-bpe:300", validation_fraction=0.1)
    assert list(texts_of(tmp_path / "set" / "validation").values()) == ["cdcd"]
    tokenizer = DocumentIndex.load(tmp_path / "set" / "train").tokenizer
    assert len(tokenizer.encode("ababab")) < 6 and len(tokenizer.encode("cdcd")) == 4


def test_a_sample_of_much_text_trains_the_tokenizer(corpus: Path, tmp_path: Path) -> None:
    for name, megabytes in (("all", 1.0), ("some", 0.004)):
        build_dataset([corpus], tmp_path / name, tokenizer="train-bpe:600", bpe_training_megabytes=megabytes)
    sizes = {name: DocumentIndex.load(tmp_path / name).vocab_size for name in ("all", "some")}
    assert 257 < sizes["some"] < sizes["all"]


def test_a_trained_tokenizer_is_used_again(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    build_dataset([corpus / "lines.jsonl"], tmp_path / "first", tokenizer="train-bpe:300")
    build_dataset([corpus], tmp_path / "second", tokenizer=f"bpe:{tmp_path / 'first'}")
    first, second = DocumentIndex.load(tmp_path / "first"), DocumentIndex.load(tmp_path / "second")
    assert first.manifest.tokenizer_sha256 == second.manifest.tokenizer_sha256
    assert len({first.fingerprint, second.fingerprint, DocumentIndex.load(dataset).fingerprint}) == 3


def test_progress_counts_documents_and_bytes(corpus: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_dataset([corpus], tmp_path / "set", validation_fraction=0.1, progress=lambda *now: seen.append(now))
    total = sum(len(text.encode()) for text in expected_texts(corpus).values())
    assert [stage for stage, _, _ in seen] == ["reading"] * 13 + ["writing"] * 13
    assert seen[12] == ("reading", 13, total) and seen[25] == ("writing", 13, total)


def test_an_existing_data_set_is_replaced_only_when_asked(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    build_dataset([corpus / "a.txt"], out)  # an empty directory is no obstacle
    before = files_of(out)
    with pytest.raises(UserError, match="--overwrite"):
        build_dataset([corpus], out)
    assert files_of(out) == before
    build_dataset([corpus], out, overwrite=True)
    assert len(DocumentIndex.load(out)) == 13
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_not_a_data_set_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        build_dataset([corpus], tmp_path / "thesis", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        build_dataset([corpus], tmp_path / "thesis" / "chapter.txt", overwrite=True)
    out = tmp_path / "set"
    build_dataset([corpus / "a.txt"], out)
    (out / "notes.txt").write_text("inside")
    with pytest.raises(UserError, match="would delete"):
        build_dataset([out / "notes.txt"], out, overwrite=True)
    for place in (out, out / "checkpoints"):
        place.mkdir(exist_ok=True)
        (out / "notes.txt").rename(place / "mine.txt")
        with pytest.raises(UserError, match=r"holds .*(mine.txt|checkpoints).* beside its data set, which --overwrite"):
            build_dataset([corpus], out, overwrite=True)
        (place / "mine.txt").rename(out / "notes.txt")
    shutil.rmtree(out / "checkpoints")
    (out / "notes.txt").unlink()
    (out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="nobody can tell what --overwrite would delete"):
        build_dataset([corpus], out, overwrite=True)


def test_tokens_that_were_adopted_are_never_replaced(corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([1, 2, 3], np.uint16))
    adopt(tmp_path, tokenizer="bytes", eos=3)
    with pytest.raises(UserError, match="holds tokens that were adopted"):
        build_dataset([corpus], tmp_path, overwrite=True)


@pytest.mark.parametrize("format", list(WRITERS))
def test_splits_are_replaced_by_others(corpus: Path, tmp_path: Path, format: str) -> None:
    for fraction, overwrite in ((0.2, False), (0.3, True), (0.0, True)):
        build_dataset([corpus], tmp_path / "set", format=format, validation_fraction=fraction, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_name_that_cannot_be_is_one_line_and_no_folder_is_left(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out .* cannot be used \(File name too long\)"):
        build_dataset([corpus], tmp_path / ("x" * 300))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match="neither JSON lines"):
        build_dataset([tmp_path / "bad.jsonl"], tmp_path / "new" / "folders" / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_failed_build_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    bad = tmp_path / "zz.txt"
    bad.write_bytes(b"good until \xff here")
    with pytest.raises(UserError, match=r"zz\.txt: not UTF-8 at byte 11"):
        build_dataset([corpus, bad], tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["zz.txt"]


def test_a_killed_build_is_cleared_away_and_a_running_one_is_not(corpus: Path, tmp_path: Path) -> None:
    partial = tmp_path / "set.partial"
    (partial / "train").mkdir(parents=True)
    (partial / "train" / "shard-000000.tar").write_text("half")
    with pytest.raises(UserError, match="not an unfinished build"):
        build_dataset([corpus], tmp_path / "set")
    with (partial / ".building").open("w") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build"):
            build_dataset([corpus], tmp_path / "set")
    build_dataset([corpus], tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "documents.npz", "manifest.json", "shard-000000.tar", "tokenizer.json",
    ]  # fmt: skip
    assert not partial.exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', r"bad\.jsonl line 2: not JSON"),
        ("bad.jsonl", b'{"text": "fine"}\n\n{"body": "x"}\n', r'bad\.jsonl line 3: needs a string under "text"'),
        ("bad.jsonl", b"[1]\n", "record 1: needs a string"),
        ("bad.jsonl", b'{"text": "\\ud800"}\n', "line 1: .*half a surrogate pair"),
        ("bad.jsonl", b'{"text": "\xff"}\n', "line 1: not UTF-8 at byte 10"),
        ("bad.txt.gz", b"not gzip at all", r"bad\.txt\.gz: damaged gzip"),
        ("bad.txt.gz", gzip.compress(b"cut short" * 99, mtime=0)[:-9], r"bad\.txt\.gz: damaged gzip"),
        *((f"bad.jsonl.{kind}", b"", rf"bad\.jsonl\.{kind}: damaged \w+ file \(it is empty\)") for kind in PACKED),
        ("empty.txt", b"", "hold no text"),
    ],
)
def test_bad_sources_are_named_with_the_place(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        build_dataset([tmp_path / name], tmp_path / "set")


def test_bad_sources_and_settings_are_named(corpus: Path, tmp_path: Path) -> None:
    def complaint(*sources: Path, **settings: Any) -> str:
        with pytest.raises(UserError) as caught:
            build_dataset(sources or [corpus], tmp_path / "set", **settings)
        return str(caught.value)

    (tmp_path / "nothing").mkdir()
    assert "no such file" in complaint(corpus / "missing.txt")
    assert "no .txt, .md, .jsonl, .ndjson, .json, .parquet or idx file" in complaint(tmp_path / "nothing")
    assert "given twice" in complaint(corpus, corpus / "a.txt")
    assert "two different documents" in complaint(corpus / "a.txt", validation_fraction=0.1)
    assert "format 'parquet'" in complaint(format="parquet")
    assert "workers is 0" in complaint(workers=0)
    assert "shard_megabytes is 0" in complaint(shard_megabytes=0)
    assert "shard_megabytes is inf" in complaint(shard_megabytes=float("inf"))
    assert "VOCAB must be a whole number" in complaint(tokenizer="train-bpe:1" + 5000 * "0")
    assert "validation_fraction is 1" in complaint(validation_fraction=1)
    assert "bpe_training_megabytes is -1" in complaint(bpe_training_megabytes=-1)
    assert "choose bytes, bpe:FILE, hf:FILE or train-bpe:VOCAB" in complaint(tokenizer="words")
    with pytest.raises(UserError, match="no source given"):
        build_dataset([], tmp_path / "set")


def test_a_full_disk_is_one_line_and_leaves_finished_shards_or_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WebDatasetWriter, "add", full)
    with pytest.raises(UserError, match="cannot write") as caught:
        build_dataset([corpus], tmp_path / "set")
    assert caught.value.exit_code == 1 and "No space left" in str(caught.value)
    assert not list(tmp_path.iterdir())

    original = WebDatasetWriter.close
    monkeypatch.undo()
    monkeypatch.setattr(WebDatasetWriter, "close", full)
    with pytest.raises(UserError, match=r"No space left on device \(the \d finished shards are kept in .*") as caught:
        build_dataset([corpus], tmp_path / "set", shard_megabytes=0.012)
    assert caught.value.exit_code == 1
    monkeypatch.setattr(WebDatasetWriter, "close", original)
    assert build_dataset([corpus], tmp_path / "set", shard_megabytes=0.012).resumed_documents > 0


def test_a_build_that_is_killed_at_its_very_end_is_taken_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Leaves everything as it is."""

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Path, "rename", kill)
    with pytest.raises(Killed):
        build_dataset([corpus], tmp_path / "set")
    monkeypatch.undo()
    build_dataset([corpus], tmp_path / "set")
    build_dataset([corpus], tmp_path / "other")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]


def test_what_another_build_made_meanwhile_is_not_touched(corpus: Path, tmp_path: Path) -> None:
    build_dataset([corpus], tmp_path / "set")
    with (
        pytest.raises(UserError, match=r"another build has made .*set just now"),
        building(tmp_path / "set", overwrite=False),
    ):
        raise AssertionError("nothing is to be built")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_sources_that_change_during_the_build_are_noticed(corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "growing.jsonl"
    source.write_text('{"text": "one"}\n{"text": "two"}\n')

    def grow(stage: str, documents: int, _: int) -> None:
        if (stage, documents) == ("reading", 3):
            source.write_text(source.read_text() + '{"text": "three"}\n')

    with pytest.raises(UserError, match="changed"):
        build_dataset([source, corpus / "a.txt"], tmp_path / "set", validation_fraction=0.5, progress=grow)
