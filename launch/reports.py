# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A report's directory, and files that appear when they are whole: for the commands that write JSON and pictures."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_out(out: Path) -> None:
    """Refuses what cannot become a report's directory, before the work for it is done.

    Raises:
        UserError: It is a file, or lies where nothing may be made.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a directory")
    above = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    try:  # a file system may refuse what its permissions allow
        os.rmdir(tempfile.mkdtemp(dir=above, prefix=".report-"))
    except OSError:
        raise UserError(f"--out {out}: cannot be made in {above}: choose another directory") from None


def write_report(out: Path, name: str, report: dict[str, Any], figures: "dict[str, Figure]") -> list[str]:
    """Writes a report and its pictures beside their place first, then moves them there.

    Args:
        out: Directory; made if it is not there. Files of other names in it are left alone.
        name: Of the report's file.
        report: JSON-ready.
        figures: By name, without `.png`.

    Returns:
        The files' names, sorted.

    Raises:
        UserError: The disk refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out, prefix=".report-"))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another directory") from None
    try:
        for title, figure in figures.items():
            figure.savefig(scratch / f"{title}.png")
        (scratch / name).write_text(json.dumps(report) + "\n", encoding="utf-8")
        names = sorted(file.name for file in scratch.iterdir())
        for each in names:
            (scratch / each).replace(out / each)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): make room", exit_code=1) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return names


@contextmanager
def json_lines(path: Path, said: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes records, a line each, to a file that appears when all of them are there.

    Args:
        path: The file.
        said: The option that names it, for the message.

    Raises:
        UserError: It cannot be written.
    """
    if path.exists() and not path.is_file():  # a directory, or a device, which a file would take the place of
        raise UserError(f"{said} {path}: is no file: choose another place")
    beside = path.with_name(f"{path.name}.partial")
    try:
        with beside.open("w", encoding="utf-8") as file:
            yield lambda record: _write_line(file, record)
        beside.replace(path)
    except BrokenPipeError:  # of stdout, on which the records' maker tells how far it is
        raise
    except OSError as error:
        raise UserError(f"{said} {path}: cannot be written ({error.strerror}): choose another place") from None
    finally:
        with suppress(OSError):  # of a path through a file
            beside.unlink(missing_ok=True)


def _write_line(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
