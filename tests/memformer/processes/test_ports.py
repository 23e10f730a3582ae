# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Ports: free ones are found, taken ones are not given, jobs and their lives keep apart."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from memformer.processes import ports

ROOT = Path(__file__).parents[3]


def test_a_free_port_can_be_listened_on_and_a_taken_one_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.free_port()
    assert port in ports.RANGE
    with socket.socket() as listener:
        listener.bind(("", port))
        listener.listen()
        monkeypatch.setattr(ports, "RANGE", range(port, port + 1))
        with pytest.raises(OSError, match="no free TCP port"):
            ports.free_port(attempts=1)


def test_jobs_that_follow_each_other_and_lives_of_one_keep_apart() -> None:
    """As far as a shared node needs it: neighbouring jobs, each in its first lives."""
    found = [ports.port_of_job(job, life) for job in range(1000, 1100) for life in range(7)]
    assert len(set(found)) == len(found)
    assert all(ports.port_of_job(job, 3) in ports.RANGE for job in (0, 11_999, 10**7))


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("pretrain*.sbatch")), ids=lambda path: path.stem)
def test_the_job_scripts_have_the_same_formula(path: Path) -> None:
    (formula,) = re.findall(r"^MASTER_PORT=(.*)$", path.read_text(), re.MULTILINE)
    for job, life in ((1, 0), (123_456, 3), (9_999_999, 40)):
        said = subprocess.run(["bash", "-c", f"SLURM_JOB_ID={job} life={life}; echo {formula}"], capture_output=True)
        assert int(said.stdout) == ports.port_of_job(job, life)
