# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Parameters that are not trained: one file on the disk, a name of it in every checkpoint.

The first checkpoint of a run with frozen parameters writes them, under `base/`; the later ones get hard links to the
same files. So each checkpoint is whole: it is verified, copied, moved, exported and deleted like any other, and none
depends on the pretrained directory or on another checkpoint, while the disk holds the frozen weights once. Where a
file system makes no links, or the file is not what it was, they are written again.
"""

import os
from pathlib import Path
from typing import Any

from memformer.checkpoints import directory as files

BASE = "base/"
DESCRIBED = "frozen"
"""Where state.json says which parameters these are, with the dtype of each."""


def frozen_as(directory: Path, frozen: dict[str, str]) -> bool:
    """Whether a checkpoint has just these parameters, in these dtypes, as frozen ones."""
    return bool(frozen) and files.read_state(directory).get(DESCRIBED) == frozen


def linked(source: Path | None, target: Path) -> dict[str, dict[str, Any]] | None:
    """Gives a checkpoint under way the frozen parameters of a complete one.

    Args:
        source: The complete checkpoint; None: there is none.
        target: Its directory, which has a folder `base/`.

    Returns:
        By relative path, size and SHA-256 of what is linked; None where that cannot be done, and nothing is.
    """
    made: list[Path] = []
    try:
        if source is None:
            return None
        entries = {name: each for name, each in files.read_manifest(source)["files"].items() if name.startswith(BASE)}
        for name, entry in entries.items():
            os.link(source / name, target / name)
            made.append(target / name)
            if made[-1].stat().st_size != entry["bytes"]:
                raise OSError(f"{source / name}: has another size")
        return entries
    except (OSError, files.CheckpointDamaged):
        for path in made:
            path.unlink(missing_ok=True)
        return None
