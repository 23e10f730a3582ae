# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the commands that read a data set share: it may be a directory or an address."""

import argparse
from pathlib import Path

from data_pipeline import FarSettings
from data_pipeline.far import default_cache


def add_far_arguments(parser: argparse.ArgumentParser) -> None:
    """--cache-dir and --allow-pipe."""
    parser.add_argument(
        "--cache-dir", metavar="DIR", default=str(default_cache()), help="where copies of far data are kept"
    )
    parser.add_argument("--allow-pipe", action="store_true", help="allow addresses pipe:COMMAND, which run a shell")


def far_settings(arguments: argparse.Namespace) -> FarSettings:
    """How an address that the arguments name is read."""
    return FarSettings(cache_dir=Path(arguments.cache_dir), allow_pipe=arguments.allow_pipe)
