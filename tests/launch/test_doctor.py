# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer doctor`: each fault it knows, made on purpose, and the meeting of the ranks.

Covers: launch/checks.py, launch/commands/doctor.py, launch/preflight.py
"""

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import checks, cli, preflight
from launch.checks import Finding
from memformer.processes.ports import free_port
from tests.commands import run_command


def faults(findings: Iterator[Finding]) -> dict[str, Finding]:
    """What is not fine, by what was looked at; each has a mend."""
    found = {finding.check: finding for finding in findings if finding.level != "fine"}
    assert all(finding.mend for finding in found.values())
    return found


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_lock_of_a_killed_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu/cpu_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert "compilation lock" not in faults(checks.check_operators()), "someone compiles at this moment"
    age(lock, 3600)
    fault = faults(checks.check_operators())["compilation lock"]
    assert fault.level == "error" and f"rm {lock}" in fault.mend


def test_leftovers_in_shared_memory(tmp_path: Path) -> None:
    (tmp_path / "torch_123_456").write_bytes(b"x")
    assert not faults(checks.check_shared_memory(tmp_path))
    age(tmp_path / "torch_123_456", 2 * 86400)
    assert "1 files of yours" in faults(checks.check_shared_memory(tmp_path))[f"{tmp_path} leftovers"].found
    assert faults(checks.check_shared_memory(tmp_path / "none"))


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert "ulimit -n 4096" in faults(checks.check_limits())["open files"].mend


def test_little_memory_to_pin_beside_infiniband(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(checks, "INFINIBAND", tmp_path)
    assert not faults(checks.check_limits()), "nothing registers memory here"
    (tmp_path / "mlx5_0").mkdir()
    assert "0.0625 MiB, with mlx5_0" in faults(checks.check_limits())["locked memory"].found
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert not faults(checks.check_limits())


def test_one_core_a_task_and_cores_far_from_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(checks, "gpu_numa_nodes", lambda: {0: 1})
    monkeypatch.setattr(checks, "numa_nodes", lambda: {0: list(range(8)), 1: list(range(8, 16))})
    monkeypatch.setattr(checks, "available_cores", lambda: [3])
    found = faults(checks.check_cores())
    assert found["cores"].found.startswith("one of 16") and "SRUN_CPUS_PER_TASK" in found["cores"].mend
    assert "GPU 0 is at NUMA node 1" in found["cores beside the GPU"].found
    monkeypatch.setattr(checks, "available_cores", lambda: [6, 7, 8])
    assert not faults(checks.check_cores())
    (fine,) = checks.check_cores()
    assert fine.found == "3 of 16 (6-8)"
    monkeypatch.setattr(checks, "gpu_numa_nodes", lambda: {0: 1, 1: 0})
    monkeypatch.setattr(checks, "available_cores", lambda: [3, 4])
    assert not faults(checks.check_cores()), "with two GPUs, which is this process's is not known"


def test_a_name_that_other_nodes_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.1.1")
    assert not faults(checks.check_host_name())
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert "GLOO_SOCKET_IFNAME" in faults(checks.check_host_name())["host name"].mend

    def unknown(_: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert faults(checks.check_host_name())["host name"].level == "error"


def test_a_disk_that_cannot_be_written_or_is_slow_or_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "disk speed" in [finding.check for finding in checks.check_disk(tmp_path / "not/yet/made")]
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    (fault,) = faults(checks.check_disk(Path("/proc/self"))).values()
    assert fault.level == "error"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30)
    assert "NTP" in faults(checks.check_disk(tmp_path))["clock"].mend


def test_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not faults(checks.check_slurm()), "a machine without Slurm is fine"
    for name, says in (("sbatch", ":"), ("scontrol", "echo Slurmctld at c is DOWN")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    assert "DOWN" in faults(checks.check_slurm())["Slurm"].found
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho Slurmctld at c is UP\n")
    assert not faults(checks.check_slurm())


def test_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.machine.visible_gpus", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "CUDA build" in faults(checks.check_gpus())["GPUs"].mend


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("odd machine")
        yield

    monkeypatch.setattr(checks, "check_limits", broken)
    assert "odd machine" in faults(checks.local_findings(tmp_path))["broken"].found


def test_the_command_says_all_and_ends_with_1_on_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cli.main(["doctor", "--run-dir", str(tmp_path), "--json"])
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert len(record["findings"]) == len(said.err.splitlines()) - 1, "the last line is the sum"
    assert {"Python", "torch", "deepspeed", "GPUs", "open files", "disk speed"} <= {
        finding["check"] for finding in record["findings"]
    }
    assert cli.main(["doctor", "--run-dir", "/proc/self", "--json"]) == 1


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.mark.distributed
def test_ranks_meet_and_agree() -> None:
    port = free_port()

    def answer(rank: int) -> str:
        return run_command("doctor", "--nodes", "--timeout", "60", environment=environment(rank, 2, port)).stdout

    with ThreadPoolExecutor() as both:
        outputs = list(both.map(answer, range(2)))
    assert "2 of 2 ranks answered" in outputs[0], outputs
    assert "all-reduce: 2 ranks agree" in outputs[0], outputs


def test_a_rank_that_does_not_answer_is_named_with_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "expected_nodes", lambda _: {1: "node1", 2: "node2"})
    port = free_port()
    others: list[Finding] = []

    def present() -> None:
        others.extend(preflight.node_findings(environment(1, 3, port), timeout_seconds=20))

    thread = threading.Thread(target=present)
    thread.start()
    found = faults(preflight.node_findings(environment(0, 3, port), timeout_seconds=2))
    thread.join(timeout=30)
    assert not thread.is_alive() and not others, "the one that came is let go"
    assert "rank 2 (node2) did not answer within 2 s" in found["nodes"].found
    assert "rank 1" not in found["nodes"].found


def test_a_rank_that_hangs_in_the_all_reduce_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 says that it is there, and then nothing more."""
    port = free_port()
    monkeypatch.setattr(preflight, "_try_all_reduce", lambda *_: None)
    release = threading.Event()

    def hanging() -> None:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=20)
                break
            except OSError:
                time.sleep(0.05)
        with connection:
            preflight._say(connection, rank=2, node="node9", time=time.time() - 100)
            release.wait(30)

    threads = [
        threading.Thread(target=hanging),
        threading.Thread(target=lambda: list(preflight.node_findings(environment(1, 3, port), timeout_seconds=20))),
    ]
    for thread in threads:
        thread.start()
    found = faults(preflight.node_findings(environment(0, 3, port), timeout_seconds=3))
    release.set()
    for thread in threads:
        thread.join(timeout=30)
    assert "rank 2 (node9) did not come through within 3 s" in found["all-reduce"].found
    assert "rank 2 on node9 is +100.0 s off" in found["clock"].found
