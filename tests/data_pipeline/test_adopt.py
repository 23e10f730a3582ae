# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tokens that others wrote, each kind written byte by byte as its format is published, adopted and read back.

Covers: data_pipeline/adopt.py, data_pipeline/adopt_parquet.py, data_pipeline/token_files.py,
data_pipeline/token_types.py
"""

import gzip
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DocumentIndex, SegmentStream, UserError, build_dataset, open_data
from data_pipeline.adopt import adopt
from data_pipeline.manifest import Manifest
from data_pipeline.opening import open_store
from data_pipeline.token_types import type_of
from data_pipeline.verify import verify_dataset

DOCUMENTS = [list(b"Hello"), list(b"a river, a hill"), [104], list(b"and a road " * 9000)]
EOS = 255


def read_back(directory: Path) -> list[list[int]]:
    index = DocumentIndex.load(directory)
    assert verify_dataset(index) == []
    store = open_store(index)
    return [store.read(document, 0, int(index.lengths[document])).tolist() for document in range(len(index))]


def mds(
    directory: Path, documents: Sequence[bytes], encoding: str = "bytes", size: int | None = None
) -> dict[str, Any]:
    """Writes a shard of MDS, version 2; what its index says of it."""
    directory.mkdir(parents=True, exist_ok=True)
    columns = {"column_encodings": [encoding], "column_names": ["tokens"], "column_sizes": [size]}
    settings = {"compression": None, "format": "mds", "hashes": [], "size_limit": 1 << 26, "version": 2, **columns}
    text = json.dumps(settings, sort_keys=True).encode()
    samples = [(b"" if size else struct.pack("<I", len(each))) + each for each in documents]
    head = 4 * (len(samples) + 2) + len(text)
    places = [head + sum(map(len, samples[:number])) for number in range(len(samples) + 1)]
    raw = struct.pack(f"<{len(places) + 1}I", len(samples), *places) + text + b"".join(samples)
    (directory / "shard.00000.mds").write_bytes(raw)
    named = {"basename": "shard.00000.mds", "bytes": len(raw), "hashes": {}}
    return {**settings, "raw_data": named, "samples": len(samples), "zip_data": None}


def mds_index(directory: Path, *shards: dict[str, Any]) -> Path:
    (directory / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return directory


def megatron(
    prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str, modes: bytes = b"", pad: int = 0
) -> Path:
    """Writes NAME.bin and NAME.idx: documents of sequences of ids; `pad` bytes of nothing between sequences."""
    codes = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}
    sequences = [np.array(sequence, dtype) for document in documents for sequence in document]
    places, at = [], 0
    for sequence in sequences:
        places.append(at)
        at += sequence.nbytes + pad
    bounds = np.cumsum([0, *map(len, documents)])
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_suffix(".bin").write_bytes(b"".join(each.tobytes() + bytes(pad) for each in sequences))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, codes[dtype], len(sequences), len(bounds))
        + np.array([len(each) for each in sequences], "<i4").tobytes()
        + np.array(places, "<i8").tobytes()
        + bounds.astype("<i8").tobytes()
        + modes
    )
    return prefix.with_suffix(".bin")


def datatrove(file: Path, documents: Sequence[Sequence[int]], dtype: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(np.array(document, dtype).tobytes() for document in documents))
    ends = np.cumsum([len(document) for document in documents]).tolist()
    Path(f"{file}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    Path(f"{file}.metadata").write_text("gpt2|2\n5\n5 T")
    return file


def olmo(file: Path, documents: Sequence[Sequence[int]], dtype: str, bounds: bool = True) -> Path:
    """Ids without a header, each document with its end, and the lines that dolma writes beside them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(np.array([*document, EOS], dtype).tobytes() for document in documents))
    ends = np.cumsum([len(document) + 1 for document in documents]).tolist()
    if bounds:
        with gzip.open(file.with_suffix(".csv.gz"), "wt") as lines:
            for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                lines.write(f'{start},{end},"id, {number}",s3://bucket/part.json.gz,{number}\n')
    return file


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", "uint64"])
def test_an_untyped_column_has_the_type_that_its_ids_tell(tmp_path: Path, dtype: str) -> None:
    """LLM-Foundry wrote bytes of int64 until June 2024: read as uint16 each id would be four."""
    shard = mds(tmp_path, [np.array(document, dtype).tobytes() for document in DOCUMENTS])
    manifest = adopt(mds_index(tmp_path, shard), tokenizer="bytes")
    assert read_back(tmp_path) == DOCUMENTS
    assert np.dtype(manifest.token_dtype).itemsize == np.dtype(dtype).itemsize
    assert manifest.text_bytes == manifest.tokens == sum(map(len, DOCUMENTS))


def test_the_option_decides_where_nothing_else_does(tmp_path: Path) -> None:
    zeros = [bytes(16)]
    with pytest.raises(
        UserError, match="does not say the type of its ids, and its tokens do not tell it: give --dtype"
    ):
        adopt(mds_index(tmp_path, mds(tmp_path, zeros)), tokenizer="bytes")
    adopt(tmp_path, tokenizer="bytes", dtype="int64")
    assert read_back(tmp_path) == [[0, 0]]


def test_a_type_is_told_by_the_first_tokens_that_can() -> None:
    read: list[int] = []

    def contents() -> Any:
        for number in range(1000):
            read.append(number)
            yield np.full(1 << 10, 7 + number, "<u2").tobytes()

    assert type_of(contents(), 60_000, "file") == "uint16" and len(read) == 1
    with pytest.raises(UserError, match=r"file does not say .* in none of uint64, uint32, uint16 are they below 6"):
        type_of(contents(), 6, "file")


@pytest.mark.parametrize(
    ("encoding", "head", "size"),
    [
        ("ndarray:int32", lambda ids: bytes([1 << 2 | 1]) + struct.pack("<H", len(ids)), None),
        ("ndarray:int64", lambda ids: bytes([1 << 2 | 2]) + struct.pack("<I", len(ids)), None),
        ("ndarray", lambda ids: bytes([33, 1 << 2 | 0, len(ids)]), None),
        ("ndarray:int32:15", lambda ids: b"", 60),
    ],
)
def test_arrays_of_any_shape_and_type_are_read(
    tmp_path: Path, encoding: str, head: Callable[[list[int]], bytes], size: int | None
) -> None:
    documents = [list(b"a river, a hill"), list(b"and a long road")]
    dtype = "int64" if "int64" in encoding else "int32"
    contents = [head(document) + np.array(document, dtype).tobytes() for document in documents]
    adopt(mds_index(tmp_path, mds(tmp_path, contents, encoding, size)), tokenizer="bytes")
    assert read_back(tmp_path) == documents


def test_a_merged_index_keeps_its_folders(tmp_path: Path) -> None:
    shards = []
    for part, document in enumerate(DOCUMENTS[:2]):
        shard = mds(tmp_path / str(part), [np.array(document, "<u2").tobytes()])
        shards.append(shard | {"raw_data": {**shard["raw_data"], "basename": f"{part}/shard.00000.mds"}})
    adopt(mds_index(tmp_path, *shards), tokenizer="bytes")
    assert read_back(tmp_path) == DOCUMENTS[:2]
    assert [shard.name for shard in Manifest.load(tmp_path).shards] == ["0/shard.00000.mds", "1/shard.00000.mds"]
    outside = {**shards[0], "raw_data": {**shards[0]["raw_data"], "basename": "../shard.00000.mds"}}
    with pytest.raises(UserError, match="does not lie in"):
        adopt(mds_index(tmp_path / "0", outside), tokenizer="bytes")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64"])
def test_megatron_documents_of_several_sequences(tmp_path: Path, dtype: str) -> None:
    documents = [[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]], [[]], [DOCUMENTS[3]]]
    megatron(tmp_path / "my_text_document", documents, dtype)
    manifest = adopt(tmp_path, tokenizer="bytes")
    assert read_back(tmp_path) == [DOCUMENTS[0] + DOCUMENTS[1], DOCUMENTS[2], DOCUMENTS[3]]
    assert manifest.dropped_documents == 1 and manifest.storage == "raw"


def test_one_megatron_data_set_of_several_is_linked(tmp_path: Path) -> None:
    wanted = megatron(tmp_path / "sets" / "one", [[DOCUMENTS[0]]], "int32")
    megatron(tmp_path / "sets" / "two", [[DOCUMENTS[1]]], "int32", modes=bytes(1))
    for number, name in enumerate((wanted, wanted.with_suffix(".idx"), wanted.with_suffix(""))):
        out = tmp_path / f"out{number}"
        adopt(name, tokenizer="bytes", out=out)
        assert read_back(out) == [DOCUMENTS[0]]
        assert (out / "one.bin").is_symlink() and sorted(path.name for path in wanted.parent.iterdir()) == [
            "one.bin",
            "one.idx",
            "two.bin",
            "two.idx",
        ]
    with pytest.raises(UserError, match="one file of a directory is adopted elsewhere; name the directory to make"):
        adopt(wanted, tokenizer="bytes")


def test_what_megatron_did_not_write_is_refused(tmp_path: Path) -> None:
    file = megatron(tmp_path / "text", [[DOCUMENTS[0], DOCUMENTS[1]]], "int32")
    index = file.with_suffix(".idx")
    content = index.read_bytes()
    for changed, complaint in (
        (b"x" + content[1:], "is not an index of Megatron"),
        (content[:-1], "bytes, not the"),
        (content + b"\x00\x01", "its modes are not all 0"),
        (content[:17] + b"\x07" + content[18:], "is float32, which holds no ids"),
        (content[:-8] + struct.pack("<q", 1), "documents are not made of its 2 sequences"),
    ):
        index.write_bytes(changed)
        with pytest.raises(UserError, match=complaint):
            adopt(tmp_path, tokenizer="bytes")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx"]
    index.write_bytes(content)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="ends before the documents that its index names"):
        adopt(tmp_path, tokenizer="bytes")
    megatron(tmp_path / "text", [[DOCUMENTS[0], DOCUMENTS[1]]], "int32", pad=4)
    with pytest.raises(UserError, match="do not lie side by side"):
        adopt(tmp_path, tokenizer="bytes")
    with pytest.raises(UserError, match=r"--dtype is uint16, but .*text\.idx has ids of int32; leave --dtype out"):
        adopt(tmp_path, tokenizer="bytes", dtype="uint16")


def test_the_index_of_another_file_is_refused(tmp_path: Path) -> None:
    file = megatron(tmp_path / "text", [[DOCUMENTS[0]]], "int32")
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(UserError, match=r"has 40 bytes, but text\.idx describes 20: it is the index of another file"):
        adopt(tmp_path, tokenizer="bytes")


@pytest.mark.parametrize(
    ("write", "gone"),
    [
        (lambda folder, name: megatron(folder / name, [[DOCUMENTS[0]]], "int32"), "b.bin"),
        (lambda folder, name: datatrove(folder / f"{name}.ds", DOCUMENTS[:1], "uint16"), "b.ds"),
        (lambda folder, name: olmo(folder / f"{name}.npy", DOCUMENTS[:1], "uint16"), "b.npy"),
    ],
    ids=["megatron", "datatrove", "olmo"],
)
def test_an_index_without_its_file_is_not_passed_over(
    tmp_path: Path, write: Callable[[Path, str], Path], gone: str
) -> None:
    for name in ("a", "b"):
        write(tmp_path, name)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=r"b\..* describes a file \.\w+ that is not beside it; fetch it too"):
        adopt(tmp_path, tokenizer="bytes")


def test_a_worker_without_documents_leaves_files_without_tokens(tmp_path: Path) -> None:
    datatrove(tmp_path / "0.ds", DOCUMENTS[:2], "uint32")
    datatrove(tmp_path / "1.ds", [], "uint32")
    datatrove(tmp_path / "2.ds", [[]], "uint32")
    manifest = adopt(tmp_path, tokenizer="bytes")
    assert read_back(tmp_path) == DOCUMENTS[:2] and manifest.dropped_documents == 1


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_datatrove_files_in_folders(tmp_path: Path, dtype: str) -> None:
    datatrove(tmp_path / "a" / "00000_unshuffled.ds", DOCUMENTS[:2], dtype)
    datatrove(tmp_path / "b" / "00000_unshuffled.ds", DOCUMENTS[2:], dtype)
    adopt(tmp_path, tokenizer="bytes")
    assert read_back(tmp_path) == DOCUMENTS
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "b" / "00000_unshuffled.ds").write_bytes(bytes(10))
    with pytest.raises(UserError, match="fetch both again"):
        adopt(tmp_path, tokenizer="bytes")
    (tmp_path / "b" / "00000_unshuffled.ds.index").unlink()
    with pytest.raises(UserError, match=r"has no 00000_unshuffled\.ds\.index beside it"):
        adopt(tmp_path, tokenizer="bytes")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("bounds", [True, False])
def test_olmo_files_end_documents_by_lines_or_by_an_id(tmp_path: Path, dtype: str, bounds: bool) -> None:
    olmo(tmp_path / "part-0.npy", DOCUMENTS[:2], dtype, bounds)
    olmo(tmp_path / "part-1.npy", DOCUMENTS[2:], dtype, bounds)
    if not bounds:
        with pytest.raises(UserError, match=r"no part-0\.csv\.gz beside it; give the id that ends each document"):
            adopt(tmp_path, tokenizer="bytes")
        with pytest.raises(UserError, match="--eos is 254, an id that"):
            adopt(tmp_path, tokenizer="bytes", eos=254)
    adopt(tmp_path, tokenizer="bytes", eos=None if bounds else EOS)
    assert read_back(tmp_path) == [[*document, EOS] for document in DOCUMENTS]


def test_what_no_document_holds_is_counted_and_nothing_is_cut_off(tmp_path: Path) -> None:
    file = olmo(tmp_path / "lines" / "part.npy", DOCUMENTS[:2], "uint16")
    file.write_bytes(file.read_bytes() + np.array([1, 2, 3], "<u2").tobytes())
    manifest = adopt(file.parent, tokenizer="bytes")
    assert manifest.settings["tokens_outside_documents"] == 3
    file = olmo(tmp_path / "ids" / "train.bin", DOCUMENTS[:2], "uint16", bounds=False)  # as nanoGPT writes it
    file.write_bytes(file.read_bytes() + np.array([1, 2, 3], "<u2").tobytes())
    adopt(file.parent, tokenizer="bytes", eos=EOS)
    assert read_back(file.parent)[-1] == [1, 2, 3]


def test_a_file_that_numpy_saved_has_its_type_in_it(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([*DOCUMENTS[0], EOS, *DOCUMENTS[1], EOS], np.int32))
    adopt(tmp_path, tokenizer="bytes", eos=EOS)
    assert read_back(tmp_path) == [[*document, EOS] for document in DOCUMENTS[:2]]
    for name, array in (("rows", np.zeros((2, 3), np.int32)), ("floats", np.zeros(3))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "ids.npy", array)
        with pytest.raises(
            UserError, match="not one row of ids" if name == "rows" else "is float64, which holds no ids"
        ):
            adopt(tmp_path / name, tokenizer="bytes", eos=EOS)


@pytest.mark.parametrize("change", [lambda whole: whole[:-8], lambda whole: whole + bytes(8)])
def test_a_file_that_numpy_saved_and_that_has_another_length_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "ids.npy"
    np.save(file, np.array([*DOCUMENTS[0], EOS], np.int32))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=r"bytes of ids, and its head says 24; fetch it again"):
        adopt(tmp_path, tokenizer="bytes", eos=EOS)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("part.npy", b"", "part.npy is empty; fetch it again"),
        ("part.csv.gz", b"", r"part.csv.gz does not begin its lines .*\(it is empty\)"),
        ("part.csv.gz", gzip.compress(b"", mtime=0), "the npy files of .*lines hold no token"),
    ],
)
def test_a_file_that_was_not_fetched_is_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    olmo(tmp_path / "lines" / "part.npy", DOCUMENTS[:2], "uint16")
    (tmp_path / "lines" / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        adopt(tmp_path / "lines", tokenizer="bytes", out=tmp_path / "out")


def test_loss_weights_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    """Shards of `data build` without their manifest: adopted, every token would count."""
    (tmp_path / "a.jsonl").write_text('{"text": "who? me", "loss_weights": [[5, 7, 1]]}')
    build_dataset([tmp_path / "a.jsonl"], tmp_path / "set", format="mds", loss_weights_key="loss_weights")
    (tmp_path / "set" / "manifest.json").unlink()
    before = sorted(path.name for path in (tmp_path / "set").iterdir())
    with pytest.raises(UserError, match=r"has a column loss_weights, which is not adopted, .* fetch the manifest"):
        adopt(tmp_path / "set", tokenizer="bytes")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == before


def test_an_index_of_mds_with_another_type_is_one_line(tmp_path: Path) -> None:
    shard = mds(tmp_path, [np.array(DOCUMENTS[0], "<u2").tobytes()])
    with pytest.raises(UserError, match="is not the index of MDS shards"):
        adopt(mds_index(tmp_path, {**shard, "column_sizes": ["x"]}), tokenizer="bytes")


def test_an_address_is_refused_without_showing_what_is_secret_in_it() -> None:
    with pytest.raises(UserError, match="copy them here first") as caught:
        adopt("https://host/tokens?signature=secret", tokenizer="bytes")
    assert "secret" not in str(caught.value)


def test_parquet_is_copied_and_checked(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "rows").mkdir()
    for number, documents in enumerate((DOCUMENTS[:3], DOCUMENTS[3:])):
        names = [f"name-{number}-{row}" for row in range(len(documents))]
        kind = pyarrow.list_(pyarrow.int64()) if number else pyarrow.large_list(pyarrow.int32())
        table = pyarrow.table({"input_ids": pyarrow.array(documents, kind), "url": names})
        parquet.write_table(table, tmp_path / "rows" / f"part-{number}.parquet", row_group_size=2)
    with pytest.raises(UserError, match="Parquet is copied; name the directory to make with --out"):
        adopt(tmp_path / "rows", tokenizer="bytes")
    out = tmp_path / "out"
    manifest = adopt(tmp_path / "rows", tokenizer="bytes", out=out, name_column="url")
    assert read_back(out) == DOCUMENTS and DocumentIndex.load(out).name(3) == "name-1-0"
    assert np.dtype(manifest.token_dtype) == np.uint16
    with pytest.raises(UserError, match="holds something already"):
        adopt(tmp_path / "rows", tokenizer="bytes", out=out)
    for settings, complaint in (
        ({"column": "url"}, "column url is string, not lists of whole numbers"),
        ({"column": "tokens"}, "has no column tokens; its columns are input_ids, url"),
        ({"tokenizer": None, "vocab_size": 110}, "have id 118, but the vocabulary has only ids 0 to 109"),
    ):
        with pytest.raises(UserError, match=complaint):
            adopt(tmp_path / "rows", **{"tokenizer": "bytes", "out": tmp_path / "new", **settings})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows"]


def test_ids_outside_the_vocabulary_are_named_as_they_were_written(tmp_path: Path) -> None:
    for wrong in (256, -100):
        megatron(tmp_path / "text", [[DOCUMENTS[0]], [[1, wrong]]], "int32")
        with pytest.raises(UserError, match=rf"document 1 has id {wrong}, but the vocabulary has only ids 0 to 255"):
            adopt(tmp_path, tokenizer="bytes")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx"]


def test_without_a_tokenizer_ids_are_numbers(tmp_path: Path) -> None:
    megatron(tmp_path / "text", [[[5, 66_000, 7]]], "int32")
    manifest = adopt(tmp_path, vocab_size=70_000)
    assert read_back(tmp_path) == [[5, 66_000, 7]]
    index = DocumentIndex.load(tmp_path)
    assert (index.vocab_size, index.tokenizer.start_token_id, manifest.text_bytes) == (70_001, 70_000, 0)
    assert index.tokenizer.decode([5, 66_000]) == "5 66000"
    with pytest.raises(UserError, match="give the tokenizer that made the tokens"):
        adopt(tmp_path)


def test_sets_of_other_types_are_one_in_a_blend_only(tmp_path: Path) -> None:
    megatron(tmp_path / "both" / "one", [[DOCUMENTS[0]]], "int32")
    megatron(tmp_path / "both" / "two", [[DOCUMENTS[1]]], "uint16")
    with pytest.raises(UserError, match=r"has ids of uint32 and .* of uint16; adopt them as two data sets"):
        adopt(tmp_path / "both", tokenizer="bytes")
    for name in ("one", "two"):
        adopt(tmp_path / "both" / name, tokenizer="bytes", out=tmp_path / name)
    for names in (("one", "two"), ("two", "one")):
        blend = open_data([(str(tmp_path / name), 1.0) for name in names])
        with SegmentStream(blend, num_lanes=2, segment_length=4, num_segments=2, epochs=1) as stream:
            read: dict[int, list[int]] = {}
            for batch in stream:
                for lane, segment in np.argwhere(batch.lengths > 0).tolist():
                    ids = batch.tokens[lane, segment, : batch.lengths[lane, segment]].tolist()
                    read.setdefault(int(batch.documents[lane, segment]), []).extend(ids)
        assert read == dict(enumerate(DOCUMENTS[:2] if names[0] == "one" else DOCUMENTS[1::-1]))


def test_nothing_of_the_users_is_replaced(tmp_path: Path) -> None:
    megatron(tmp_path / "text", [[DOCUMENTS[0]]], "int32")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is another file than the data set needs there; name a dir"):
        adopt(tmp_path, tokenizer="bytes")
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    with pytest.raises(UserError, match="no tokens of a known kind"):
        adopt(tmp_path / "tokenizer.json", tokenizer="bytes")
    olmo(tmp_path / "part.npy", DOCUMENTS, "uint16")
    with pytest.raises(UserError, match=r"holds files of several kinds \(\.bin, \.npy\)"):
        adopt(tmp_path, tokenizer="bytes", out=tmp_path / "out")
    (tmp_path / "part.npy").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    for options, complaint in (
        ({"eos": 1}, r"--eos is 1, which \.bin files have no use for"),
        ({"column": "ids"}, "--column is ids, which"),
    ):
        with pytest.raises(UserError, match=complaint):
            adopt(tmp_path, tokenizer="bytes", out=tmp_path / "out", **options)
    assert adopt(tmp_path, tokenizer="bytes", out=tmp_path / "out").documents == 1
    with pytest.raises(UserError, match="copy them here first"):
        adopt("http://host/set", tokenizer="bytes")
