# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What `launch.machine` says of a machine with GPUs, without them, and with few cores."""

import sys
import types
from pathlib import Path

import pytest

from launch.machine import (
    available_cores,
    core_slices,
    gpu_numa_nodes,
    in_ranges,
    numa_nodes,
    visible_gpus,
)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the driver's own tool that reports two GPUs, one of them cut into instances."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-a)'\n"
        "echo '  MIG 1g.10gb     Device  0: (UUID: MIG-b)'\n"
        "echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-c)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    return tool


def test_the_driver_is_asked(driver: Path) -> None:
    assert visible_gpus() == 2


def test_a_driver_that_fails_means_no_gpus(driver: Path) -> None:
    driver.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    nodes = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    assert visible_gpus() == len(nodes)


@pytest.mark.parametrize(
    ("listed", "expected"), [("0,1,2", 3), ("3", 1), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-a, GPU-c", 2)]
)
def test_visible_devices_decide(driver: Path, monkeypatch: pytest.MonkeyPatch, listed: str, expected: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == expected


def test_a_run_told_to_use_the_cpu_sees_no_gpus(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert visible_gpus() == 0


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_slices_share_out_all_cores_evenly(parts: int) -> None:
    cores = [0, 1, 2, 5, 6, 7, 8, 9]
    slices = core_slices(cores, parts)
    assert [core for part in slices for core in part] == cores
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_more_ranks_than_cores_are_not_bound() -> None:
    assert core_slices([0, 1], 3) == [[], [], []]
    assert available_cores()


@pytest.mark.parametrize(("numbers", "words"), [([], ""), ([4], "4"), ([0, 1, 2, 3, 8], "0-3,8"), ([1, 3], "1,3")])
def test_numbers_in_ranges(numbers: list[int], words: str) -> None:
    assert in_ranges(numbers) == words


def test_numa_nodes_of_cores_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, cores in ((0, "0-2,8"), (1, "3-5\n")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(cores)
    assert numa_nodes(tmp_path) == {0: [0, 1, 2, 8], 1: [3, 4, 5]}
    assert numa_nodes(tmp_path / "none") == {}
    torch = types.ModuleType("torch")
    places = [types.SimpleNamespace(pci_domain_id=0, pci_bus_id=bus, pci_device_id=0) for bus in (0x1B, 0x43, 0x52)]
    torch.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        device_count=lambda: 4, get_device_properties=lambda n: (*places, types.SimpleNamespace())[n]
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    for place, node in (("0000:1b:00.0", "1\n"), ("0000:43:00.0", "-1\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "numa_node").write_text(node)
    assert gpu_numa_nodes(tmp_path) == {0: 1}, "the second has none, the third no file, the fourth an older torch"
