# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The cluster of these tests is a real one: nodes of their own, which can die."""

import os
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.slurm


def test_tasks_run_on_nodes_of_their_own(cluster: Cluster) -> None:
    names = cluster.client("srun", "-N2", "--ntasks-per-node=2", "bash", "-c", "hostname; getent hosts node2")
    assert sorted(line for line in names.splitlines() if line in cluster.nodes) == ["node1", "node1", "node2", "node2"]
    assert "127.0.0.1" in names


def test_the_death_of_a_node_ends_what_ran_there(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\nsleep 300 &\necho $SLURMD_NODENAME >node.new; mv node.new node; wait\n")
    cluster.client("sbatch", "--output=out", str(script), cwd=tmp_path)
    wait_until((tmp_path / "node").exists, 30, "the job runs")
    wait_until(sleeping, 10, "its process runs")
    before = sleeping()
    cluster.kill((tmp_path / "node").read_text().strip())
    assert sleeping() == before - 1


def sleeping() -> int:
    """How many `sleep 300` there are on this machine."""
    found = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += Path(f"/proc/{process}/cmdline").read_bytes() == b"sleep\x00300\x00"
        except OSError:
            continue
    return found
