# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`builtin:model/7b.yaml`: the configuration files that come with the package, by name, wherever it is installed.

`configs` beside this file is a link to the repository's directory of that name, and a directory in a wheel.
"""

import difflib
from pathlib import Path

from data_pipeline.errors import UserError

PREFIX = "builtin:"
ROOT = Path(__file__).parent / "configs"


def builtin_names() -> list[str]:
    """The names after `builtin:`, in order, such as model/7b.yaml."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*.yaml"))


def builtin_file(name: str) -> Path:
    """The file of a name after `builtin:`.

    Raises:
        UserError: There is none; names that may be meant are listed, or else all of them.
    """
    names = builtin_names()
    if name in names:
        return ROOT / name
    last = name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    close = [each for each in names if last and Path(each).stem == last]
    close += [each for each in difflib.get_close_matches(name, names, 3, 0.7) if each not in close]
    mend = (
        f"did you mean {' or '.join(PREFIX + each for each in close)}?"
        if close
        else f"there are {', '.join(map(PREFIX.__add__, names))}"
    )
    raise UserError(f"{PREFIX}{name}: comes with no such file: {mend}")


def located(name: str) -> Path:
    """The file that a name of a configuration stands for: one that comes with the package, or a path.

    Raises:
        UserError: See `builtin_file`.
    """
    return builtin_file(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else Path(name)
