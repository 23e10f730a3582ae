# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Finds the files that a data set is built from, and says of each what it is taken for.

A source is a file, a pipe (`-`: standard input), a directory, or `builtin:books`, the books that come with the package.
A directory is searched recursively, through links
too, for the kinds of files in `KINDS` and for images, in the order of their relative paths. Everything else in it is
left out and counted, data sets and builds included; what cannot be read is an error.

- `.jsonl`, `.ndjson`, `.json`: a document a line, `{"text": ..., "id": ...}` (`id` may be absent); or one array of
  such records, or one, over several lines (which is then held in memory);
- `.parquet`: a document a row, the columns `text` and, if it is there, `id`;
- `.idx`, `.idx3-ubyte` and the like (the format of the MNIST images): a document an image, a token a byte;
- `.txt`, `.md`: one document, taken byte for byte: line ends and a byte order mark stay as they are.

A pipe, and a file with another name that is named as a source, is told by its content: Parquet, JSON if it begins with
an object or an array of objects, otherwise a text. All but Parquet may be packed (`data_pipeline.packed`).
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline import addresses
from data_pipeline.build_journal import MARKER
from data_pipeline.errors import UserError
from data_pipeline.manifest import COLUMNS_FILE, MANIFEST_FILE
from data_pipeline.packed import PACKED_SUFFIXES, damage_errors, open_unpacked

STANDARD_INPUT = "-"
BOOKS = Path(__file__).parent / "corpora" / "books"
"""17 books (corpora/PROVENANCE.md); `corpora` is a link to the repository's directory, and a directory in a wheel."""
_BUILTIN = {"builtin:books": BOOKS}
KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
_IMAGES = re.compile(r"[.-]idx([2-9](-ubyte)?)?$")
_LABELS = "-idx1-ubyte"
_IN_WORDS = {
    "text": "as text, a document a file",
    "json": "as JSON, a document a record",
    "parquet": "as Parquet, a document a row",
    "images": "as images, a document an image",
    "pipe": "from a pipe",
}
_TABLE = "turn it into JSON lines or Parquet with a column of text"
_ARCHIVE = "unpack it and name the folder"
_NO_TEXT = "it holds no text"
_REFUSED = {
    **dict.fromkeys("csv tsv xls xlsx ods arrow feather avro orc".split(), _TABLE),
    **dict.fromkeys("sqlite sqlite3 db mdb".split(), _TABLE),
    **dict.fromkeys("tar tgz tbz tbz2 txz tzst zip 7z rar jar".split(), _ARCHIVE),
    **dict.fromkeys("lz4 br z lzma lzo sz snappy".split(), "unpack it first"),
    **dict.fromkeys("pdf doc docx odt rtf epub mobi djvu ps ppt pptx".split(), "turn it into text first"),
    **dict.fromkeys("npy npz bin ds mds tfrecord".split(), f"{_NO_TEXT}; `memformer data adopt` takes tokens over"),
    **dict.fromkeys("pt pth ckpt safetensors gguf h5 hdf5 pkl pickle".split(), _NO_TEXT),
    **dict.fromkeys("png jpg jpeg gif webp bmp tif tiff mp3 wav flac ogg mp4 mkv avi mov".split(), _NO_TEXT),
    **dict.fromkeys("exe dll so o a class pyc whl".split(), _NO_TEXT),
}
_JSON_BEGINNING = re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"')
_BEGINNINGS = {b"PK\x03\x04": _ARCHIVE, b"%PDF-": "turn it into text first", b"PAR1": "unpack it first"}
_TAR_MARK = (257, b"ustar")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # line ends, and what steers a terminal
_HEAD_BYTES = 1 << 12
_NAMES_SHOWN = 5
_NAMES_KEPT = 100
_AGAIN = "reached by another name already"


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    Attributes:
        path: Where it is.
        name: Its name relative to the source that led to it, for people: documents are named after it.
        kind: What it is taken for: `text`, `json`, `parquet`, `images`; `pipe` until its content is there.
        shown: What errors call it.
        digest: SHA-256 of what came through a pipe.
    """

    path: Path
    name: str
    kind: str
    shown: str
    digest: str | None = None


@dataclass(frozen=True)
class Survey:
    """What sources stand for: the files in the order in which they are read, and (name, reason) of those left out."""

    files: tuple[SourceFile, ...]
    left_out: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """What is taken as what, and what is left out, for people."""
        kinds = {kind: [file.name for file in self.files if file.kind == kind] for kind in _IN_WORDS}
        taken = [f"{_files(names)} {_IN_WORDS[kind]} ({_some(names)})" for kind, names in kinds.items() if names]
        reasons = dict.fromkeys(reason for _, reason in self.left_out)
        left = {reason: [name for name, why in self.left_out if why == reason] for reason in reasons}
        parts = [f"{len(names):,} {reason} ({_some(names)})" for reason, names in left.items()]
        return [f"sources: {'; '.join(taken)}"] + ([f"left out: {'; '.join(parts)}"] if parts else [])

    def to_json(self) -> dict[str, Any]:
        """The same for programs; of the files left out, all are counted and the first named."""
        kept = [{"name": name, "reason": reason} for name, reason in self.left_out[:_NAMES_KEPT]]
        kinds = Counter(file.kind for file in self.files)
        return {"files": len(self.files), "kinds": dict(kinds), "left_out": len(self.left_out), "left_out_files": kept}


def find_files(sources: Sequence[str | Path]) -> Survey:
    """The files that these sources stand for, in the order in which they will be read.

    Raises:
        UserError: A source does not exist, cannot be read, holds no text or is of a kind that is not read, or leads
            to a file that another source led to.
    """
    if not sources:
        raise UserError("no source given; name text, JSON, Parquet or image files, directories, or - for a pipe")
    files: list[SourceFile] = []
    left_out: list[tuple[str, str]] = []
    for source in sources:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(source)):
            raise UserError(f"source {addresses.shown(source)}: an address; fetch it first, or pipe what it sends to -")
        if os.fspath(source).startswith("builtin:") and source not in _BUILTIN:
            raise UserError(f"source {source}: no such text comes with the package; there is {', '.join(_BUILTIN)}")
        from_input = os.fspath(source) == STANDARD_INPUT
        path = Path("/dev/stdin") if from_input else _BUILTIN.get(os.fspath(source), Path(source))
        mode = _mode(path)
        if stat.S_ISFIFO(mode) or (from_input and not stat.S_ISCHR(mode)):
            number = 1 + sum(file.kind == "pipe" for file in files)
            files.append(SourceFile(path, f"pipe-{number}", "pipe", printable(os.fspath(source))))
        elif stat.S_ISDIR(mode):
            files += _in_directory(path, left_out)
        elif stat.S_ISREG(mode):
            _check_readable(path)
            files.append(SourceFile(path, printable(path.name), _kind_of_named(path), printable(str(path))))
        else:
            what = "standard input is no pipe" if from_input else "a device"
            raise UserError(f"source {source}: {what}; name a file or a directory, or pipe a text to -")
    seen: set[Path] = set()
    for file in files:
        resolved = file.path.resolve()
        if resolved in seen:
            raise UserError(f"source {file.shown} is given twice; name each file once")
        seen.add(resolved)
    # Files of one name in several sources are told apart by their whole paths.
    names = Counter(file.name for file in files)
    files = [file if names[file.name] == 1 else replace(file, name=file.shown) for file in files]
    return Survey(tuple(files), tuple(left_out))


def kind_by_content(path: Path, shown: str) -> str:
    """What a file is taken for whose name does not say it.

    Raises:
        UserError: It is of a kind that is not read, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                return "parquet"
        with open_unpacked(path) as stream:
            head = stream.read(_HEAD_BYTES)
    except damage_errors() as error:
        raise UserError(f"source {shown}: damaged ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"source {shown}: cannot be read ({error.strerror or error})") from None
    for beginning, mend in _BEGINNINGS.items():
        if head.startswith(beginning):
            raise UserError(f"source {shown}: its first bytes are not those of a text; {mend}")
    if head[_TAR_MARK[0] :].startswith(_TAR_MARK[1]):
        raise UserError(f"source {shown}: a tar archive by its content; {_ARCHIVE}")
    return "json" if _JSON_BEGINNING.match(head) else "text"


def printable(name: str) -> str:
    """A name that can be stored as UTF-8, whatever bytes a file's name or escapes an id is made of.

    Bytes of a file's name that are UTF-8 are read as such even where the locale knows ASCII alone.
    """
    try:
        return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
    except UnicodeEncodeError:
        return name.encode("utf-8", errors="replace").decode("utf-8")


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"source {path}: no such file or directory") from None
    except (OSError, ValueError) as error:
        raise UserError(f"source {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _check_readable(path: Path) -> None:
    if not os.access(path, os.R_OK, effective_ids=True):
        raise UserError(f"source {path}: cannot be read (Permission denied); make it readable, or name other sources")


def _kind_of_named(path: Path) -> str:
    """What a file that is a source itself is taken for."""
    name, _ = _inner_name(path.name)
    suffix = name.rpartition(".")[2] if "." in name else ""
    if suffix in _REFUSED:
        raise UserError(f"source {path}: .{suffix} files are not read; {_REFUSED[suffix]}")
    if name.endswith(_LABELS):
        return "images"  # whose reader says that these are labels
    return _kind_by_name(path) or kind_by_content(path, printable(str(path)))


def _kind_by_name(path: Path) -> str | None:
    name, packed = _inner_name(path.name)
    kind = "images" if _IMAGES.search(name) else KINDS.get(os.path.splitext(name)[1])
    if kind == "parquet" and packed:
        raise UserError(f"source {path}: Parquet is not read in packed form; unpack it first")
    return kind


def _inner_name(name: str) -> tuple[str, bool]:
    """The name that tells the kind of file, in small letters and without a `.gz` or the like; whether it had one."""
    stem, suffix = os.path.splitext(name.lower())
    return (stem, True) if suffix in PACKED_SUFFIXES else (name.lower(), False)


def _in_directory(source: Path, left_out: list[tuple[str, str]]) -> list[SourceFile]:
    found: list[tuple[bool, str, Path, str]] = []
    ours: list[tuple[str, str]] = []
    for path, name in _walk(source, ours):
        kind = _kind_by_name(path)
        if kind is None:
            ours.append((name, "of kinds that are not read"))
            continue
        if not stat.S_ISREG(_mode(path)):
            ours.append((name, "of pipes and devices"))
            continue
        _check_readable(path)
        found.append((path.is_symlink(), name, path, kind))
    files: list[SourceFile] = []
    seen: set[Path] = set()
    for _, name, path, kind in sorted(found):  # a file itself goes before links to it
        resolved = path.resolve()
        if resolved in seen:
            ours.append((name, _AGAIN))
        else:
            files.append(SourceFile(path, name, kind, printable(str(path))))
            seen.add(resolved)
    left_out += sorted(ours)
    if not files:
        suffixes = ", ".join(KINDS)
        there = f"; it holds {_files([name for name, _ in ours])} of other kinds ({_some(sorted(n for n, _ in ours))})"
        raise UserError(
            f"source {source}: no {suffixes} or idx file (or packed, as .gz) in this directory{there if ours else ''}"
        )
    return sorted(files, key=lambda file: file.name)


def _walk(source: Path, left_out: list[tuple[str, str]]) -> Iterator[tuple[Path, str]]:
    """What is in a directory and those below it, each directory once: first its own, then what its links lead to."""
    seen: set[tuple[int, int]] = set()
    linked = [("", source)]
    while linked:
        waiting, linked = sorted(linked, reverse=True), []
        while waiting:
            prefix, folder = waiting.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    left_out.append((printable(prefix), _AGAIN))
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    content = [(entry, *_folder_or_link(entry)) for entry in entries]
            except OSError as error:
                mend = "make it readable, or name other sources"
                raise UserError(f"source {folder}: cannot be read ({error.strerror or error}); {mend}") from None
            inside = {entry.name for entry, _, _ in content}
            if MARKER in inside or {MANIFEST_FILE, COLUMNS_FILE} <= inside:
                left_out.append((printable(prefix) or "./", "of data sets"))
                continue
            for entry, is_folder, is_link in content:
                name = printable(prefix + entry.name)
                if entry.name.startswith("."):
                    left_out.append((name, "hidden"))
                elif is_folder:
                    (linked if is_link else waiting).append((f"{prefix}{entry.name}/", Path(entry.path)))
                else:
                    yield Path(entry.path), name


def _folder_or_link(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether an entry leads to a folder, and whether it is a link.

    Raises:
        UserError: It is a link that leads nowhere, and may have led to a folder of texts.
    """
    try:
        return stat.S_ISDIR(entry.stat().st_mode), entry.is_symlink()
    except OSError as error:
        suffix = os.path.splitext(_inner_name(entry.name)[0])[1]
        if entry.name.startswith(".") or suffix in KINDS or suffix[1:] in _REFUSED:
            return False, True  # by its name it is no folder
        mend = "mend or remove it, or name other sources"
        raise UserError(f"source {entry.path}: a link that cannot be read ({error.strerror}); {mend}") from None


def _files(names: Sequence[str]) -> str:
    return f"{len(names):,} file{'s' * (len(names) != 1)}"


def _some(names: Sequence[str]) -> str:
    """The first names, each on the same line whatever is in it, and whether there are more."""
    shown = [_CONTROL.sub(lambda found: repr(found[0])[1:-1], name) for name in names[:_NAMES_SHOWN]]
    return ", ".join(shown) + (", ..." if len(names) > _NAMES_SHOWN else "")
