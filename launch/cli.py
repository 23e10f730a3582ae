# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer`: finds the subcommand, runs it, and turns a user's mistake into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage. Subcommands are imported only when they are asked for, so that
`memformer --help` and the data commands do not pay for torch.
"""

import argparse
import errno
import importlib
import io
import math
import os
import select
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from data_pipeline.errors import UserError
from launch.answers import json_alone
from memformer.run import exit_codes

# subcommand -> (module, one-line summary shown by `memformer --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("launch.commands.init", "write a project to work in: configurations, job scripts, a README"),
    "data": ("launch.commands.data", "build, synthesise, adopt, inspect and trace data sets of long documents"),
    "train": ("launch.commands.train", "train a Memformer, or a memory for a pretrained model, from a YAML file"),
    "config": ("launch.commands.config", "the whole configuration of a run, or the schema for editors"),
    "plan": ("launch.commands.plan", "memory, traffic and time of a run, before a GPU is asked for"),
    "evaluate": ("launch.commands.evaluate", "perplexity on a data set, or tasks by length; with memory and without"),
    "generate": ("launch.commands.generate", "continue a text at constant memory"),
    "inspect-memory": (
        "launch.commands.inspect_memory",
        "what the memory keeps of a text, as numbers and pictures",
    ),
    "checkpoint": ("launch.commands.checkpoint", "list, verify and fetch the checkpoints of a run"),
    "export": ("launch.commands.export", "turn a sharded checkpoint into single-GPU weights"),
    "doctor": ("launch.commands.doctor", "what on this machine, or on a job's nodes, would break a run"),
    "status": ("launch.commands.status", "what a run is doing, from its files alone"),
    "profile": ("launch.commands.profile", "where the time of a run's traced steps went, by part and by kernel"),
    "launch": ("launch.commands.launch", "start a training run on several processes"),
    "completion": ("launch.commands.completion", "completion of commands, options and settings for bash, zsh or fish"),
}


LARGEST = 2**63
"""Numbers of options are smaller."""

SHOWN_CHARACTERS = 60
"""Of a path that is too long for the file system."""

PATHS = {"DIR", "FILE", "RUN", "RUN_OR_CHECKPOINT", "MODEL", "CONFIG.yaml"}
"""What arguments that are paths are called in the help."""

NUMBERS = {"int": "a whole number", "positive": "a whole number of 1 or more", "float": "a number"}
"""Types of arguments -> what is asked for."""


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line (the usage is in `--help`)."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with exit code 2 and one line on stderr."""
        self.exit(exit_codes.USAGE, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        # Said in the user's words; what no number of torch's or numpy's could hold is none that an option means.
        asked = NUMBERS.get(getattr(action.type, "__name__", ""))
        if not text and action.metavar in PATHS:  # a variable that is not set would be the current directory
            raise argparse.ArgumentError(action, "is empty: give a path")
        try:
            value = super()._get_value(action, text)
        except argparse.ArgumentError:
            if asked is None:
                raise
            value = math.nan
        if isinstance(value, (int, float)) and not abs(value) < LARGEST:
            raise argparse.ArgumentError(action, f"is {text!r}: give {asked}")
        return value


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows true defaults beside each option and keeps the line breaks of descriptions."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # An option without a default says in its own words what holds without it; a switch is off unless it is given.
        told = action.default is None or action.default == [] or action.nargs == 0
        return action.help if told else super()._get_help_string(action)


def command(name: str) -> tuple[ModuleType, OneLineParser]:
    """The module of a subcommand, and the parser of its arguments."""
    module = importlib.import_module(COMMANDS[name][0])
    # A command that takes settings of the configuration brings the parser that lets them through.
    parser: OneLineParser = getattr(module, "Parser", OneLineParser)(
        prog=f"memformer {name}", description=module.__doc__, formatter_class=HelpFormatter, allow_abbrev=False
    )
    module.add_arguments(parser)
    return module, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `memformer ARGV...` and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not poll.poll(0):  # it is another pipe that broke
            raise
        # The reader of our stdout went away (`| head`): nothing to report, nobody to report to. Python flushes once
        # more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.DONE


def _run(arguments: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that a terminal cannot show are spelled out, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: memformer COMMAND ...   (memformer COMMAND --help tells its options)\n")
        print("\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()))
        return exit_codes.DONE if arguments else exit_codes.USAGE
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from importlib.metadata import version

        print(f"memformer {version('memformer-train')}")
        return exit_codes.DONE
    if name not in COMMANDS:
        print(f"memformer: error: no command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return exit_codes.USAGE
    try:
        module, parser = command(name)
        parsed = parser.parse_args(rest)
        with json_alone(getattr(parsed, "json", False)):
            return int(module.run(parsed) or exit_codes.DONE)
    except UserError as error:
        print(f"memformer {name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        shown = str(error.filename)[:SHOWN_CHARACTERS]
        print(f"memformer {name}: error: {shown}...: File name too long: give another path", file=sys.stderr)
        return exit_codes.USAGE
    except KeyboardInterrupt:
        print(f"memformer {name}: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
