# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What this machine offers a run: GPUs and cores. Asked without importing torch, so that it costs nothing."""

import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any


def visible_gpus() -> int:
    """Counts the GPUs that a process started from here would see.

    `DS_ACCELERATOR=cpu` and an empty `CUDA_VISIBLE_DEVICES` mean none; otherwise `CUDA_VISIBLE_DEVICES` decides, and
    where that is not set the driver is asked.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        devices = [device.strip() for device in listed.split(",")]
        # CUDA stops reading at the first entry that is no device, such as -1
        valid = [device == "" or device.startswith("-") or device == "NoDevFiles" for device in devices]
        return valid.index(True) if True in valid else len(devices)
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
        return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    except (OSError, subprocess.SubprocessError):
        return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))


def available_cores() -> list[int]:
    """Numbers of the CPU cores that this process may run on, in order."""
    return sorted(os.sched_getaffinity(0))


def core_slices(cores: list[int], parts: int) -> list[list[int]]:
    """Cuts the cores into contiguous slices whose sizes differ by one at most; all are empty if there are too few."""
    if parts > len(cores):
        return [[] for _ in range(parts)]
    edges = [len(cores) * part // parts for part in range(parts + 1)]
    return [cores[start:end] for start, end in pairwise(edges)]


def in_ranges(numbers: list[int]) -> str:
    """Sorted numbers as Linux and Slurm write them: 0-3,8."""
    starts = [each for each in numbers if each - 1 not in numbers]
    ends = [each for each in numbers if each + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> dict[int, list[int]]:
    """The cores of each NUMA node of this machine; empty where that cannot be read."""
    found = {}
    for path in sorted(root.glob("node[0-9]*/cpulist")):
        try:
            words = path.read_text().strip().split(",")
        except OSError:
            continue
        edges = [tuple(map(int, word.split("-"))) for word in words if word]
        found[int(path.parent.name[4:])] = [core for edge in edges for core in range(edge[0], edge[-1] + 1)]
    return found


def gpu_numa_nodes(root: Path = Path("/sys/bus/pci/devices")) -> dict[int, int]:
    """The NUMA node of each GPU that torch sees, by its number; those of which it is not known are left out."""
    import torch

    found = {}
    for number in range(torch.cuda.device_count()):
        device: Any = torch.cuda.get_device_properties(number)
        try:
            place = f"{device.pci_domain_id:04x}:{device.pci_bus_id:02x}:{device.pci_device_id:02x}.0"
            node = int((root / place / "numa_node").read_text())
        except (AttributeError, OSError, ValueError):  # an older torch, a container
            continue
        if node >= 0:
            found[number] = node
    return found
