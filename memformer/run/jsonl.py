# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The files of a run that have one JSON object a line: metrics, events, audits, lives of jobs.

A process may be killed in the middle of a line, and a reader may come while a line is being written. So for every
reader a record is a line that is a whole JSON object; anything else is passed over, wherever in the file it stands.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.errors import UserError
from memformer.run.directory import write_atomically

Record = dict[str, Any]
BLOCK_BYTES = 64 * 1024
TAIL_BYTES = 256 * 1024


def records(path: Path) -> list[Record]:
    """All records of a file, oldest first; none where there is no file."""
    with _opened(path) as file:
        return [] if file is None else _parsed(file.read().split(b"\n"))


def tail(path: Path, most_bytes: int = TAIL_BYTES) -> list[Record]:
    """The records in the last bytes of a file, oldest first: a long run is answered as fast as a short one."""
    with _opened(path) as file:
        if file is None:
            return []
        size = file.seek(0, 2)
        file.seek(max(0, size - most_bytes))
        lines = file.read().split(b"\n")
    return _parsed(lines[1:] if size > most_bytes else lines)


def last(path: Path, wanted: Callable[[Record], bool]) -> Record | None:
    """The newest record that is wanted, searched for from the end; None where there is none."""
    return next(filter(wanted, _newest_first(path)), None)


def truncate(path: Path, last_step: int) -> int:
    """Drops the lines whose `step` lies after `last_step` or that are no records; the others keep their bytes.

    A resumed run trains these steps again, and each step stands in the file once.

    Returns:
        The number of lines dropped.
    """
    if not path.exists():
        return 0
    text = path.read_bytes()
    lines = text.removesuffix(b"\n").split(b"\n") if text else []
    kept = [line for line in lines if _step(line) <= last_step]
    fresh = b"".join(line + b"\n" for line in kept)
    if fresh != text:
        write_atomically(path, fresh.decode("utf-8"))
    return len(lines) - len(kept)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """The file, or None where there is none; one that cannot be read is not taken for none.

    Raises:
        UserError: It cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable", exit_code=1) from None
    with file:
        yield file


def _newest_first(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        end = 0 if file is None else file.seek(0, 2)
        rest = b""  # the end of a line whose beginning stands in the block before
        while file is not None and end:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
            yield from reversed(_parsed(lines))
            end = start
        yield from _parsed([rest])


def _parsed(lines: list[bytes]) -> list[Record]:
    found = (_record(line) for line in lines)
    return [record for record in found if record is not None]


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _step(line: bytes) -> float:
    """The step of a line; infinite where it has none."""
    step = (_record(line) or {}).get("step")
    return step if isinstance(step, int) else float("inf")
