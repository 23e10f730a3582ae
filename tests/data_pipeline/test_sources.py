# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What sources are taken for: every file is read, refused with its mend, or named among those left out."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from data_pipeline import UserError, build_dataset
from data_pipeline.sources import BOOKS, find_files, printable


def taken(*sources: Path) -> dict[str, str]:
    return {file.name: file.kind for file in find_files(sources).files}


def refusal(*sources: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_files(sources)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("a.md.xz", "text"),
        ("a.jsonl", "json"),
        ("c4-train.00000-of-01024.json.gz", "json"),
        ("A.NDJSON.ZST", "json"),
        ("a.json.bz2", "json"),
        ("a.parquet", "parquet"),
        ("train-images-idx3-ubyte.gz", "images"),
    ],
)
def test_names_tell_the_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert taken(tmp_path / name) == taken(tmp_path) == {name: kind}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', "json"),
        (b'\xef\xbb\xbf\n {\n "text": "a"}', "json"),
        (b'[\n {"text": "a"}]', "json"),
        (b"[Chapter 1] {once}", "text"),
        (b"{once} upon a time", "text"),
        (b"", "text"),
        (b"PAR1...", "parquet"),
    ],
)
def test_files_of_other_names_are_told_by_their_content(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "part-00000").write_bytes(content)
    assert taken(tmp_path / "part-00000") == {"part-00000": kind}


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("a.csv", "JSON lines or Parquet"),
        ("a.TSV.gz", "JSON lines or Parquet"),
        ("shard-000000.tar", "unpack it"),
        ("a.tgz", "unpack it"),
        ("a.tar.zst", "unpack it"),
        ("a.zip", "unpack it"),
        ("a.pdf", "turn it into text"),
        ("a.npy", "data adopt"),
        ("a.txt.lz4", "unpack it first"),
        ("a.safetensors", "holds no text"),
        ("a.parquet.gz", "unpack it first"),
    ],
)
def test_kinds_that_are_not_read_are_refused_with_the_mend(tmp_path: Path, name: str, mend: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    said = refusal(tmp_path / name)
    assert name in said and mend in said


def test_an_archive_is_known_by_its_content_too(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("one")
    with tarfile.open(tmp_path / "data", "w:gz") as archive:
        archive.add(tmp_path / "1.txt", "1.txt")
    assert "a tar archive by its content; unpack it" in refusal(tmp_path / "data")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "1.txt")
    (tmp_path / "packed.zip").rename(tmp_path / "packed")
    assert "unpack it" in refusal(tmp_path / "packed")


def test_a_directory_is_searched_through_links_and_each_file_taken_once(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (corpus / "en").mkdir(parents=True)
    elsewhere.mkdir()
    (corpus / "en" / "a.txt").write_text("english")
    (elsewhere / "b.txt").write_text("deutsch")
    (elsewhere / "back").symlink_to(corpus)  # a circle
    (corpus / "de").symlink_to("../elsewhere")
    (corpus / "again").symlink_to("en")
    (corpus / "1-linked.txt").symlink_to("en/a.txt")
    (corpus / "c.txt").symlink_to("../single.txt")
    (tmp_path / "single.txt").write_text("linked")
    survey = find_files([corpus])
    assert [file.name for file in survey.files] == ["c.txt", "de/b.txt", "en/a.txt"]
    assert [name for name, _ in survey.left_out] == ["1-linked.txt", "again/", "de/back/"]
    assert {reason for _, reason in survey.left_out} == {"reached by another name already"}


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in ("a.txt", "b.ndjson", "c.csv", "d.docx", ".h.txt", ".git/x.txt"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.txt")
    survey = find_files([tmp_path])
    assert survey.lines() == [
        "sources: 1 file as text, a document a file (a.txt); 1 file as JSON, a document a record (b.ndjson)",
        "left out: 2 hidden (.git, .h.txt); 2 of kinds that are not read (c.csv, d.docx); "
        "1 of pipes and devices (pipe.txt)",
    ]
    facts = survey.to_json()
    assert (facts["files"], facts["kinds"], facts["left_out"]) == (2, {"text": 1, "json": 1}, 5)
    assert {"name": "c.csv", "reason": "of kinds that are not read"} in facts["left_out_files"]
    json.dumps(facts)
    for name in ("a.txt", "b.ndjson"):
        (tmp_path / name).unlink()
    assert "it holds 5 files of other kinds (.git, .h.txt, c.csv, d.docx, pipe.txt)" in refusal(tmp_path)


def test_data_sets_and_builds_in_a_directory_are_no_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 2000)
    build_dataset([tmp_path], tmp_path / "set")
    (tmp_path / "b.txt").write_text("another")
    (tmp_path / "other.partial").mkdir()
    for name in (".building", "tokenizer.json"):
        (tmp_path / "other.partial" / name).write_text("{}")
    survey = find_files([tmp_path])
    assert [file.name for file in survey.files] == ["a.txt", "b.txt"]
    assert survey.left_out == (("other.partial/", "of data sets"), ("set/", "of data sets"))
    build_dataset([tmp_path], tmp_path / "set", overwrite=True)
    assert "no .txt" in refusal(tmp_path / "set")


def test_names_stay_on_their_line_whatever_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "a\nb\x1b[31m é.txt").write_text("x")
    assert find_files([tmp_path]).lines() == ["sources: 1 file as text, a document a file (a\\nb\\x1b[31m é.txt)"]


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("x")
    assert find_files([tmp_path]).lines() == [
        "sources: 9 files as text, a document a file (0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...)"
    ]


def test_files_of_one_name_are_told_apart_by_their_whole_paths(tmp_path: Path) -> None:
    for folder in ("en", "de"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.txt").write_text(folder)
        (tmp_path / folder / f"{folder}.txt").write_text(folder)
    found = find_files([tmp_path / "en", tmp_path / "de"]).files
    assert [file.name for file in found] == ["en.txt", f"{tmp_path}/en/part.txt", "de.txt", f"{tmp_path}/de/part.txt"]


def test_a_link_that_leads_nowhere_is_an_error_where_a_text_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "picture.png").symlink_to("gone.png")
    assert taken(tmp_path) == {"a.txt": "text"}
    (tmp_path / "b.txt").symlink_to("gone.txt")
    assert "b.txt: no such file" in refusal(tmp_path)
    (tmp_path / "b.txt").unlink()
    for name, where in (("loop", "loop"), ("german", "gone"), ("en-v1.0", "gone")):
        (tmp_path / name).symlink_to(where)
        assert f"{name}: a link that cannot be read" in refusal(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("é", "é"), ("\udcc3\udca9", "é"), ("\udcff.txt", "\ufffd.txt"), ("half \ud83d", "half ?")],
    ids=["text", "UTF-8 in an ASCII locale", "a byte that is no UTF-8", "half a pair of an id"],
)
def test_names_can_be_stored(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_devices_and_names_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    assert "a device" in refusal(Path("/dev/null"))
    for address in ("s3://bucket/texts", "HTTPS://me:secret@host/a.jsonl", "https://host/a.jsonl?signature=secret"):
        with pytest.raises(UserError, match="an address; fetch it first") as caught:
            find_files([address])
        assert "secret" not in str(caught.value)
    assert "no such file" in refusal(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    assert "no such file" in refusal(tmp_path / "a.txt" / "b")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))


@pytest.mark.parametrize("closed", ["folder", "folder/b.txt"])
def test_what_may_not_be_read_is_an_error(tmp_path: Path, closed: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").write_text("x")
    (tmp_path / closed).chmod(0)
    code = "import sys; from data_pipeline.sources import BOOKS, find_files; find_files(sys.argv[1:])"
    words = [sys.executable, "-c", code, str(tmp_path)]
    if os.geteuid() == 0:  # whom no mode keeps out
        if not shutil.which("setpriv"):
            pytest.skip("root without setpriv reads everything")
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    done = subprocess.run(words, capture_output=True, text=True)
    (tmp_path / closed).chmod(0o755)
    assert done.returncode == 1
    assert f"{tmp_path / closed}: cannot be read (Permission denied)" in done.stderr.splitlines()[-1]


def test_the_books_of_the_package_have_a_name() -> None:
    survey = find_files(["builtin:books"])
    assert len(survey.files) == len(list(BOOKS.iterdir())) > 10 and not survey.left_out
    assert survey == find_files([BOOKS]) and all(file.kind == "text" for file in survey.files)
    with pytest.raises(UserError, match=r"source builtin:book: no such text .* there is builtin:books"):
        find_files(["builtin:book"])
