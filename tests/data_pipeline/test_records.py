# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Records: odd ones that are legal are read, bad ones are named with their place or counted.

Covers: data_pipeline/packed.py
"""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import UserError, large_files
from data_pipeline.records import Corpus, RecordKeys
from data_pipeline.sources import find_files

LINES = b'{"text": "one"}\n{"text": "two", "id": "second"}\n'


def corpus_of(path: Path, content: bytes, skip: bool = False, **keys: Any) -> Corpus:
    path.write_bytes(content)
    return Corpus(find_files([path]).files, RecordKeys(**keys), skip)


def read(path: Path, content: bytes, **keys: Any) -> list[tuple[str, str | bytes]]:
    return [(part.name, part.content) for part in corpus_of(path, content, **keys).parts()]


def complaint(path: Path, content: bytes, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, content, **keys)
    return str(caught.value)


def zstd(content: bytes, frames: int = 1) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    size = -(-len(content) // frames)
    parts = (content[at : at + size] for at in range(0, len(content), size))
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


def zstd_with_window(content: bytes, power: int) -> bytes:
    """One frame with one block that is not packed, of which `zstd --long=POWER` would say the same window."""
    head = b"\x28\xb5\x2f\xfd\x00" + bytes([(power - 10) << 3])
    return head + ((len(content) << 3) | 1).to_bytes(3, "little") + content


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", lambda content: content),
        (".gz", gzip.compress),
        (".gz", lambda content: gzip.compress(content[:20]) + gzip.compress(content[20:])),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstd),
        (".zst", lambda content: b"\x50\x2a\x4d\x18\x02\0\0\0??" + zstd(content)),  # as pzstd does
        (".zst", lambda content: zstd(content, frames=9)),
        (".zst", lambda content: zstd_with_window(content, 31)),
        ("-of-a-pipe", gzip.compress),  # known by its first bytes
        ("-of-a-pipe", zstd),
    ],
)
def test_packed_files_are_read(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / f"x.jsonl{suffix}"
    assert read(file, pack(LINES)) == [(f"{file.name}:1", "one"), ("second", "two")]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_packed_files_that_are_cut_short_are_an_error(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    content = b"".join(b'{"text": "%d"}\n' % (number**3) for number in range(30_000))
    packed = pack(content)
    for length in (len(packed) // 2, len(packed) - 1):
        said = complaint(tmp_path / f"x.jsonl{suffix}", packed[:length])
        assert f"x.jsonl{suffix}: damaged" in said and "fetch it again" in said
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        corpus = corpus_of(tmp_path / f"x.jsonl{suffix}", b"no such packing", skip=True)  # is no bad record
        list(corpus.parts())


def test_a_window_that_nobody_can_hold_is_named(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    said = complaint(tmp_path / "x.jsonl.zst", zstd_with_window(LINES, 32))
    assert "x.jsonl.zst: its zstd window is longer than 2 GiB; pack it again with --long=31" in said


@pytest.mark.parametrize(
    "content",
    [
        b'[{"text": "one"}, {"text": "two", "id": "second"}]',
        b'\xef\xbb\xbf[\n {"text": "one"},\n {"text": "two", "id": "second"}\n]\n',
        b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two", "id": "second"}\r\n',
        b'\xef\xbb\xbf{"text": "one", "id": ""}\n\xef\xbb\xbf{"text": "two", "id": "second"}\n',
        b'\n{"text": "one", "n": ' + b"1" * 5000 + b'}\n{"text": "two", "id": "second"}',
        b'{"text": "one", "n": -1e999, "m": NaN, "id": null}\n{"id": "second", "text": "\\u0074wo"}',
    ],
    ids=["array", "array over lines", "mark and line ends", "files put together", "long integer", "odd numbers"],
)
def test_odd_json_is_read(tmp_path: Path, content: bytes) -> None:
    (_, first), second = read(tmp_path / "x.json", content)
    assert (first, second) == ("one", ("second", "two"))


def test_one_object_over_several_lines_is_one_record(tmp_path: Path) -> None:
    assert read(tmp_path / "x.json", json.dumps({"text": "a\nb"}, indent=1).encode()) == [("x.json:1", "a\nb")]
    assert "neither JSON lines nor one JSON value" in complaint(tmp_path / "x.json", b'{\n "text": "a"\n')


def test_texts_keep_every_byte(tmp_path: Path) -> None:
    content = "\ufeffa mark,\r\nline ends, \0 and \u2028 \U0010ffff".encode()
    assert read(tmp_path / "x.txt", content) == [("x.txt", content.decode())]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": "b', "x.jsonl line 2: not JSON ("),
        ("x.jsonl", b'{"text": null}\n', 'line 1: needs a string under "text", not null'),
        ("x.jsonl", b'{"text": 5}\n', 'line 1: needs a string under "text", not a number'),
        ("x.jsonl", b'{"text": ' + b"5" * 5000 + b"}\n", 'line 1: needs a string under "text", not a number'),
        ("x.jsonl", b'{"body": "a", "n": 1}\n', '"text" (its keys are body, n; --text-key names another)'),
        ("x.jsonl", b'"a"\n', 'needs a string under "text", as in'),
        ("x.jsonl", b'{"text": "half \\ud83d a pair"}\n', 'line 1: "text" has half a surrogate pair at character 5'),
        ("x.jsonl", b'{"text": "\xe9"}\n', "line 1: not UTF-8 at byte 10"),
        ("x.jsonl", b'{"text": "a", "n": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "line 1: nested too deeply"),
        ("x.txt", b"caf\xe9 au lait", "x.txt: not UTF-8 at byte 3"),
        ("x.txt", "sixteen bits".encode("utf-16"), "byte 0: UTF-16, which iconv"),
        ("x.txt", "sixteen bits".encode("utf-16-le"), "12 of the first 24 bytes are 0"),
    ],
)
def test_bad_records_are_named_or_skipped(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    error = complaint(tmp_path / name, content)
    assert said in error and str(tmp_path / name) in error and "--on-bad-record skip" in error
    corpus = corpus_of(tmp_path / name, content, skip=True)
    for _ in range(2):  # each reading counts anew
        assert [part.content for part in corpus.parts()] == (["a"] if "line 2" in said else [])
        assert corpus.bad.count == 1 and said.removeprefix(name) in corpus.bad.places[0]
        assert corpus.bad.places[0].startswith(name)


def test_a_json_file_of_sixteen_bits_is_refused_whole(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "x.jsonl", '{"text": "a"}\n'.encode("utf-16"), skip=True)
    with pytest.raises(UserError, match="UTF-16, which iconv"):
        list(corpus.parts())


def test_many_bad_records_are_counted_and_the_first_named(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "x.jsonl", b'{"text": "a"}\n{}\n' * 50, skip=True)
    assert len(list(corpus.parts())) == corpus.bad.count == 50
    assert len(corpus.bad.places) == 10 and corpus.bad.places[9].startswith("x.jsonl line 20: needs a string")


def test_of_a_long_text_that_ends_badly_nothing_is_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "PART_BYTES", 10)
    corpus = corpus_of(tmp_path / "x.txt", b"good until here and then \xff", skip=True)
    assert list(corpus.parts()) == [] and corpus.bad.places == [
        "x.txt: not UTF-8 at byte 25; convert the file to UTF-8"
    ]


def test_other_keys(tmp_path: Path) -> None:
    content = b'{"body": "a", "id": 1, "url": "u"}\n{"body": "b", "id": 2}\n'
    assert read(tmp_path / "x.jsonl", content, text="body") == [("1", "a"), ("2", "b")]
    assert '"url" (its keys are body, id; --id-key' in complaint(tmp_path / "x.jsonl", content, text="body", id="url")


def test_parquet_strings_of_every_make(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "x.parquet"

    def write(**columns: Any) -> bytes:
        parquet.write_table(pyarrow.table(columns), file)
        return file.read_bytes()

    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.string_view()):
        assert read(file, write(text=pyarrow.array(["é", ""], kind))) == [("x.parquet:0", "é"), ("x.parquet:1", "")]
    repeated = pyarrow.array(["b", "a", "b"]).dictionary_encode()
    assert read(file, write(body=repeated, n=[1, 2, 3]), text="body", id="n") == [("1", "b"), ("2", "a"), ("3", "b")]

    latin = pyarrow.array([b"ok", b"caf\xe9", None], pyarrow.binary()).view(pyarrow.string())
    content = write(text=latin, id=pyarrow.array([b"1", b"\xe9", b"3"], pyarrow.binary()).view(pyarrow.string()))
    assert 'x.parquet row 1: its "text" is not UTF-8 at byte 3' in complaint(file, content)
    corpus = corpus_of(file, content, skip=True)
    assert [part.name for part in corpus.parts()] == ["1"]
    assert corpus.bad.places == [
        'x.parquet row 1: its "text" is not UTF-8 at byte 3',
        'x.parquet row 2: needs a string in the column "text", not null',
    ]
    twice = pyarrow.Table.from_arrays([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(twice, file)
    assert 'has 2 columns "text"; rename one' in complaint(file, file.read_bytes())
    assert 'column "text" holds int64, not text' in complaint(file, write(text=[1]))
    assert 'no column "text" (its columns are body); --text-key' in complaint(file, write(body=["a"]))
    assert 'no column "name" (its columns are text); --id-key' in complaint(file, write(text=["a"]), id="name")
