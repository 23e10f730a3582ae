# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the commands that read a data set share: the options for one at an address."""

import argparse
from pathlib import Path

from data_pipeline import FarSettings
from data_pipeline.far import default_cache


def add_far_arguments(parser: argparse.ArgumentParser) -> None:
    """--cache-dir, --allow-pipe."""
    cache = str(default_cache())
    parser.add_argument("--cache-dir", metavar="DIR", default=cache, help="where copies of far data are kept")
    parser.add_argument("--allow-pipe", action="store_true", help="allow addresses pipe:COMMAND, which run a shell")


def far_settings(arguments: argparse.Namespace) -> FarSettings:
    """How far data is read, as these options say."""
    return FarSettings(cache_dir=Path(arguments.cache_dir), allow_pipe=arguments.allow_pipe)
