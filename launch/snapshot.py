# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Keeps the code and the configuration of a run with it: what is edited later does not change a job that waits.

RUN/code/        the project's packages as they are now, COMMIT, uncommitted.diff; `python RUN/code` is their command.
                 With them go the books (3 MB), in which a run that is asked tasks hides what it asks for
RUN/submit.yaml  the configuration with everything it extends and every setting of the command line
"""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from memformer.config.schema import Config, load_config

PACKAGES = ("data_pipeline", "memformer", "launch")
# Python puts the directory that it runs first in its search path, before the checkout in which a job may start.
_MAIN = """import sys

from launch.cli import main

sys.exit(main())
"""
PLACEHOLDER = "{array}"
"""Stands for the array's index in a setting."""


def snapshot_code(destination: Path) -> str:
    """Copies the packages that this command runs from, as they are on disk; replaces an earlier copy.

    From a git checkout, that is the last commit, the uncommitted changes and the new files; `COMMIT` names the commit
    and `uncommitted.diff` has the changes. From an installed package, it is that package.

    Args:
        destination: The directory to make.

    Returns:
        What was copied, for people.
    """
    root = Path(__file__).resolve().parents[1]
    fresh = destination.with_name(destination.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    if listed:
        _copy(root, filter(None, listed.split("\0")), fresh)
        commit, changes = (_git(root, "rev-parse", "HEAD") or "unknown").strip(), _git(root, "diff", "--binary", "HEAD")
        (fresh / "COMMIT").write_text(commit + "\n")
        (fresh / "uncommitted.diff").write_text("git did not tell\n" if changes is None else changes)
        uncommitted = ", git did not tell what is uncommitted" if changes is None else " with uncommitted changes"
        said = f"commit {commit[:12]}{uncommitted if changes != '' else ''}"
    else:
        found = (path for name in PACKAGES for path in (root / name).rglob("*") if "__pycache__" not in path.parts)
        _copy(root, (str(path.relative_to(root)) for path in found), fresh)
        said = f"the package installed in {root}"
    (fresh / "__main__.py").write_text(_MAIN)
    shutil.rmtree(destination, ignore_errors=True)
    fresh.rename(destination)
    return said


def snapshot_command(code: Path, python: str) -> list[str]:
    """The command that runs a copy's `memformer`, whatever the directory in which it is started holds."""
    return [python, str(code)]


def _copy(root: Path, names: Iterable[str], destination: Path) -> None:
    """Copies files as new ones, which the umask applies to; a name may be that of a folder, or of nothing any more.

    A link to a folder, by which a package has files from beside it, becomes that folder.
    """
    for name in names:
        if (root / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, destination / name)
        elif (root / name).is_symlink() and (root / name).is_dir():
            linked = (root / name).resolve()
            _copy(linked, (str(path.relative_to(linked)) for path in linked.rglob("*")), destination / name)


def _git(root: Path, *words: str) -> str | None:
    """What git says in a checkout whose top is `root`; None where there is no git or no such checkout."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_settings(path: str, overrides: Sequence[str], array: str | None) -> tuple[Config, list[str]]:
    """The configuration with the command line's settings, and those settings that differ between an array's runs.

    Args:
        path: The YAML file.
        overrides: Settings, as `memformer.config.schema.load_config` reads them.
        array: Indices of the array; None: the job is no array.

    Returns:
        The configuration (of the array's first run), and the settings that hold `{array}`, for the command line.

    Raises:
        UserError: The configuration is faulty, or `{array}` stands in a job that is no array.
    """
    common: list[str] = []
    varying: list[str] = []
    words = list(overrides)
    while words:
        taken = [words.pop(0)]
        if "=" not in taken[0] and words:
            taken.append(words.pop(0))
        (varying if PLACEHOLDER in taken[-1] else common).extend(taken)
    if varying and array is None:
        raise UserError(f"{' '.join(varying)}: {PLACEHOLDER} is the index of an array; give --array 0-3 or the like")
    first = (array or "").split("-")[0].split(",")[0].split("%")[0]
    config = load_config(path, [*common, *(word.replace(PLACEHOLDER, first) for word in varying)])
    if PLACEHOLDER in config.run_dir or any(word.startswith("--run_dir") for word in varying):
        raise UserError("run_dir: the runs of an array lie in RUN_DIR/array-INDEX by themselves; leave {array} out")
    return config, varying


def write_config(config: Config, path: Path) -> None:
    """Writes a configuration that needs no other file."""
    path.write_text(config.as_yaml(), encoding="utf-8")
