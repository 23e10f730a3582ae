# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reads the layout of MosaicML MDS shards (version 2, not compressed), without the library that wrote them.

A shard is: uint32 number of samples, uint32 place of each and of the end, a JSON configuration, the samples. A sample
is: uint32 size of every column that has no fixed size, then the columns' bytes in the order of their names.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError

MDS_INDEX = "index.json"
MDS_LARGEST = (1 << 32) - 1  # places in a shard are uint32
# The numbers that stand for the type of an array whose column does not name one.
_ARRAY_TYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 32: "uint32", 33: "int32", 64: "uint64", 65: "int64"}


@dataclass(frozen=True)
class MDSShard:
    """One shard, as `index.json` describes it.

    Attributes:
        path: Its file.
        name: The file relative to the directory of the index, which has folders where indexes were merged.
        samples_listed: Number of samples.
        columns: (name, encoding, fixed size in bytes or None) in the order of the names.
    """

    path: Path
    name: str
    samples_listed: int
    columns: tuple[tuple[str, str, int | None], ...]

    def encoding(self, column: str) -> str:
        """The encoding of a column.

        Raises:
            UserError: There is no such column.
        """
        for name, encoding, _ in self.columns:
            if name == column:
                return encoding
        raise UserError(
            f"{self.path}: has no column {column}; its columns are {', '.join(c[0] for c in self.columns)}, and "
            "--column names one"
        )

    def samples(self) -> Iterator[dict[str, tuple[int, bytes]]]:
        """Byte offset in the file, and content, of every column of each sample; one sample in memory at a time.

        Raises:
            UserError: The file cannot be read, or does not have the layout of an MDS shard.
        """
        try:
            with self.path.open("rb") as file:
                count = int.from_bytes(file.read(4), "little")
                places = np.frombuffer(file.read(4 * (count + 1)), "<u4").tolist()
                size = file.seek(0, 2)
                if count != self.samples_listed or len(places) != count + 1 or places[-1] != size:
                    raise UserError(f"{self.path}: is not the MDS shard that {MDS_INDEX} describes; fetch it again")
                for begin, end in itertools.pairwise(places):
                    file.seek(begin)
                    yield self._columns_of(begin, file.read(end - begin))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def _columns_of(self, place: int, sample: bytes) -> dict[str, tuple[int, bytes]]:
        at, sizes = 0, []
        for _, _, fixed in self.columns:
            if fixed is None:
                sizes.append(int.from_bytes(sample[at : at + 4], "little"))
                at += 4
            else:
                sizes.append(fixed)
        found = {}
        for (name, _, _), size in zip(self.columns, sizes, strict=True):
            found[name] = (place + at, sample[at : at + size])
            at += size
        if at != len(sample):
            raise UserError(f"{self.path}: the sample at byte {place} has another layout than {MDS_INDEX} describes")
        return found


def array_row(encoding: str, content: bytes) -> tuple[int, str] | None:
    """Where the numbers of an array begin in a sample's column, and their type.

    An array is led by its type (one byte), where the encoding does not name it, and by its shape, where the encoding
    does not name that: one byte for the number of dimensions and the size of each, then the dimensions.

    Args:
        encoding: The column's, from `ndarray` to `ndarray:int32:2048`.
        content: The column of one sample.

    Returns:
        None if it is not one row of whole numbers.
    """
    _, *named = encoding.split(":")
    at = 0
    kind = named[0] if named else ""
    if not kind:
        kind, at = _ARRAY_TYPES.get(content[0] if content else -1, ""), 1
    if kind not in _ARRAY_TYPES.values():
        return None
    if len(named) == 2:
        return (at, kind) if "," not in named[1] else None
    if len(content) <= at or content[at] >> 2 != 1:
        return None
    return at + 1 + (1 << (content[at] & 3)), kind


def read_mds_index(directory: Path) -> list[MDSShard]:
    """The shards of an MDS directory, in order.

    Raises:
        UserError: There is no index, it is of another format, shards are compressed, or do not lie in the directory.
    """
    file = directory / MDS_INDEX
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = []
        for shard in content["shards"]:
            if shard["format"] != "mds" or shard["version"] != 2:
                raise UserError(
                    f"{file}: has shards of {shard['format']} version {shard['version']}, not of mds version 2"
                )
            if shard["compression"] is not None:
                raise UserError(f"{file}: has shards compressed by {shard['compression']}; unpack them first")
            name = Path(shard["raw_data"]["basename"])
            if name.is_absolute() or ".." in name.parts:
                raise UserError(f"{file}: shard {name} does not lie in {directory}; merge the index again")
            listed = zip(shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True)
            columns = tuple((str(column), str(encoding), size and int(size)) for column, encoding, size in listed)
            found.append(MDSShard(directory / name, name.as_posix(), shard["samples"], columns))
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not the index of MDS shards ({type(error).__name__}: {error})") from None
