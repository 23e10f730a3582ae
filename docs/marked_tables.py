# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tables of a page that a script makes: what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def rewrite(page: Path, tables: Mapping[str, Callable[[], str]]) -> int:
    """Writes the tables anew; with `--check` on the command line only compares. Returns the exit code.

    Args:
        page: The Markdown page.
        tables: What makes each, by the name in its marks.
    """
    text = made = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, rest = made.split(begin)
        _, after = rest.split(end)
        made = f"{before}{begin}{table()}\n{end}{after}"
    if "--check" in sys.argv[1:]:
        return int(made != text)
    page.write_text(made, encoding="utf-8")
    return 0
