# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One cluster of three nodes for all tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.books import small_dataset
from tests.slurm.cluster import Cluster, wait_until, why_not
from tests.slurm.runs import write_config


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The running cluster; skips where none can be started, unless MEMFORMER_REQUIRE_SLURM is set (as .ci/run does)."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("MEMFORMER_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the tiny model on a small data set, in a directory of each test file's own."""
    root = tmp_path_factory.mktemp("runs")
    return write_config(root / "config.yaml", small_dataset(root, characters=4_500))  # one of four is read to its end


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """The cluster with nothing running and every node up, before the test and after it."""
    yield slurm
    if "slurmctld" not in slurm.daemons:
        slurm.start_controller()
    for node in slurm.nodes:
        if node not in slurm.daemons:
            slurm.start_node(node)
    slurm.client("scancel", "--user=root", check=False)
    try:
        wait_until(lambda: slurm.idle_nodes() == slurm.nodes, 240, "every node idle again")
    except AssertionError as late:
        shown = slurm.client("scontrol", "-o", "show", "node", check=False)
        raise AssertionError(f"{late}\n{shown}\n{slurm.log('slurmctld')[-4000:]}") from None
