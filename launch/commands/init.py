# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Writes a project to work in: configurations, job scripts and a README with the commands that work there.

DIR is made; or it is there and has no files of these names. What is in the way is named, and nothing is written.

exit codes: 0 done; 1 it cannot be written; 2 something is in the way."""

import argparse
import shlex
from pathlib import Path

from launch.new_project import write_project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The directory."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of the project")


def run(arguments: argparse.Namespace) -> int:
    """Writes it and says what to read next."""
    names = write_project(arguments.directory)
    print(f"{arguments.directory}: {', '.join(names)}")
    place = str(arguments.directory)
    print(f"next: cd {shlex.quote(f'./{place}' if place.startswith('-') else place)}, then the commands of README.md")
    return 0
