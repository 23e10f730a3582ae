# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A project to work in, as `memformer init` writes it: the package's own configurations and job scripts, a README.

There is no second copy of them: configurations are the `builtin:` ones with a line for editors, scripts those that
`memformer launch slurm` uses, with the path of this installation's command.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from data_pipeline.errors import UserError
from launch.slurm_script import TEMPLATES

_OWN = Path(__file__).parent / "project"
_COMMAND = ".venv/bin/memformer"  # in the scripts, as the repository has it
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # means itself to a shell, in quotes or not


def project_files() -> dict[str, str]:
    """Relative path -> text of everything in a new project."""
    from memformer.config.builtin import PREFIX, builtin_file, builtin_names
    from memformer.config.files import family_named
    from memformer.config.json_schema import file_schema
    from memformer.config.schema import schema_of
    from memformer.models.registry import DEFAULT

    files = {name: (_OWN / own).read_text("utf-8") for name, own in ((".gitignore", "gitignore"), ("README.md",) * 2)}
    families = set()
    for name in builtin_names():
        families.add(family := family_named(PREFIX + name) or DEFAULT)
        line = f"# yaml-language-server: $schema=../schema/{family}.json\n"
        files[f"configs/{name}"] = line + builtin_file(name).read_text("utf-8")
    for family in families:
        files[f"configs/schema/{family}.json"] = json.dumps(file_schema(schema_of(family), family), indent=1) + "\n"
    command = str(Path(sys.executable).with_name("memformer"))
    if not _PLAIN.fullmatch(command) or not os.access(command, os.X_OK):
        command = _COMMAND  # the script says that it is to be edited
    for path in sorted(TEMPLATES.glob("*.sbatch")):
        files[f"slurm/{path.name}"] = path.read_text("utf-8").replace(f":-{_COMMAND}}}", f":-{command}}}")
    return files


def write_project(directory: Path) -> list[str]:
    """Writes a new project, complete or not at all.

    Args:
        directory: To be made, or one that has nothing of the same names in it.

    Returns:
        What lies in it now, sorted.

    Raises:
        UserError: Something is in the way, or it cannot be written; nothing was changed.
    """
    there, above = directory.is_dir(), directory.absolute().parent
    if not there and os.path.lexists(directory):
        raise UserError(f"{directory}: is no directory: choose another name")
    if not there and not above.is_dir():
        what = "is no directory" if os.path.lexists(above) else "is not there: make it first"
        raise UserError(f"{directory}: {directory.parent} {what}, or choose another place")
    files = project_files()
    tops = sorted({name.partition("/")[0] for name in files})
    for name in tops:
        if os.path.lexists(directory / name):
            raise UserError(f"{directory / name}: is in the way: move it, or choose another directory")
    try:
        # Beside its place: there a rename is one step, which happens or does not.
        with tempfile.TemporaryDirectory(prefix=".init-", dir=directory if there else above) as at:
            stage = Path(at) / "project"
            for name, text in files.items():
                path = stage / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                if name.startswith("slurm/"):
                    path.chmod(path.stat().st_mode | (path.stat().st_mode & 0o444) >> 2)
            if there:
                _move(stage, directory, tops)
            else:
                stage.rename(directory)
    except OSError as error:
        words = f"{directory}: cannot be written ({error.strerror}); nothing was changed"
        raise UserError(words, exit_code=1) from None
    return tops


def _move(stage: Path, directory: Path, tops: list[str]) -> None:
    """Moves each into place; what has been moved is taken away again where that fails."""
    moved: list[Path] = []
    try:
        for name in tops:
            (stage / name).rename(directory / name)
            moved.append(directory / name)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
