# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Settings on the command line: `--section.field VALUE` beside a command's own options.

A command does not know the names of the settings (the configuration does, and refuses the wrong ones), so everything
that looks like an option and is none of its own is taken for a setting, with the value that follows it.
"""

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from data_pipeline.errors import UserError
from launch.cli import OneLineParser


def split_overrides(arguments: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Takes the settings out of a command line.

    Args:
        arguments: The command line.
        known: The command's own options, such as `--nproc`; every other `--name` is a setting.

    Returns:
        The command's own arguments, and the settings, in the form that `memformer.config.schema.load_config` reads.
    """
    own: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if not argument.startswith("--") or argument == "--" or name in known:
            own.append(argument)
            continue
        overrides.append(argument)
        if not equals:
            overrides.extend(value for value in [next(rest, None)] if value is not None)
    return own, overrides


_ALIASES = dict.fromkeys(
    ("--gpus", "--num-gpus", "--num_gpus", "--np", "--processes", "--nproc_per_node", "--nproc-per-node"),
    ("--nproc", "--gpus-per-node"),
)
"""Options under the names that other launchers have for them."""


class OverridesParser(OneLineParser):
    """A parser that puts the settings of its command line into `overrides` of the result."""

    def parse_known_args(  # type: ignore[override]  # the base class overloads it by the namespace's type
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parses the command's own arguments; the settings are left to the configuration."""
        own, overrides = split_overrides(args or [], self._option_string_actions)
        for name in (word.partition("=")[0] for word in overrides if word.startswith("--")):
            if name == "--json":
                self.error("has no --json: memformer status RUN --json tells of a run")
            if meant := misspelt(name, self._option_string_actions):
                self.error(f"no option {name}, did you mean {meant}?")
        parsed, unknown = super().parse_known_args(own, namespace)
        parsed.overrides = overrides
        return parsed, unknown


class SettingsParser(OverridesParser):
    """The same, whose help ends with every setting of the family that the command line names."""

    _words: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]  # the base class overloads it by the namespace's type
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Keeps the command line for the help."""
        self._words = args or []
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Describes the settings, which takes a moment, for those alone who ask."""
        from memformer.config.files import family_named
        from memformer.config.schema import describe_fields
        from memformer.models.registry import DEFAULT, UnknownFamily

        own, overrides = split_overrides(self._words, self._option_string_actions)
        path = next((word for word in own if word.endswith((".yaml", ".yml"))), None)
        try:
            family = family_named(path, overrides) or DEFAULT
            described = describe_fields(family)
        except (UserError, UnknownFamily):  # help is given whatever else is wrong; a run would be refused for it
            family, described = DEFAULT, describe_fields()
        self.epilog = (
            f"settings of model.family {family}, each as --section.field VALUE (those of another: CONFIG.yaml or "
            f"--model.family NAME before --help):\n{described}"
        )
        return super().format_help()


def misspelt(name: str, known: Collection[str]) -> str | None:
    """The command's own option that is meant by a word that is no setting either; None where none is near.

    Args:
        name: What was written, such as --resum.
        known: The command's own options.
    """
    if "." in name:
        return None
    if meant := [each for each in _ALIASES.get(name, ()) if each in known]:
        return meant[0]
    from memformer.config.schema import Config  # pydantic takes a moment, and --help needs none of it

    near = difflib.get_close_matches(name, known, 1, 0.8)
    return near[0] if near and name.removeprefix("--") not in Config.model_fields else None
