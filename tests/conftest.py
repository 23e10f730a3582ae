# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How the tests are shared out among workers: `make test` has two more than cores, up to four (`pytest -n auto`):
half of their time is waiting, of processes for each other and for Slurm.

A file stays whole, so that what its fixtures make is made once. Files that would disturb each other are one piece of
work, which one worker does: Slurm tests have one cluster, others look at how fast processes are or wait for moments.
Longest first, so that no worker is left with a long file when the others have nothing to do.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from tests import ROOT

# Before torch is imported, here and in what tests start: workers share the cores, and threads that wait for a core
# burn it. On tensors as small as these, waiting for each other costs threads more than they gain in any case.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where Python is told to write no bytecode (containers often are), every program that tests start would compile
# torch and DeepSpeed again: nine seconds more. It is kept in pytest's own folder instead, away from the sources.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".pytest_cache" / "bytecode"))
    sys.dont_write_bytecode = False

# How long one example takes says nothing on a machine that others share; a test's own limit is pytest's.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

MOST_WORKERS = 4

ALONE = {
    "Slurm": ("tests/slurm/",),
    "moments": ("tests/faults/test_guards.py", "tests/faults/test_kills.py", "tests/launch/test_local.py"),
}
"""Not beside each other: the files of one piece of work."""

LONGEST = (
    *ALONE["Slurm"],
    "tests/distributed/test_equivalence.py",
    "tests/distributed/test_zero.py",
    "tests/distributed/test_resume.py",
    *ALONE["moments"],
    "tests/simulated_gpu/",
    "tests/project/test_docs_site.py",
    "tests/project/test_parallelism_page.py",
    "tests/project/test_readme.py",
    "tests/project/test_wheel.py",
    "tests/memformer/models/backbone/test_training.py",
    "tests/memformer/models/hub/test_causal_lm.py",
    "tests/benchmarks/test_backbone.py",
    "tests/memformer/planning/test_cost_model.py",
    "tests/faults/",
    "tests/launch/test_train_command.py",
    "tests/launch/test_submitit.py",
    "tests/benchmarks/test_scripts.py",
    "tests/memformer/models/",
    "tests/distributed/",
    "tests/launch/",
    "tests/data_pipeline/",
)
"""Before all others, in this order."""


def place(nodeid: str) -> int:
    """Where a test stands in the order of work."""
    return next((i for i, start in enumerate(LONGEST) if nodeid.startswith(start)), len(LONGEST))


def piece(nodeid: str) -> str:
    """The piece of work that a test belongs to: its file, or that of files which must not run beside each other."""
    return next((name for name, files in ALONE.items() if nodeid.startswith(files)), nodeid.split("::", 1)[0])


def there_is_a_gpu() -> bool:
    import torch  # not for the tests that do without it

    return torch.backends.cuda.is_built() and torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not there_is_a_gpu():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return min(len(os.sched_getaffinity(0)) + 2, MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return piece(nodeid)

    config.option.loadscopereorder = False  # which would go by the number of tests
    return ByFile(config, log)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real S3 server, one for all tests of a worker."""
    from tests import clouds

    with clouds.serving_s3(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def s3_proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server behind one that makes mistakes (`clouds.FaultyProxy`); the environment names it."""
    from tests import clouds

    with clouds.between(s3_server) as proxy:
        clouds.use(proxy.address, monkeypatch)
        yield proxy
