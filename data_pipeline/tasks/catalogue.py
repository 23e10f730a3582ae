# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The tasks by name, and how a user names them: `needle:digits=1:keys=4,passkey,own.jsonl`.

Tasks are separated by commas, a task's settings follow it behind colons. A name that ends in `.jsonl` is a file of the
user's own questions. Lengths are numbers of tokens, also as `4k` (4,000) and `1M` (1,000,000).
"""

import dataclasses
import re
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.tasks.facts import Beside, Gave, WhereIs, WhereIsThing, WhereWasThing
from data_pipeline.tasks.needles import Needle, PassKey
from data_pipeline.tasks.questions import OwnQuestions
from data_pipeline.tasks.symbols import Copy, Recall, Variables
from data_pipeline.tasks.task import Task
from data_pipeline.tasks.words import CommonWords, FrequentWords

TASKS: dict[str, type[Task]] = {
    kind.name: kind
    for kind in (
        PassKey,
        Needle,
        Variables,
        Copy,
        Recall,
        WhereIs,
        WhereIsThing,
        WhereWasThing,
        Beside,
        Gave,
        CommonWords,
        FrequentWords,
    )
}
LONGEST = 10**9  # tokens
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([kKmM]?)")
_UNITS = {"": 1, "k": 1000, "m": 1_000_000}


def parse_tasks(words: str) -> list[Task]:
    """The tasks that `--tasks` names, in its order.

    Raises:
        UserError: There is no such task or setting, a value is out of range, a file cannot be read, or a task comes
            twice.
    """
    tasks = [_task(word.strip()) for word in words.split(",") if word.strip()]
    if not tasks:
        raise UserError(f"--tasks names none: give some of {', '.join(TASKS)} or a FILE.jsonl")
    labels = [task.label for task in tasks]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"--tasks names {twice} twice: leave one out")
    return tasks


def _task(word: str) -> Task:
    if word.endswith(".jsonl"):
        return OwnQuestions(word)
    name, *given = word.split(":")
    if name not in TASKS:
        raise UserError(f"--tasks: there is no task {name!r}: choose from {', '.join(TASKS)} or a FILE.jsonl")
    settings: dict[str, Any] = {}
    known = {each.name: each for each in dataclasses.fields(TASKS[name])}
    for each in given:
        setting, equals, value = each.partition("=")
        if not equals or setting not in known:
            raise UserError(f"--tasks: {name} has no setting {each!r}: give {', '.join(f'{one}=...' for one in known)}")
        if "choices" in known[setting].metadata:
            settings[setting] = value
        elif re.fullmatch(r"\d{1,9}", value):
            settings[setting] = int(value)
        else:
            raise UserError(f"{name}:{setting} is {value!r}: give a whole number")
    return TASKS[name](**settings)


def parse_lengths(words: str) -> list[int]:
    """The lengths that `--lengths` names, in tokens, the shortest first; 0: without filler.

    Raises:
        UserError: One is no number, too large, or comes twice.
    """
    lengths = []
    for word in words.split(","):
        found = _LENGTH.fullmatch(word.strip())
        length = float(found[1]) * _UNITS[found[2].lower()] if found else -1
        if length != int(length) or not 0 <= length <= LONGEST:
            raise UserError(f"--lengths has {word.strip()!r}: give tokens, such as 500, 4k or 1M, and commas between")
        lengths.append(int(length))
    if len(set(lengths)) < len(lengths):
        raise UserError(f"--lengths {words}: one comes twice: leave it out")
    return sorted(lengths)


def parse_depths(words: str) -> list[float]:
    """The depths that `--depths` names, each from 0 to 1, the least first.

    Raises:
        UserError: One is no such number, or comes twice.
    """
    depths = []
    for word in words.split(","):
        try:
            depth = float(word)
        except ValueError:
            depth = -1
        if not 0 <= depth <= 1:
            raise UserError(f"--depths has {word.strip()!r}: give shares from 0 to 1, such as 0,0.5,1")
        depths.append(depth)
    if len(set(depths)) < len(depths):
        raise UserError(f"--depths {words}: one comes twice: leave it out")
    return sorted(depths)


def described() -> str:
    """The tasks and their settings with defaults and ranges, for `--help`."""
    lines = ["tasks and their settings (NAME:SETTING=VALUE:..., a comma between tasks):"]
    for kind in TASKS.values():
        lines.append(f"  {kind.name:<10} {kind.summary}")
        for each in dataclasses.fields(kind):
            allowed = each.metadata
            values = (
                "|".join(allowed["choices"]) if "choices" in allowed else f"{allowed['least']}..{allowed['most']:,}"
            )
            lines.append(f"    :{each.name}={each.default}  {allowed['meaning']} ({values})")
    lines.append(f"  {OwnQuestions.name:<10} {OwnQuestions.summary}")
    return "\n".join(lines)
