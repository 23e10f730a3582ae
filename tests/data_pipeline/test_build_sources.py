# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Builds from every kind of source, of documents larger than a part, and after a kill.

Covers: data_pipeline/build_journal.py, data_pipeline/large_files.py
"""

import builtins
import gzip
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipeline import DocumentIndex, ShardStore, UserError, build_dataset, large_files
from tests.data_pipeline.conftest import sentence
from tests.data_pipeline.test_build import files_of, texts_of


def idx_file(images: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    return bytes([0, 0, 8, images.ndim]) + sizes + images.astype(np.uint8).tobytes()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "images.idx"])
def test_an_image_is_a_document_of_its_pixels(tmp_path: Path, name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    content = idx_file(images)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "in" / "train-labels-idx1-ubyte").write_bytes(idx_file(np.arange(5)))  # not taken from a directory
    build_dataset([tmp_path / "in"], tmp_path / "set")
    index = DocumentIndex.load(tmp_path / "set")
    assert index.lengths.tolist() == [784] * 5 and index.vocab_size == 257 and index.name(3) == f"{name}:3"
    assert np.array_equal(ShardStore(index).read(4, 0, 784).reshape(28, 28), images[4])


def test_image_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def complaint(content: bytes, **settings: str) -> str:
        (tmp_path / "x.idx").write_bytes(content)
        with pytest.raises(UserError) as caught:
            build_dataset([tmp_path / "x.idx"], tmp_path / "set", **settings)
        return str(caught.value)

    whole = idx_file(np.zeros((3, 4, 4)))
    assert "holds labels" in complaint(idx_file(np.arange(5)))
    assert "ends in image 2" in complaint(whole[:-1])
    assert "ends in image 0" in complaint(whole[:10])
    assert "not an idx file" in complaint(b"text")
    assert "build images with --tokenizer bytes" in complaint(whole, tokenizer="train-bpe:300")


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"row {number} " * number for number in range(700)]  # several groups of rows, the first text empty
    columns = {"text": texts, "id": [f"id-{number}" for number in range(700)], "other": [0] * 700}
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet", row_group_size=100)
    report = build_dataset([tmp_path], tmp_path / "set")
    assert report.dropped_documents == 1
    assert texts_of(tmp_path / "set") == {f"id-{number}": text for number, text in enumerate(texts) if text}
    parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match='has no column "text"'):
        build_dataset([tmp_path / "other.parquet"], tmp_path / "two")
    (tmp_path / "other.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a sound Parquet file"):
        build_dataset([tmp_path / "other.parquet"], tmp_path / "two")


def test_zstd_files_are_read(corpus: Path, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    for name in ("lines.jsonl", "deep/book.txt"):
        (tmp_path / f"{Path(name).name}.zst").write_bytes(pack((corpus / name).read_bytes()))
    build_dataset([tmp_path], tmp_path / "set")
    build_dataset([corpus / "deep/book.txt", corpus / "lines.jsonl"], tmp_path / "plain")
    assert list(texts_of(tmp_path / "set").values()) == list(texts_of(tmp_path / "plain").values())
    (tmp_path / "bad.txt.zst").write_bytes(b"not zstd at all")
    with pytest.raises(UserError, match=r"bad\.txt\.zst: damaged zstd"):
        build_dataset([tmp_path / "bad.txt.zst"], tmp_path / "bad")


@pytest.mark.parametrize(("file", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_a_missing_package_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, package: str
) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return original(name, *rest)

    (tmp_path / file).write_bytes(b"x")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=f"needs the package {package}; pip install {package}"):
        build_dataset([tmp_path / file], tmp_path / "set")


@pytest.fixture(scope="module")
def foreign_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the manner of current models: its own word pattern, special tokens, things put around a text."""
    generator = random.Random(1)
    reference = Reference(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    from tokenizers import Regex

    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    reference.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    reference.decoder = decoders.ByteLevel()
    reference.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    reference.train_from_iterator([sentence(generator, 500)], trainer)
    end = reference.token_to_id("<|end|>")
    reference.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", end)])
    path = tmp_path_factory.mktemp("foreign") / "tokenizer.json"
    reference.save(str(path))
    return path


def test_a_tokenizer_of_another_make_is_taken_over(corpus: Path, tmp_path: Path, foreign_tokenizer: Path) -> None:
    build_dataset([corpus], tmp_path / "set", tokenizer=f"hf:{foreign_tokenizer}")
    index = DocumentIndex.load(tmp_path / "set")
    reference = Reference.from_file(str(foreign_tokenizer))
    reference.encode_special_tokens = True
    size = reference.get_vocab_size()
    assert (index.vocab_size, index.tokenizer.start_token_id) == (size + 1, size)
    store = ShardStore(index)
    texts = texts_of(tmp_path / "set")
    for document in range(len(index)):
        ids = store.read(document, 0, int(index.lengths[document])).tolist()
        assert ids == reference.encode(texts[index.name(document)], add_special_tokens=False).ids
    text = "ends <|end|> here <|start|>"
    assert index.tokenizer.decode(index.tokenizer.encode(text)) == text
    build_dataset([corpus], tmp_path / "again", tokenizer=f"hf:{tmp_path / 'set'}")
    assert DocumentIndex.load(tmp_path / "again").fingerprint == index.fingerprint


def test_tokenizers_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    Reference(models.WordLevel({"a": 0}, "a")).save(str(file))
    for content, complaint in (
        (file.read_text(), r"\(WordLevel\) does not give back 13 of 13 documents"),
        ("[]", "is not a tokenizer.json"),
        ("{", "cannot read"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=complaint):
            build_dataset([corpus], tmp_path / "set", tokenizer=f"hf:{file}")
    with pytest.raises(UserError, match="no tokenizer at"):
        build_dataset([corpus], tmp_path / "set", tokenizer=f"hf:{tmp_path / 'none'}")


@pytest.mark.parametrize("tokenizer", ["bytes", "train-bpe:320", "hf"])
def test_documents_read_in_parts_have_the_tokens_of_the_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign_tokenizer: Path, tokenizer: str
) -> None:
    spec = f"hf:{foreign_tokenizer}" if tokenizer == "hf" else tokenizer
    if tokenizer == "train-bpe:320":  # training sees parts; encoding is what is compared
        build_dataset([corpus], tmp_path / "trained", tokenizer=tokenizer)
        spec = f"bpe:{tmp_path / 'trained'}"
    build_dataset([corpus], tmp_path / "whole", tokenizer=spec, validation_fraction=0.3)
    for part_bytes in (1, 97, 1000):
        monkeypatch.setattr(large_files, "PART_BYTES", part_bytes)
        build_dataset([corpus], tmp_path / f"{part_bytes}", tokenizer=spec, validation_fraction=0.3, workers=2)
        assert files_of(tmp_path / f"{part_bytes}") == files_of(tmp_path / "whole")


def test_a_document_larger_than_memory_would_like_is_built_in_bounded_memory(tmp_path: Path) -> None:
    line = b"a line of text that is repeated until the file is large enough to tell\n"
    with (tmp_path / "large.txt").open("wb") as file:
        for _ in range(256):
            file.write(line * (1 << 12))  # 75 MB of text, 150 MB of tokens
    code = (
        "import resource, sys; from data_pipeline import build_dataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "build_dataset([sys.argv[1]], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large.txt", tmp_path / "set"],
        capture_output=True,
        text=True,
        check=True,
    )
    index = DocumentIndex.load(tmp_path / "set")
    assert index.lengths.tolist() == [256 * (1 << 12) * len(line)]
    assert int(done.stdout) < 130_000  # KiB; the text, its tokens and a copy would be 375,000


KILLED_BUILD = """
import json, os, signal, sys
from data_pipeline import build_dataset
sources, out, kill_at, settings = json.loads(sys.argv[1])
def progress(stage, documents, text_bytes):
    if stage == "writing" and documents == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
build_dataset(sources, out, progress=progress, **settings)
"""


@pytest.fixture(scope="module")
def many_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(2)
    file = tmp_path_factory.mktemp("many") / "lines.jsonl"
    records = [{"id": f"line-{i}", "text": sentence(generator, i % 60)} for i in range(400)]
    file.write_text("\n".join(map(json.dumps, records)))
    return file


@pytest.mark.parametrize("format", ["webdataset", "mds"])
def test_a_killed_build_goes_on_to_the_same_bytes(many_lines: Path, tmp_path: Path, format: str) -> None:
    settings: dict[str, Any] = {
        "format": format,
        "tokenizer": "train-bpe:300",
        "validation_fraction": 0.25,
        "shard_megabytes": 0.002,
        "workers": 2,
    }
    build_dataset([many_lines], tmp_path / "straight", **settings)
    resumed: list[int] = []
    for kill_at in (180, 120):  # documents written by the process itself; the second one goes on from the first
        arguments = json.dumps([[str(many_lines)], str(tmp_path / "killed"), kill_at, settings])
        done = subprocess.run([sys.executable, "-c", KILLED_BUILD, arguments], timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed").exists() and (tmp_path / "killed.partial" / ".journal.jsonl").exists()
        with pytest.raises(
            UserError, match=r"killed is not built yet; if the build was cut short, the same .* goes on"
        ):
            DocumentIndex.load(tmp_path / "killed")
        resumed.append((tmp_path / "killed.partial" / ".journal.jsonl").read_text().count("\n"))
    assert resumed[1] > resumed[0] > 1
    # The line that was being written when the build was killed, and a shard's beginning.
    with (tmp_path / "killed.partial" / ".journal.jsonl").open("ab") as journal:
        journal.write(b'{"split": "tra')
    report = build_dataset([many_lines], tmp_path / "killed", **settings)
    assert report.resumed_documents > 100
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "straight")
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize(
    ("change", "resumed"),
    [
        (lambda source, settings: settings.update(shard_megabytes=0.03), False),
        (lambda source, settings: source.write_text("\n" + source.read_text()), False),  # lines have other names
        (lambda source, settings: source.write_text(source.read_text().replace("the", "THE", 3)), False),
        (lambda source, settings: source.write_text(source.read_text() + "\n" + json.dumps({"text": "more"})), True),
        (lambda source, settings: source.touch(), True),
    ],
    ids=["another setting", "other names", "another text", "more text", "another time"],
)
def test_a_build_goes_on_as_far_as_settings_and_documents_are_the_same(
    many_lines: Path, tmp_path: Path, change: Callable[[Path, dict[str, Any]], object], resumed: bool
) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(many_lines.read_text().replace('"id": "line-', '"number": "'))
    settings: dict[str, Any] = {"shard_megabytes": 0.02}

    def interrupt(stage: str, documents: int, _: int) -> None:
        if documents == 300:
            raise KeyboardInterrupt  # leaves what a kill leaves

    with pytest.raises(KeyboardInterrupt):
        build_dataset([source], tmp_path / "set", progress=interrupt, **settings)
    change(source, settings)
    report = build_dataset([source], tmp_path / "set", **settings)
    assert (report.resumed_documents > 0) == resumed
    build_dataset([source], tmp_path / "straight", **settings)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "straight")


@pytest.mark.parametrize("mended", [True, False], ids=["the source is mended", "bad records are skipped"])
def test_a_bad_record_leaves_the_finished_shards_for_the_next_try(
    many_lines: Path, tmp_path: Path, mended: bool
) -> None:
    source = tmp_path / "source.jsonl"
    good = many_lines.read_text()
    source.write_text(good + '\n{"text": "the writer was kil')
    with pytest.raises(
        UserError, match=r"source\.jsonl line 401: not JSON .*finished shards are kept in .*set\.partial"
    ):
        build_dataset([source], tmp_path / "set", shard_megabytes=0.02)
    shards = sorted((tmp_path / "set.partial").glob("shard-*.tar"))
    stamps = [shard.stat().st_ino for shard in shards]
    assert len(shards) > 2
    with pytest.raises(UserError, match="line 401"):  # a second try loses nothing either
        build_dataset([source], tmp_path / "set", shard_megabytes=0.02)
    if mended:
        source.write_text(good + "\n" + json.dumps({"text": "the writer was killed"}))
    report = build_dataset([source], tmp_path / "set", shard_megabytes=0.02, on_bad_record="stop" if mended else "skip")
    assert report.resumed_documents > 100
    kept = [(tmp_path / "set" / shard.name).stat().st_ino for shard in shards[:-1]]
    assert kept == stamps[:-1]
    facts = report.manifests[tmp_path / "set"].settings
    assert (report.bad_records, facts.get("bad_records")) == ((0, None) if mended else (1, 1))
    assert facts.get("bad_record_places") == (None if mended else list(report.bad_record_places))
    if not mended:
        assert report.bad_record_places[0].startswith("source.jsonl line 401: not JSON")
        source.write_text(good)
        build_dataset([source], tmp_path / "straight", shard_megabytes=0.02)
        same = DocumentIndex.load(tmp_path / "straight").fingerprint
        assert DocumentIndex.load(tmp_path / "set").fingerprint == same


def test_only_bad_records_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "x"}\n' * 3)
    with pytest.raises(UserError, match=r"no text \(0 empty documents and 3 bad ones, the first in x.jsonl line 1: "):
        build_dataset([tmp_path / "x.jsonl"], tmp_path / "set", on_bad_record="skip")
    with pytest.raises(UserError, match="on_bad_record is 'ignore'; choose stop or skip"):
        build_dataset([tmp_path / "x.jsonl"], tmp_path / "set", on_bad_record="ignore")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_bad_records_are_skipped_alike_in_every_reading(many_lines: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    lines = many_lines.read_text().split("\n")
    source.write_text("\n".join([*lines[:7], "{", *lines[7:], "}"]))
    settings: dict[str, Any] = {"tokenizer": "train-bpe:300", "validation_fraction": 0.25}
    report = build_dataset([source], tmp_path / "set", on_bad_record="skip", **settings)
    build_dataset([many_lines], tmp_path / "good", **settings)
    assert report.bad_records == 2
    for split in ("train", "validation"):
        found, wanted = (DocumentIndex.load(tmp_path / name / split).fingerprint for name in ("set", "good"))
        assert found == wanted
