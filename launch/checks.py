# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What `memformer doctor` looks at on one machine: each check says what it found, if that is well, and the mend."""

import dataclasses
import os
import platform
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UserError
from launch.machine import available_cores, gpu_numa_nodes, in_ranges, numa_nodes

Level = Literal["fine", "warning", "error"]
GIB = 2**30
STALE_LOCK_SECONDS = 600.0
LEFTOVER_SECONDS = 24 * 3600.0
SPEED_BYTES = 64 * 2**20
LEAST_OPEN_FILES = 4096
LARGEST_SKEW_SECONDS = 2.0
INFINIBAND = Path("/sys/class/infiniband")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: fine; warning: may slow a run down or break it later; error: will break it.
        check: What was looked at.
        found: What was found.
        mend: What to do about it; empty when it is fine.
    """

    level: Level
    check: str
    found: str
    mend: str = ""


def check_python() -> Iterator[Finding]:
    """The interpreter and the packages that a run needs."""
    yield Finding("fine", "Python", f"{platform.python_version()} ({sys.executable})")
    for name in ("torch", "deepspeed", "safetensors", "pydantic"):
        try:
            yield Finding("fine", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("error", name, "is not installed", "make setup, or pip install memformer-train")


def check_gpus() -> Iterator[Finding]:
    """CUDA and NCCL as torch sees them, against what the driver and Slurm say."""
    from launch.machine import visible_gpus

    try:
        import torch
    except ImportError as error:
        yield Finding("error", "torch", f"cannot be imported ({error})", "make setup")
        return
    count, driver = torch.cuda.device_count(), visible_gpus()
    if driver and not count:
        yield Finding(
            "error",
            "GPUs",
            f"the driver shows {driver}, torch {torch.__version__} sees none",
            "install a CUDA build of torch that fits the driver (nvidia-smi shows its version)",
        )
    elif not count:
        yield Finding("fine", "GPUs", "none: runs train on CPUs (gloo)")
    else:
        names = {torch.cuda.get_device_name(device) for device in range(count)}
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        yield Finding("fine", "GPUs", f"{count} ({', '.join(sorted(names))}), CUDA {torch.version.cuda}, NCCL {nccl}")
    tasks = int(re.match(r"\d*", os.environ.get("SLURM_NTASKS_PER_NODE", "")).group() or 0)  # type: ignore[union-attr]
    if "SLURM_PROCID" in os.environ and count > 1 and tasks > count:
        yield Finding("error", "GPUs a task", f"{tasks} tasks share {count} GPUs", "ask for one task a GPU")


def check_operators() -> Iterator[Finding]:
    """Whether DeepSpeed could compile its operators here, and what an interrupted compilation has left."""
    missing = [name for name in ("ninja", "c++") if shutil.which(name) is None and not _beside_python(name)]
    if missing:
        yield Finding(
            "warning",
            "DeepSpeed operators",
            f"cannot be compiled here ({', '.join(missing)} missing)",
            "only needed for optimizer.implementation deepspeed: keep torch's, or install a compiler and ninja",
        )
    else:
        yield Finding("fine", "DeepSpeed operators", "can be compiled when they are asked for")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    locks = [lock for lock in folder.glob("**/lock") if _age(lock) > STALE_LOCK_SECONDS]
    for lock in locks:
        yield Finding(
            "error", "compilation lock", f"{lock} is {_age(lock) / 60:.0f} minutes old: every start waits for it",
            f"if nothing compiles there now: rm {lock}",
        )  # fmt: skip
    if not locks:
        yield Finding("fine", "compilation lock", f"none left in {folder}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Room in shared memory, which NCCL and data workers use, and what dead processes have left there."""
    if not folder.is_dir():
        yield Finding("warning", str(folder), "does not exist", "mount a tmpfs there; in Docker: --ipc=host")
        return
    free = shutil.disk_usage(folder).free
    if free < GIB:
        mend = "make it larger; in Docker: --ipc=host or --shm-size=8g"
        yield Finding("warning", str(folder), f"{free / GIB:.2f} GiB free", mend)
    else:
        yield Finding("fine", str(folder), f"{free / GIB:.1f} GiB free")
    old = [
        path
        for path in folder.iterdir()
        if path.name.startswith(("torch_", "nccl-", "sem.mp-", "psm_", "00000"))
        and path.lstat().st_uid == os.getuid()
        and _age(path) > LEFTOVER_SECONDS
    ]
    if old:
        size = sum(path.lstat().st_size for path in old)
        yield Finding(
            "warning",
            f"{folder} leftovers",
            f"{len(old)} files of yours, more than a day old, {size / GIB:.2f} GiB, such as {old[0].name}",
            "if no run of yours is on this machine, delete them",
        )


def check_cores() -> Iterator[Finding]:
    """Which cores this process may run on, and whether they are beside its GPU."""
    cores = available_cores()
    if len(cores) == 1 and (os.cpu_count() or 1) > 1:
        mend = "under Slurm, ask for --cpus-per-task and see that srun has it (SRUN_CPUS_PER_TASK); else mend taskset"
        yield Finding(
            "warning", "cores", f"one of {os.cpu_count()}: the process, its data and NCCL's threads share it", mend
        )
    else:
        yield Finding("fine", "cores", f"{len(cores)} of {os.cpu_count()} ({in_ranges(cores)})")
    gpus, nodes = gpu_numa_nodes(), {number: set(cpus) for number, cpus in numa_nodes().items()}
    for gpu, node in gpus.items() if len(gpus) == 1 else ():  # with more, which is this process's is known to it alone
        if node in nodes and not nodes[node] & set(cores):
            yield Finding(
                "warning",
                "cores beside the GPU",
                f"GPU {gpu} is at NUMA node {node}, the cores are elsewhere",
                "srun --distribution=block:block, with --gpu-bind=closest or --cpu-bind by the site's rules",
            )


def check_limits() -> Iterator[Finding]:
    """How many files a process may open: shards, sockets to every other rank, checkpoints; what it may pin."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < LEAST_OPEN_FILES:
        yield Finding(
            "warning", "open files", f"at most {soft}", f"ulimit -n {min(hard, 65536)}, before the run starts"
        )
    else:
        yield Finding("fine", "open files", f"at most {soft}")
    pinned, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    adapters = sorted(path.name for path in INFINIBAND.glob("*"))
    if adapters and resource.RLIM_INFINITY != pinned < GIB:
        mend = "ulimit -l unlimited; under Slurm, PropagateResourceLimitsExcept=MEMLOCK, and slurmd unlimited"
        found = f"{pinned / 2**20:.3g} MiB, with {', '.join(adapters)}: NCCL registers its buffers there"
        yield Finding("warning", "locked memory", found, mend)


def check_host_name() -> Iterator[Finding]:
    """Whether other nodes could reach this one by its name."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        yield Finding("error", "host name", f"{name} does not resolve ({error})", f"add {name} to /etc/hosts or DNS")
        return
    if address.startswith("127.") and int(os.environ.get("SLURM_NNODES", "1")) > 1:
        yield Finding(
            "warning",
            "host name",
            f"{name} is {address} here, which no other node reaches",
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network between the nodes",
        )
    else:
        yield Finding("fine", "host name", f"{name} is {address}")


def check_disk(folder: Path) -> Iterator[Finding]:
    """Room, speed and clock of the file system that a run is written to."""
    place = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
    probe = place / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        started = time.perf_counter()
        with probe.open("wb") as file:
            file.write(os.urandom(2**20) * (SPEED_BYTES // 2**20))
            file.flush()
            os.fsync(file.fileno())
        speed = SPEED_BYTES / (time.perf_counter() - started) / 2**20
        with probe.open("ab") as file:
            file.write(b"\n")
        skew = abs(probe.stat().st_mtime - time.time())
    except OSError as error:
        yield Finding("error", f"disk {place}", f"cannot be written ({error.strerror})", "choose another run_dir")
        return
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(place).free
    level: Level = "error" if free < GIB else "warning" if free < 10 * GIB else "fine"
    yield Finding(
        level,
        f"disk {place}",
        f"{free / GIB:.1f} GiB free",
        "" if level == "fine" else "free some, or choose another run_dir",
    )
    slow = speed < 50
    yield Finding(
        "warning" if slow else "fine",
        "disk speed",
        f"{speed:.0f} MiB/s, synced",
        "checkpoints will be slow: choose a faster file system, or a larger checkpoint.interval" if slow else "",
    )
    late = skew > LARGEST_SKEW_SECONDS
    yield Finding(
        "warning" if late else "fine",
        "clock",
        f"{skew:.1f} s between this machine and the file system's",
        "synchronise the clocks (NTP): times in logs and events mislead" if late else "",
    )


def check_slurm() -> Iterator[Finding]:
    """Whether Slurm answers, where there is Slurm."""
    if shutil.which("sbatch") is None:
        yield Finding("fine", "Slurm", "not on this machine: memformer launch local, or a hostfile")
        return
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30)
        said = next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "nothing")
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if " is UP" in said:
        yield Finding("fine", "Slurm", said)
    else:
        yield Finding(
            "warning", "Slurm", f"its controller does not answer: {said}", "wait or ask the site; jobs run on"
        )


def check_mirror(address: str) -> Iterator[Finding]:
    """Whether objects can be put to an address, read back and deleted; nothing is left there."""
    from data_pipeline.object_store import ObjectStore

    name, content = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(1024)
    try:
        store, began = ObjectStore(address, attempts=2, timeout_seconds=10), time.monotonic()
        store.put(name, content)
        found = store.read(name)
        store.delete([name])
    except UserError as error:
        yield Finding("error", "mirror", str(error), "without it, checkpoints are not copied: mend this first")
        return
    if found != content:
        yield Finding("error", "mirror", f"{address} gives other bytes than were put", "do not rely on it")
    else:
        yield Finding("fine", "mirror", f"{address} can be written and read ({time.monotonic() - began:.1f} s)")


def local_findings(run_dir: Path, mirror: str | None = None) -> Iterator[Finding]:
    """Every check of this machine, in order; one that fails itself is a finding, too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_python,
        check_gpus,
        check_operators,
        check_shared_memory,
        check_cores,
        check_limits,
        check_host_name,
        lambda: check_disk(run_dir),
        check_slurm,
    ]
    if mirror is not None:
        checks.append(lambda: check_mirror(mirror))
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = getattr(check, "__name__", "check")
            yield Finding("warning", name, f"could not be done ({type(error).__name__}: {error})", "report this")


def _age(path: Path) -> float:
    """Seconds since a file changed; 0 if it has just gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def _beside_python(name: str) -> bool:
    return (Path(sys.executable).parent / name).exists()
