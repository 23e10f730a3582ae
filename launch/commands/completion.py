# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Prints a script by which a shell completes commands, options and settings; pressing TAB starts no Python.

bash: memformer completion bash > ~/.local/share/bash-completion/completions/memformer
zsh:  memformer completion zsh > DIR/_memformer, where DIR is in fpath
fish: memformer completion fish > ~/.config/fish/completions/memformer.fish

Write it anew after an upgrade."""

import argparse
import importlib
from typing import Any

from data_pipeline.errors import UserError
from launch.cli import COMMANDS, OneLineParser

SHELLS = ("bash", "zsh", "fish")
_CONFIG = "CONFIG.yaml"
_DIRECTORIES = frozenset({"DIR", "RUN", "MODEL", "RUN_OR_CHECKPOINT"})
_FILES = frozenset({_CONFIG, "FILE", "SOURCE", "auto|never|PATH"})
"""What options and arguments are called whose values are paths."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def run(arguments: argparse.Namespace) -> int:
    """Writes the script to stdout."""
    import shtab

    whole = whole_parser()
    _mark_paths(whole, shtab.FILE, shtab.DIRECTORY)
    print(shtab.complete(whole, arguments.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with all commands and their options, and the settings as options of the commands that take them.

    Raises:
        UserError: A family of an installed package cannot be loaded.
    """
    whole = OneLineParser(prog="memformer")
    whole.add_argument("--version", action="store_true", help="show the version")
    commands = whole.add_subparsers()
    settings = _settings()
    for name, (module, summary) in COMMANDS.items():
        parser = commands.add_parser(name, help=summary)
        importlib.import_module(module).add_arguments(parser)
        _add_settings(parser, settings)
    return whole


def _settings() -> dict[str, dict[str, Any]]:
    """Dotted name -> JSON schema of the settings of all families."""
    from memformer.config.json_schema import settings_of
    from memformer.config.schema import schema_of
    from memformer.models.registry import UnknownFamily, family_names

    try:
        return {name: field for family in family_names() for name, field in settings_of(schema_of(family))}
    except UnknownFamily as error:
        raise UserError(str(error)) from None


def _add_settings(parser: argparse.ArgumentParser, settings: dict[str, dict[str, Any]]) -> None:
    """Adds the settings to what is given a configuration: the parser, or those of its commands."""
    for action in list(parser._actions):
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _add_settings(each, settings)
        elif action.metavar == _CONFIG:
            for name, field in settings.items():
                if f"--{name}" not in parser._option_string_actions:  # --device of `plan` is another one
                    told = field["description"].partition(". ")[0].rstrip(".").replace("%", "%%")
                    parser.add_argument(f"--{name}", help=told, choices=_choices(field))


def _choices(field: dict[str, Any]) -> list[str] | None:
    """What a setting may be, where that is a list; true and false are such a list."""
    words: list[str] = []
    for kind in (field, *field.get("anyOf", ())):
        boolean = ["true", "false"] if kind.get("type") == "boolean" else []
        words += boolean + [str(word) for word in kind.get("enum", [kind["const"]] if "const" in kind else [])]
    return words or None


def _mark_paths(parser: argparse.ArgumentParser, file: Any, directory: Any) -> None:
    """Tells shtab what is completed by paths."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _mark_paths(each, file, directory)
        elif action.metavar in _DIRECTORIES | _FILES:
            action.complete = directory if action.metavar in _DIRECTORIES else file  # type: ignore[attr-defined]
