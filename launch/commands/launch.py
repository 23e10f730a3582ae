# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Starts a training run on several processes: on this machine, or as a job of a Slurm cluster."""

import argparse
import importlib

from launch.cli import HelpFormatter
from launch.overrides import OverridesParser

SUMMARY = "start a training run on several processes"

# mode -> (module, one-line summary); a module here has `add_arguments(parser)` and `run(arguments)` like a subcommand
MODES: dict[str, tuple[str, str]] = {
    "local": ("launch.commands.launch_local", "several processes on this machine"),
    "submitit": ("launch.commands.launch_submitit", "jobs or local processes through submitit; sweeps"),
    "slurm": ("launch.commands.launch_slurm", "a job on several nodes of a Slurm cluster"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one sub-command for each way to start a run."""
    modes = parser.add_subparsers(dest="mode", metavar="MODE", required=True, parser_class=OverridesParser)
    for name, (module_name, summary) in MODES.items():
        module = importlib.import_module(module_name)
        mode = modes.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(mode)
        mode.set_defaults(run_mode=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Starts the run in the chosen way; returns its exit code."""
    return int(arguments.run_mode(arguments))
