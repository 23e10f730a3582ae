# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Shows a configuration with everything it extends and every default, or the schema by which editors check files."""

import argparse
import json
from typing import Any

from data_pipeline.errors import UserError
from launch.cli import HelpFormatter, OneLineParser
from launch.overrides import SettingsParser
from memformer.models.registry import DEFAULT

SHOW = "Shows a whole configuration, as YAML that is read as the same: what a run writes to RUN/config.yaml."
SCHEMA = "Shows the JSON Schema of configuration files, for editors."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares show and schema."""
    actions = parser.add_subparsers(  # type: ignore[call-overload]  # whatever makes a parser will do
        dest="action", required=True, metavar="show|schema", parser_class=_parser
    )
    show = actions.add_parser("show", help=SHOW, description=SHOW, formatter_class=HelpFormatter, allow_abbrev=False)
    show.add_argument(
        "config", metavar="CONFIG.yaml", help="a file, or builtin:NAME of one that comes with the package"
    )
    show.set_defaults(run_action=_show)
    schema = actions.add_parser(
        "schema", help=SCHEMA, description=SCHEMA, formatter_class=HelpFormatter, allow_abbrev=False
    )
    schema.add_argument("--family", default=DEFAULT, metavar="NAME", help="model.family of the files")
    schema.set_defaults(run_action=_schema)


def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen action; returns the exit code."""
    return int(arguments.run_action(arguments))


def _parser(prog: str, **options: Any) -> OneLineParser:
    """Settings are of `show` alone."""
    return (SettingsParser if prog.endswith(" show") else OneLineParser)(prog=prog, **options)


def _show(arguments: argparse.Namespace) -> int:
    from memformer.config.schema import load_config  # pydantic takes a moment, and --help needs none of it

    print(load_config(arguments.config, arguments.overrides).as_yaml(), end="")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from memformer.config.json_schema import file_schema
    from memformer.config.schema import schema_of
    from memformer.models.registry import UnknownFamily

    try:
        schema = schema_of(arguments.family)
    except UnknownFamily as error:
        raise UserError(f"--family: {error}") from None
    print(json.dumps(file_schema(schema, arguments.family), indent=1))
    return 0
