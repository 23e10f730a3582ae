# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The user's own questions: a file of JSON lines, `{"context": ..., "question": ..., "answer": ...}` each.

The context is the fact of a document, told once inside the filler; the question stands at the end, and the answer
follows it after a blank.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import ClassVar

from data_pipeline.errors import UserError
from data_pipeline.tasks.task import Question, Random, Story, Task

KEYS = ("context", "question", "answer")
_MEND = 'give {"context": "...", "question": "...", "answer": "..."} a line'


@dataclasses.dataclass(frozen=True)
class OwnQuestions(Task):
    """Questions of a file.

    Args:
        file: Its path.

    Raises:
        UserError: It cannot be read, or a line is no record of this kind.
    """

    name: ClassVar[str] = "FILE.jsonl"
    summary: ClassVar[str] = "the user's own records {context, question, answer}, a line each"
    solves: ClassVar[bool] = False

    file: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.records

    @functools.cached_property
    def records(self) -> tuple[tuple[str, str, str], ...]:
        """Context, question and answer of each line."""
        return _read(Path(self.file))

    @property
    def label(self) -> str:
        """The file's path."""
        return self.file

    @property
    def most(self) -> int:  # type: ignore[override]
        """As many as there are lines."""
        return len(self.records)

    @property
    def chance(self) -> None:
        """What is likely in answers of a user nobody knows."""
        return None

    def story(self, random: Random, ordinal: int) -> Story:
        """The record of this number, from the first again behind the last."""
        context, question, answer = self.records[ordinal % len(self.records)]
        return Story((context,), (Question(question, answer),))

    def solve(self, text: str, question: str) -> None:
        """No rule finds them."""
        return None

    def guess(self, random: Random, question: str) -> str:
        """The answer of any line."""
        return self.records[int(random.integers(len(self.records)))][2]


def _read(path: Path) -> tuple[tuple[str, str, str], ...]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"task {path}: cannot be read ({error.strerror}): give the path of a file of questions"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            raise UserError(f"task {path} line {number}: is not JSON: {_MEND}") from None
        values = [record.get(key) if isinstance(record, dict) else None for key in KEYS]
        texts = [value.strip() if isinstance(value, str) else None for value in values]
        wrong = next(
            (key for key, text in zip(KEYS, texts, strict=True) if text is None or not (text or key == KEYS[0])), None
        )
        if wrong is not None:
            raise UserError(f'task {path} line {number}: needs a string under "{wrong}": {_MEND}')
        context, question, answer = (text or "" for text in texts)
        records.append((context, question, answer))
    if not records:
        raise UserError(f"task {path}: holds no question: {_MEND}")
    return tuple(records)
