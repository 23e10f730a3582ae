# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Place`: the type of every setting that is a path or an address, in which ~ and $VARIABLE stand for what they name.

As in a shell: `~` and `~user` at the beginning, `$NAME` and `${NAME}` anywhere; `$$` is a dollar sign. What follows
`pipe:` is a shell's own business and is left as it is.
"""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([^}]*)(\}?))", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SHELL = "pipe:"


def expanded(text: str) -> str:
    """The path that a text means here.

    Raises:
        ValueError: It names a variable that is not set or empty, or a user that there is not; or it is empty.
    """
    if not text.strip():
        raise ValueError("is empty: write a path")
    if text.startswith(_SHELL):
        return text

    def value(match: re.Match[str]) -> str:
        dollar, bare, braced, closed = match.groups()
        if dollar:
            return "$"
        name = bare or braced
        if not _NAME.fullmatch(name) or (bare is None and not closed):
            raise ValueError(f"is {text!r}: {match[0]} is no variable: write ${{NAME}}, and $$ for a dollar sign")
        found = os.environ.get(name)
        if not found:
            state = "is not set" if found is None else "is empty"
            raise ValueError(
                f"is {text!r}, but the environment variable {name} {state}: set it, or write the path out "
                "($$ for a dollar sign)"
            )
        return found

    head, slash, rest = text.partition("/")
    if not head.startswith("~"):
        return _VARIABLE.sub(value, text)
    home = os.path.expanduser(head)
    if home.startswith("~"):
        raise ValueError(f"is {text!r}, but there is no user {head[1:]}: write the path out (./{head} for that name)")
    return home + slash + _VARIABLE.sub(value, rest)


def escaped(path: str) -> str:
    """A text that means this path, wherever it is read: the inverse of `expanded`."""
    return path if path.startswith(_SHELL) else path.replace("$", "$$")


Place = Annotated[str, AfterValidator(expanded), PlainSerializer(escaped)]
"""A path or an address; `Place | list[...]` and `Place | None` expand alike."""
