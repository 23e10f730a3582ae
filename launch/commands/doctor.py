# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What on this machine, or on the nodes of a job, would break a run, and the mend.

    memformer doctor                        this machine
    srun memformer doctor --nodes           every node of a Slurm allocation, and the network between them

With --nodes, each machine's first task reports its warnings and errors, rank 0 also what is fine and who does not
answer.

exit codes: 0 no errors (warnings may be); 1 errors; 2 bad usage."""

import argparse
import dataclasses
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from launch.answers import answer
from launch.checks import Finding, local_findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `memformer doctor`."""
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="where runs will be written: room and speed")
    parser.add_argument(
        "--mirror", metavar="ADDRESS", help="where checkpoints will be copied: whether it can be written"
    )
    parser.add_argument("--nodes", action="store_true", help="meet the other ranks, as one of several tasks of a job")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="how long a node may take to answer (--nodes)"
    )
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Looks at everything; returns 1 if something will break a run."""
    rank, local_rank = 0, 0
    if arguments.nodes:
        from memformer.processes.environment import prepare_environment

        prepare_environment()
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    prefix = f"{socket.gethostname()}: " if arguments.nodes else ""
    findings: list[Finding] = []
    if local_rank == 0:
        findings += report(local_findings(arguments.run_dir, arguments.mirror), prefix, quiet=rank > 0)
    if arguments.nodes:
        from launch.preflight import node_findings

        findings += report(node_findings(timeout_seconds=arguments.timeout), prefix, quiet=rank > 0)
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if rank == 0 or errors:
        print(f"{prefix}{errors} errors, {warnings} warnings")
    if arguments.json:
        record = {"errors": errors, "warnings": warnings, "findings": [dataclasses.asdict(each) for each in findings]}
        answer(record)
    return 1 if errors else 0


def report(findings: Iterable[Finding], prefix: str, quiet: bool) -> list[Finding]:
    """Prints findings as they come, and returns them; `quiet` leaves out what is fine."""
    seen = []
    for finding in findings:
        seen.append(finding)
        if quiet and finding.level == "fine":
            continue
        mend = f"; {finding.mend}" if finding.mend else ""
        print(f"{prefix}{finding.level:<8} {finding.check}: {finding.found}{mend}", flush=True)
    return seen
