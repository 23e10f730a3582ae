# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turns a template of `slurm/` into a job script for one run: its #SBATCH lines and its settings are written anew.

What follows the settings stays as it is in the template, so that a job submitted by hand and one submitted by
`memformer launch slurm` behave the same.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.slurm_options import SlurmOptions

TEMPLATES = Path(__file__).parent / "templates"
BEGIN, END = "# ---- settings ----\n", "# ---- end of settings"


def header(options: SlurmOptions, name: str, directory: Path, logs: Path, *, requeue: bool) -> list[str]:
    """The #SBATCH lines of a job.

    Args:
        options: What the job asks for.
        name: Name of the job.
        directory: Where it runs: relative paths of the configuration begin here.
        logs: Directory of the job's own output.
        requeue: Whether Slurm may start the job again.
    """
    pairs: list[tuple[str, object]] = [
        ("job-name", name),
        ("partition", options.partition),
        ("account", options.account),
        ("qos", options.qos),
        ("constraint", options.constraint),
        ("reservation", options.reservation),
        ("nodes", options.nodes),
        ("ntasks-per-node", options.tasks_per_node),
        ("gpus-per-node", options.gpus_per_node or None),
        ("cpus-per-task", options.cpus_per_task),
        ("mem", options.memory),
        ("time", options.time),
        ("signal", f"USR1@{options.warning_seconds}"),
        ("array", options.array),
        ("dependency", options.dependency),
        ("kill-on-invalid-dep", "yes"),
        ("open-mode", "append"),
        ("chdir", directory),
        ("output", str(logs).replace("%", "%%") + ("/slurm-%A_%a.out" if options.array else "/slurm-%j.out")),
    ]
    lines = [f"--{option}={_sbatch_quote(str(value))}" for option, value in pairs if value is not None]
    lines += ["--requeue" if requeue else "--no-requeue", *options.sbatch_lines]
    return [f"#SBATCH {line}" for line in lines]


def container_flags(options: SlurmOptions, directory: Path) -> list[str]:
    """srun's flags of the pyxis plug-in."""
    if options.container_image is None:
        return []
    flags = [f"--container-image={options.container_image}", f"--container-workdir={directory}"]
    return flags + ([f"--container-mounts={options.container_mounts}"] if options.container_mounts else [])


def render(
    template: str,
    comment: str,
    sbatch: Sequence[str],
    settings: Mapping[str, str | int | Sequence[str]],
    set_up: Sequence[str],
) -> str:
    """The job script.

    Args:
        template: Text of a template.
        comment: What the script is, for those who read it.
        sbatch: Its #SBATCH lines.
        settings: By name, the values of the template's settings; a sequence becomes an array of the shell.
        set_up: Shell lines that follow the settings.

    Raises:
        ValueError: The template has no settings block, or a setting is none of the template's.
    """
    before, begin, rest = template.partition(BEGIN)
    block, end, body = rest.partition(END)
    if not begin or not end:
        raise ValueError("the template has no block of settings")
    known = {line.partition("=")[0] for line in block.splitlines() if "=" in line and not line.startswith("#")}
    if unknown := set(settings) - known:
        raise ValueError(f"the template has no settings {sorted(unknown)}")
    code = [line for line in before.splitlines() if line and not line.startswith("#")]
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in comment.splitlines()), "", *sbatch, "", *code, ""]
    assignments = [f"{name}={_assigned(value)}" for name, value in settings.items()]
    return "\n".join([*lines, BEGIN.rstrip("\n"), *assignments, *set_up, ""]) + end + body


def _assigned(value: str | int | Sequence[str]) -> str:
    if isinstance(value, str):
        return shlex.quote(value)
    return str(value) if isinstance(value, int) else f"({shlex.join(value)})"


def _sbatch_quote(value: str) -> str:
    """A value of an #SBATCH line, which knows double quotes and backslashes but no other shell syntax."""
    if not any(character in value for character in " \t\"'#\\"):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
