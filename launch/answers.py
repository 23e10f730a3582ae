# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`--json`: JSON alone on stdout, for a program that reads it; whatever else is said meanwhile goes to stderr."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from memformer.run.directory import json_ready

_stdout: TextIO | None = None  # while nothing but answers goes there


@contextlib.contextmanager
def json_alone(asked: bool) -> Iterator[None]:
    """Within the block stdout is kept for `answer`.

    What libraries write past Python goes to stderr too, where stdout is a file of this process.

    Args:
        asked: Whether it is to be so.
    """
    global _stdout
    if not asked:
        yield
        return
    with contextlib.ExitStack() as undo:
        try:
            kept = os.dup(sys.stdout.fileno())
        except io.UnsupportedOperation:  # a stand-in for stdout, without a file
            answers = sys.stdout
        else:
            answers = undo.enter_context(os.fdopen(kept, "w", encoding="utf-8"))
            sys.stdout.flush()
            undo.callback(os.dup2, kept, sys.stdout.fileno())
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        _stdout = answers
        try:
            yield
        finally:
            _stdout = None


def answer(result: dict[str, Any]) -> None:
    """Writes a result to stdout as one line of JSON; numbers that are not finite become null."""
    print(json.dumps(json_ready(result)), file=_stdout or sys.stdout, flush=True)
