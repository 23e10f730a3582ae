# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Copies the ids of a Parquet file, a document a row, into a file of their own, where they lie side by side."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from data_pipeline.token_files import TokenFile

_ROWS = 1024


def copy_parquet(
    path: Path, target: Path, name: str, dtype: np.dtype[Any], ids: int, column: str, name_column: str | None
) -> TokenFile:
    """Writes the ids of a Parquet file's rows into `target`, some rows in memory at a time.

    Args:
        path: The Parquet file.
        target: File to make.
        name: Of the Parquet file in the data set; the copy's is this with the suffix of `target`.
        dtype: How an id is stored.
        ids: Ids of the vocabulary that text has.
        column: The column of lists of ids.
        name_column: The column of names for people, if there is one.

    Raises:
        UserError: pyarrow is not installed, it is no Parquet file with such a column, or an id is outside the
            vocabulary.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs the package pyarrow; pip install pyarrow") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    counts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    names: list[str] = []
    try:
        with pyarrow.parquet.ParquetFile(path) as file, target.open("wb") as copy:
            schema = file.schema_arrow
            wanted = [column, *([name_column] if name_column else [])]
            for each in wanted:
                if each not in schema.names:
                    raise UserError(f"{path}: has no column {each}; its columns are {', '.join(schema.names)}")
            kind = schema.field(column).type
            if not (_is_list(pyarrow, kind) and pyarrow.types.is_integer(kind.value_type)):
                raise UserError(
                    f"{path}: column {column} is {kind}, not lists of whole numbers; --column names another, and text "
                    "is for memformer data build"
                )
            for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
                rows = batch.column(column)
                first = sum(map(len, counts))
                if rows.null_count or rows.flatten().null_count:
                    raise UserError(f"{path}: column {column} lacks ids in rows {first} to {first + len(rows) - 1}")
                numbers = rows.flatten().to_numpy()
                if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= ids):
                    outside = int(numbers.min()) if int(numbers.min()) < 0 else int(numbers.max())
                    raise UserError(
                        f"{path}: rows {first} to {first + len(rows) - 1} have id {outside}, but the vocabulary has "
                        f"only ids 0 to {ids - 1}; give the tokenizer that made the tokens"
                    )
                copy.write(numbers.astype(dtype).tobytes())
                counts.append(np.array([len(row) for row in rows], np.int64))
                if name_column:
                    names += map(str, batch.column(name_column).to_pylist())
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a sound Parquet file ({reason}); fetch the file again") from None
    sync(target)
    lengths = np.concatenate(counts)
    starts = dtype.itemsize * (np.cumsum(lengths) - lengths)
    return TokenFile(target, f"{name}{target.suffix}", dtype, starts, lengths, names or None)


def _is_list(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
