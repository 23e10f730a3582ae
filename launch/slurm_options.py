# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a job asks of Slurm: one set of options for `memformer launch slurm` and `memformer launch submitit`."""

import argparse
import dataclasses
import re

from data_pipeline.errors import UserError
from launch.commands.launch_local import positive

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """The resources and the surroundings of a job.

    Attributes:
        nodes: Number of nodes.
        gpus_per_node: GPUs of each node, one task each; 0: a run on CPUs.
        tasks_per_node: Tasks of each node.
        cpus_per_task: CPU cores of each task; None: the site's default.
        memory: Of each node, as `--mem` takes it; None: the site's default.
        time: Limit of one life of the job, as `--time` takes it; None: the partition's.
        partition: Partition.
        account: Account to charge.
        qos: Quality of service.
        constraint: Features that the nodes must have.
        reservation: Reservation.
        dependency: As `--dependency` takes it; a job whose dependency can never be met is cancelled.
        array: Indices of an array; each task of it is a run of its own, in RUN_DIR/array-INDEX.
        sbatch_lines: Further `#SBATCH` options, such as `--switches=1`.
        set_up: Shell lines for before the run, such as `module load cuda`.
        container_image: Image for pyxis; None: no container.
        container_mounts: What the container sees of the host, as pyxis' `--container-mounts`.
        warning_seconds: How long before the time limit the ranks are told to save.
        max_failures: Lives in a row without a new checkpoint, after which the job is not requeued any more.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    dependency: str | None = None
    array: str | None = None
    sbatch_lines: tuple[str, ...] = ()
    set_up: tuple[str, ...] = ()
    container_image: str | None = None
    container_mounts: str | None = None
    warning_seconds: int = 300
    max_failures: int = 3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and (not value.isprintable() or not value.strip() or value != value.strip()):
                raise UserError(f"{option_name(field.name)} {value!r}: give one word of printable characters")
        for line in self.set_up:
            if not line.isprintable():
                raise UserError(f"--set-up {line!r}: give one line of shell; repeat the option for more")
        for line in self.sbatch_lines:
            if not line.startswith("-") or not line.isprintable():
                raise UserError(f"--sbatch-line {line!r}: give an option of sbatch, as in --sbatch-line=--switches=1")
        if self.time is not None and self.warning_seconds >= time_seconds(self.time):
            raise UserError(
                f"--warning-seconds {self.warning_seconds}: is not before the end of --time {self.time}; lower it"
            )

    @property
    def tasks(self) -> int:
        """Processes of the run."""
        return self.nodes * self.tasks_per_node

    @property
    def tasks_said(self) -> str:
        """The number of processes as the command line gives it."""
        name = "--gpus-per-node" if self.gpus_per_node else "--tasks-per-node"
        return f"--nodes {self.nodes} x {name} {self.tasks_per_node} = {self.tasks}"


def time_seconds(text: str) -> float:
    """Seconds of a time limit as Slurm writes it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S, or UNLIMITED.

    Raises:
        UserError: It is none of these.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    match = _TIME.fullmatch(text)
    if match is None:
        raise UserError(f"--time {text!r}: is no time of Slurm; write minutes, HH:MM:SS or DAYS-HH:MM:SS")
    parts = [int(part) for part in match["rest"].split(":")]
    units: tuple[int, ...] = (3600, 60, 1)
    if not match["days"]:
        units = {1: (60,), 2: (60, 1), 3: units}[len(parts)]
    seconds = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return seconds + 86400 * int(match["days"] or 0)


def option_name(field: str) -> str:
    """The command line's name of a field."""
    return {"sbatch_lines": "--sbatch-line", "memory": "--mem"}.get(field, "--" + field.replace("_", "-"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that fill a `SlurmOptions`."""
    group = parser.add_argument_group("resources")
    group.add_argument("--nodes", type=positive, default=1, metavar="N", help="number of nodes")
    group.add_argument(
        "--gpus-per-node", type=int, default=0, metavar="G", help="GPUs of each node, one task each; 0: CPUs only"
    )
    group.add_argument(
        "--tasks-per-node",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="P",
        help="processes of each node (default: one a GPU, or 1 without GPUs)",
    )
    group.add_argument("--cpus-per-task", type=positive, metavar="C", help="CPU cores of each process")
    group.add_argument(
        "--mem",
        default=argparse.SUPPRESS,
        metavar="SIZE",
        help="memory of each node, 0 for all of it (default: all with GPUs, the site's default without)",
    )
    group.add_argument(
        "--time",
        metavar="LIMIT",
        help="limit of one life of the job, such as 24:00:00 or 2-00:00:00 (default: the partition's; with submitit, "
        "a day)",
    )
    site = parser.add_argument_group("site")
    for name, what in {
        "partition": "partition",
        "account": "account to charge",
        "qos": "quality of service",
        "constraint": "features that the nodes must have",
        "reservation": "reservation",
        "dependency": "start after other jobs, such as afterok:123; cancelled when that can never be",
    }.items():
        site.add_argument(f"--{name}", metavar=name.upper(), help=what)
    site.add_argument(
        "--sbatch-line", action="append", default=[], metavar="OPTION", help="any other option of sbatch (repeatable)"
    )
    site.add_argument(
        "--set-up",
        action="append",
        default=[],
        metavar="COMMAND",
        help="shell line for before the run, such as 'module load cuda' (repeatable)",
    )
    site.add_argument("--container-image", metavar="IMAGE", help="run in this container (needs Slurm's pyxis plug-in)")
    site.add_argument("--container-mounts", metavar="MOUNTS", help="what the container sees of the host: FROM:TO,...")
    life = parser.add_argument_group("the job's lives")
    life.add_argument(
        "--warning-seconds",
        type=positive,
        default=300,
        metavar="S",
        help="how long before the time limit the ranks are told to save",
    )
    life.add_argument(
        "--max-failures",
        type=positive,
        default=3,
        metavar="K",
        help="lives in a row without a new checkpoint, after which the job is not requeued any more",
    )


def read_options(arguments: argparse.Namespace) -> SlurmOptions:
    """The options of a parsed command line.

    Raises:
        UserError: An option that does not fit, or two that contradict one another.
    """
    gpus = arguments.gpus_per_node
    if gpus < 0:
        raise UserError(f"--gpus-per-node {gpus}: give 0 or more")
    tasks = getattr(arguments, "tasks_per_node", None) or gpus or 1
    if gpus and tasks != gpus:
        raise UserError(f"--tasks-per-node {tasks}: with --gpus-per-node {gpus} there is one task a GPU; leave it out")
    if arguments.container_mounts and not arguments.container_image:
        raise UserError("--container-mounts needs --container-image IMAGE")
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(SlurmOptions)
        if hasattr(arguments, field.name)
    }
    given.update(
        tasks_per_node=tasks,
        memory=getattr(arguments, "mem", "0" if gpus else None),
        sbatch_lines=tuple(arguments.sbatch_line),
        set_up=tuple(arguments.set_up),
    )
    return SlurmOptions(**given)
