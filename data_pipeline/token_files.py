# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Files of tokens that others wrote, and where their documents lie: Megatron, OLMo, datatrove, plain rows of ids.

- Megatron `NAME.bin` and `NAME.idx`: the index holds the type, the length and place of each sequence, and which
  sequences make a document.
- datatrove `NAME.ds` and `NAME.ds.index`: uint64, the end of each document in tokens.
- OLMo `NAME.npy` and `NAME.csv.gz` (start and end of each document in tokens, then what it is): ids without a header,
  whatever the name says. Without the second file, as with nanoGPT's `NAME.bin`, the id that ends documents tells them.
- a real `.npy` file, as NumPy saves it.

All of them put the ids of a document side by side, little-endian, so they are read where they lie.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.token_types import TYPES, stored_as, type_of

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
_MEGATRON_HEAD = 34
_NUMPY_MAGIC = b"\x93NUMPY"
_LLM_C_MAGICS = (20240520, 20240801)
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Reading:
    """What is known beforehand of the files.

    Attributes:
        ids: Ids of the vocabulary that text has.
        dtype: Type of a stored id (`--dtype`); None: the files tell it, or the vocabulary.
        eos: The id that ends documents, for files that do not tell where they end; None: not known.
    """

    ids: int
    dtype: str | None = None
    eos: int | None = None

    def type(self, told: str | None, where: str) -> np.dtype[Any] | None:
        """The type by option or by what a file tells; None where neither says it.

        Raises:
            UserError: They contradict each other, or it is no type of ids.
        """
        if self.dtype is not None:
            given = stored_as(self.dtype, "--dtype")
            if told is not None and stored_as(told, where) != given:
                raise UserError(f"--dtype is {self.dtype}, but {where} has ids of {told}; leave --dtype out")
            return given
        return None if told is None else stored_as(told, where)


@dataclass(frozen=True)
class TokenFile:
    """A file with the ids of documents.

    Attributes:
        path: The file.
        name: Its name in the data set, with folders.
        dtype: Unsigned type of a stored id.
        starts: int64 `[documents]`, byte offset of each document's first id.
        counts: int64 `[documents]`, ids of each.
        names: Of the documents, for people; None: they have numbers only.
        outside: Ids of the file that belong to no document.
    """

    path: Path
    name: str
    dtype: np.dtype[Any]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    names: list[str] | None = None
    outside: int = 0


def read_megatron(path: Path, name: str, reading: Reading) -> TokenFile:
    """The documents of a Megatron `.bin` file, by the `.idx` file beside it.

    Raises:
        UserError: The two do not belong together, or are not what they seem.
    """
    index = path.with_suffix(".idx")
    content = index.read_bytes()
    if content[:9] != _MEGATRON_MAGIC or len(content) < _MEGATRON_HEAD or content[9:17] != b"\x01" + bytes(7):
        raise UserError(f"{index} is not an index of Megatron's mmap data sets, version 1; make it again")
    dtype = reading.type(_MEGATRON_TYPES.get(content[17], f"of unknown type {content[17]}"), f"{index}")
    assert dtype is not None
    sequences, bounds = np.frombuffer(content, "<u8", 2, 18).tolist()
    at = np.cumsum([_MEGATRON_HEAD, 4 * sequences, 8 * sequences, 8 * bounds]).tolist()
    if len(content) not in (at[3], at[3] + sequences):
        raise UserError(f"{index} has {len(content):,} bytes, not the {at[3]:,} of its index; fetch it again")
    if any(content[at[3] :]):
        raise UserError(f"{index} has sequences that are no text (its modes are not all 0); adopt data sets of text")
    lengths = np.frombuffer(content, "<i4", sequences, at[0]).astype(np.int64)
    places = np.frombuffer(content, "<i8", sequences, at[1]).astype(np.int64)
    documents = np.frombuffer(content, "<i8", bounds, at[2]).astype(np.int64)
    ends = places + dtype.itemsize * lengths
    if (
        not bounds
        or documents[0]
        or documents[-1] != sequences
        or (np.diff(documents) < 0).any()
        or (lengths < 0).any()
    ):
        raise UserError(f"{index} is damaged: its documents are not made of its {sequences:,} sequences; make it again")
    within = np.ones(sequences, np.bool_)
    within[documents[:-1][np.diff(documents) > 0]] = False  # the first sequence of each document
    if (places[within] != ends[np.flatnonzero(within) - 1]).any():
        raise UserError(f"{index}: the sequences of a document do not lie side by side; make the data set again")
    summed = np.concatenate([[0], np.cumsum(lengths)])
    counts = summed[documents[1:]] - summed[documents[:-1]]
    starts = np.concatenate([places, [0]])[documents[:-1]]
    file = _token_file(path, name, dtype, starts, counts)
    size, last = path.stat().st_size, int(ends.max(initial=0))
    if size > last:
        raise UserError(
            f"{path} has {size:,} bytes, but {index.name} describes {last:,}: it is the index of another "
            "file, or was not finished; fetch both again"
        )
    return file


def read_datatrove(path: Path, name: str, reading: Reading) -> TokenFile:
    """The documents of a datatrove `.ds` file, by the `.ds.index` file beside it.

    Raises:
        UserError: There is no such file, or the two do not belong together.
    """
    index = path.with_name(f"{path.name}.index")
    if not index.is_file():
        raise UserError(f"{path} has no {index.name} beside it, which says where its documents end; fetch it too")
    content, size = index.read_bytes(), path.stat().st_size
    ends = np.frombuffer(content[: len(content) // 8 * 8], "<u8").astype(np.int64)
    last = int(ends[-1]) if len(ends) else 0
    counts = np.diff(ends, prepend=0)
    told = {last * np.dtype(kind).itemsize: name for name, kind in reversed(TYPES.items())}.get(size)
    if len(content) % 8 or (counts < 0).any() or told is None:
        raise UserError(
            f"{path} has {size:,} bytes, but {index.name} says that it ends after {last:,} tokens; fetch both again"
        )
    # Of a file without a token, which a worker without documents writes, the type is no matter.
    dtype = reading.type(told if last else None, str(path)) or np.dtype("<u2")
    return _token_file(path, name, dtype, dtype.itemsize * (ends - counts), counts)


def read_rows(path: Path, name: str, reading: Reading) -> TokenFile:
    """The documents of ids in a row: OLMo's `.npy` with its `.csv.gz`, or by the id that ends documents.

    Raises:
        UserError: Nothing tells where documents end, or what tells it does not belong to the file.
    """
    head, told, promised = _numpy_head(path)
    size = path.stat().st_size - head
    if not size and not head:
        raise UserError(f"{path} is empty; fetch it again, or move it away")
    if promised is not None and size != promised:
        raise UserError(f"{path} has {size:,} bytes of ids, and its head says {promised:,}; fetch it again")
    bounds = path.with_suffix(".csv.gz")
    ranges = _ranges(bounds) if bounds.is_file() else None
    if ranges is None and reading.eos is None:
        raise UserError(
            f"{path} does not tell where its documents end, and there is no {bounds.name} beside it; give the id that "
            "ends each document with --eos"
        )
    last = int(ranges.max()) if ranges is not None and len(ranges) else 0
    dtype = reading.type(told, str(path))
    if dtype is None and last:
        fitting = {last * np.dtype(kind).itemsize: np.dtype(kind) for kind in TYPES.values()}
        dtype = fitting.get(size)
    if dtype is None:
        dtype = stored_as(type_of(_blocks(path, head), reading.ids, str(path)), str(path))
    if size % dtype.itemsize or last * dtype.itemsize > size:
        raise UserError(
            f"{path} has {size:,} bytes of ids, which does not fit {dtype.name}"
            + (f" and the {last:,} tokens of {bounds.name}" if last else "")
            + "; give the type of its ids with --dtype, or fetch the files again"
        )
    if ranges is None:
        assert reading.eos is not None
        ends = _ends(path, head, dtype, reading.eos)
        ranges = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    return _token_file(path, name, dtype, head + dtype.itemsize * ranges[:, 0], ranges[:, 1] - ranges[:, 0], head)


def _token_file(
    path: Path,
    name: str,
    dtype: np.dtype[Any],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    head: int = 0,
) -> TokenFile:
    size = path.stat().st_size
    if len(starts) and (int((starts + dtype.itemsize * counts).max()) > size or int(starts.min()) < 0):
        raise UserError(f"{path} ends before the documents that its index names; fetch it again")
    outside = (size - head) // dtype.itemsize - int(counts.sum())
    return TokenFile(path, name, dtype, starts.astype(np.int64), counts.astype(np.int64), outside=max(outside, 0))


def _numpy_head(path: Path) -> tuple[int, str | None, int | None]:
    """Bytes before the ids, their type and all their bytes, where the file has a header of NumPy's."""
    with path.open("rb") as file:
        first = file.read(len(_NUMPY_MAGIC))
        if int.from_bytes(first[:4], "little") in _LLM_C_MAGICS:
            raise UserError(
                f"{path} is a file of llm.c, which has no place here; give its text to memformer data build"
            )
        if first != _NUMPY_MAGIC:
            return 0, None, None
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise UserError(f"{path} is not a sound .npy file ({error}); fetch it again") from None
        if len(shape) != 1 or dtype.byteorder == ">" or dtype.hasobject:
            raise UserError(f"{path} holds {dtype} of shape {shape}, not one row of ids; save it as one")
        return file.tell(), dtype.name, shape[0] * dtype.itemsize


def _ranges(file: Path) -> NDArray[np.int64]:
    """Start and end of each document in tokens, `[documents, 2]`."""
    try:
        if not file.stat().st_size:
            raise EOFError("it is empty")
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [line.split(",", 2)[:2] for line in lines if line.strip()]
        ranges = np.array([[int(start), int(end)] for start, end in rows], np.int64).reshape(-1, 2)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} does not begin its lines with the start and end of a document ({error})") from None
    if len(ranges) and (ranges[:, 0].min() < 0 or (ranges[:, 1] < ranges[:, 0]).any()):
        raise UserError(f"{file} has a document that ends before it begins; make the file again")
    return ranges


def _ends(path: Path, head: int, dtype: np.dtype[Any], eos: int) -> NDArray[np.int64]:
    """Where documents end, in tokens: after each `eos`, and at the end of the file."""
    found, at = [], 0
    for block in _blocks(path, head):
        ids = np.frombuffer(block, dtype)
        found.append(np.flatnonzero(ids == eos) + at + 1)
        at += len(ids)
    ends = np.concatenate([*found, np.empty(0, np.int64)])
    if not len(ends):
        raise UserError(f"--eos is {eos}, an id that {path} does not have; give the id that ends its documents")
    return ends if ends[-1] == at else np.append(ends, at)


def _blocks(path: Path, head: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(head)
        while block := file.read(_BLOCK_BYTES):
            yield block
