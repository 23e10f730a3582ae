# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`RunLock`: one training run at a time in a run directory, on whatever machines its processes are.

    RUN/lock/00000006.finished    a life that has ended: finished, stopped, failed, or lost (its job has ended)
    RUN/lock/00000007.held        the life that trains: host, process, when it began, Slurm job

The newest number counts. A life begins by creating the file of the next number, which of several processes on several
machines exactly one can do, and ends by renaming it, which needs no room on a full disk. The newest file is never
deleted, so numbers only grow: a process that looked long ago and acts late finds its number taken, or a newer one.

A life that was killed leaves `.held` behind. Whether its process still runs is known for certain only on its own
machine; of another machine it is known when Slurm has started the same job again, or says that the job has ended.
Where it is not known, the directory counts as in use.
"""

import dataclasses
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from memformer.run import exit_codes
from memformer.run.directory import RunDirectory

HELD, LOST = "held", "lost"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
ENDINGS = frozenset(f".{how}" for how in (HELD, LOST, FINISHED, STOPPED, FAILED))
WRITING_SECONDS = 2.0
"""How long the file of a life that is just beginning may be without content."""

ROUNDS = 100
"""How often a process tries for a number before it gives up: each time, another one was faster."""

PROC, MACHINE_ID = Path("/proc"), Path("/etc/machine-id")


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock, as it says itself.

    Attributes:
        host: Its machine's name, for people.
        process: Its process id there.
        time: When it took the lock, in seconds since 1970.
        boot: Identity of the kernel that it runs on, from its start to its end; empty where that is not told.
        machine: Identity of the machine, which outlives a boot; empty where there is none.
        namespace: The process namespace (a container has its own) in which `process` is meant.
        started: When the process began, in clock ticks of that kernel: process ids are used again.
        job: Its Slurm job, of an array with the task's index; None: it is none.
        cluster: The cluster of that job, which counts its jobs by itself; empty where that is not told.
        life: How often Slurm had started that job again.
        flocked: Whether it has an flock on its file as well.
        file: Device and inode of its file; a copy of the directory has others.
    """

    host: str
    process: int
    time: float
    boot: str = ""
    machine: str = ""
    namespace: str = ""
    started: int = 0
    job: str | None = None
    cluster: str = ""
    life: int = 0
    flocked: bool = False
    file: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" + (f" (Slurm job {self.job})" if self.job else "")


JobEnded = Callable[[Holder], bool | None]
"""Asks Slurm whether a holder's job has ended; None: it does not answer."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The newest file of RUN/lock: its number, how that life ended or `held`, and its holder if it can be read."""

    path: Path
    number: int
    how: str
    holder: Holder | None


class RunLock:
    """The lock of the life that this process trains; made by `RunLock.take`."""

    def __init__(self, path: Path, descriptor: int | None, made: list[Path]) -> None:
        self._path, self._made = path, made
        self._descriptor = descriptor  # kept open: the kernel ends the flock with the process

    @classmethod
    def take(cls, run: RunDirectory) -> "RunLock":
        """Takes the lock of a run, making its directory if there is none.

        Raises:
            UserError: Another process holds it, or may hold it, or it cannot be taken here.
        """
        for _ in range(ROUNDS):
            entry = refuse_held(run)
            lock = cls._create(run, 1 if entry is None else entry.number + 1)
            if lock is None:
                continue  # another process was faster: the next round tells of it
            try:
                if all(number < lock._number or path == lock._path for number, path in _files(run.lock)):
                    return lock
            except BaseException:
                lock.withdraw()
                raise
            lock.withdraw()
        raise _not_locked(run, "others take and leave it all the time")

    @classmethod
    def _create(cls, run: RunDirectory, number: int) -> "RunLock | None":
        """The file of a number, with its content; None if there is one already."""
        path = run.lock / f"{number:08d}.{HELD}"
        made = [place for place in (run.lock, run.root, *run.root.parents) if not place.exists()]
        descriptor = None
        try:
            run.lock.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except (FileExistsError, FileNotFoundError):  # the second: the folder went with a life that withdrew
                return None
            os.write(descriptor, (json.dumps(dataclasses.asdict(_this_process(descriptor))) + "\n").encode())
            os.fsync(descriptor)
        except BaseException as error:  # a key press as well
            cls(path, descriptor, made).withdraw()
            if isinstance(error, OSError):
                raise _not_locked(run, error.strerror or str(error)) from None
            raise
        return cls(path, descriptor, made)

    @property
    def _number(self) -> int:
        return int(self._path.stem)

    def accept(self) -> None:
        """The life begins: what earlier ones have left is not needed any more."""
        self._made = []
        for number, path in _files(self._path.parent):
            if number < self._number:
                with suppress(OSError):
                    path.unlink()

    def withdraw(self) -> None:
        """The life does not begin: leaves everything as it was found."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._path.unlink()
        self._close()
        for place in self._made:
            with suppress(OSError):  # somebody else has put something there
                place.rmdir()

    def release(self, how: str) -> None:
        """The life has ended: finished, stopped or failed. May be called again; the first word counts."""
        if self._descriptor is not None:
            with suppress(OSError):  # whoever comes next finds that this process is gone
                self._path.rename(self._path.with_suffix(f".{how}"))
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


def _not_locked(run: RunDirectory, why: str) -> UserError:
    return UserError(
        f"run_dir: {run.root} cannot be locked ({why}): make room or mend its permissions, or choose another",
        exit_code=exit_codes.FAILED,
    )


def newest(run: RunDirectory) -> Entry | None:
    """The newest entry of a run's lock; None where no life has taken it.

    Raises:
        UserError: The directory cannot be read, which is no sign that nobody trains there.
    """
    deadline = time.monotonic() + WRITING_SECONDS
    while True:
        try:
            files = _files(run.lock)
            if not files:
                return None
            number, path = files[-1]
            holder = _read(path)
        except OSError as error:
            # Renamed between the two looks, most often; a file server may take its time to tell of it.
            if isinstance(error, FileNotFoundError) and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise UserError(
                f"{run.lock}: cannot be read ({error.strerror}), so a run may train there unknown: make it readable",
                exit_code=1,
            ) from None
        if holder is not None or path.suffix != f".{HELD}" or time.monotonic() > deadline:
            return Entry(path, number, path.suffix.removeprefix("."), holder)
        time.sleep(0.02)


def refuse_held(run: RunDirectory, job_ended: JobEnded | None = None) -> Entry | None:
    """Refuses a run directory in which another process trains, or in which it is not known that none does.

    Args:
        run: The run.
        job_ended: Asked where the holder is on another machine and belongs to a Slurm job.

    Returns:
        The newest entry, which holds no more; None where there never was one.

    Raises:
        UserError: It is in use, or may be; the line names the holder, its machine, process and age, and the mend.
    """
    entry = newest(run)
    if entry is None or entry.how != HELD:
        return entry
    if entry.holder is None:
        raise UserError(
            f"{entry.path}: is damaged, so that a run may train in {run.root} unknown: look for it, and once it is "
            f"certain that there is none, rm -r {run.lock}"
        )
    holder, (living, why), again = entry.holder, is_living(entry), exit_codes.USAGE
    if living is None and holder.job is not None and job_ended is not None:
        ended = job_ended(holder)
        if ended:
            with suppress(OSError):  # what is known here is not known to the processes that are started now
                entry.path.rename(entry.path.with_suffix(f".{LOST}"))
            return dataclasses.replace(entry, how=LOST)
        why = "its job has not ended"
        if ended is None:
            why, again = "Slurm does not say whether its job has ended", exit_codes.FAILED
    if living is False:
        return entry
    age = duration(max(0.0, time.time() - holder.time))
    if living:
        raise UserError(
            f"run_dir: {run.root} is in use: {holder} trains there, for {age} h so far: wait for it, stop it "
            f"(touch {run.stop_file}), or choose another run_dir"
        )
    raise UserError(
        f"run_dir: {run.root} may be in use: {holder} took it {age} h ago, the last sign of it is "
        f"{duration(_silence(run, holder))} h old, and whether it still runs is not known on {socket.gethostname()} "
        f"({why}): look on {holder.host}; once it is certain that it has ended, rm -r {run.lock} and start again",
        exit_code=again,
    )


def is_living(entry: Entry) -> tuple[bool | None, str]:
    """Whether the process that holds a lock still runs, and how that is known; None: it cannot be known from here."""
    holder = entry.holder
    if holder is None:
        return None, "its file is damaged"
    here = _this_process()
    if holder.boot and holder.boot == here.boot:
        living, why = _lives_here(entry.path, holder, here)
        if living is not None:
            return living, why
    if holder.job is not None and (holder.job, holder.cluster) == (here.job, here.cluster) and here.life > holder.life:
        return False, "Slurm has started its job again"
    if holder.boot and holder.boot == here.boot:
        return None, why
    rebooted = (holder.host, holder.machine) == (here.host, here.machine) and bool(here.machine)
    if rebooted and holder.time < time.time() - _uptime():
        return False, "its machine was started again"
    return None, f"it is on another machine than {here.host}"


def _lives_here(path: Path, holder: Holder, here: Holder) -> tuple[bool | None, str]:
    """The same for a process of this kernel, be it in another container."""
    with suppress(OSError):
        found = path.stat()
        if holder.file[0] == found.st_dev and holder.file[1] != found.st_ino:
            return False, "the lock is a copy, of another directory"
    if holder.namespace == here.namespace:
        started = _started(holder.process)
        if started is not None:
            return started == holder.started, "as /proc says"
        with suppress(PermissionError):  # another user's, whose entry in /proc is hidden
            try:
                os.kill(holder.process, 0)
            except ProcessLookupError:
                return False, "there is no such process"
    # The flock tells of other containers as well, if this is the very file: one kernel keeps one account of it.
    if holder.flocked:
        with suppress(OSError), path.open("rb") as file:
            found = os.fstat(file.fileno())
            if holder.file == (found.st_dev, found.st_ino):
                return not _flock(file.fileno(), fcntl.LOCK_SH), "as its flock says"
    return None, "it is in another container"


def _this_process(descriptor: int | None = None) -> Holder:
    """This process as a holder; with the descriptor of its file, which is flocked, as the holder of that."""
    file, flocked = (0, 0), False
    if descriptor is not None:
        found = os.fstat(descriptor)
        file, flocked = (found.st_dev, found.st_ino), _flock(descriptor, fcntl.LOCK_EX)
    job, life = slurm_job(os.environ)
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        time=round(time.time(), 3),
        boot=_line(PROC / "sys/kernel/random/boot_id"),
        machine=_line(MACHINE_ID),
        namespace=_link(PROC / "self/ns/pid"),
        started=_started(os.getpid()) or 0,
        job=job,
        cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
        life=life,
        flocked=flocked,
        file=file,
    )


def slurm_job(environment: Mapping[str, str]) -> tuple[str | None, int]:
    """The Slurm job of a process, and how often Slurm has started it again."""
    job = environment.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    life = environment.get("SLURM_RESTART_COUNT", "")
    return job, int(life) if life.isdigit() else 0


def _flock(descriptor: int, kind: int) -> bool:
    """Whether an flock could be had; False as well where the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _started(process: int) -> int | None:
    """When a process began, in clock ticks; 0: it has ended and nobody has asked how; None: /proc has none such."""
    try:
        fields = (PROC / f"{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def _silence(run: RunDirectory, holder: Holder) -> float:
    """Seconds since a holder showed a sign of life."""
    signs = [holder.time]
    for path in (run.metrics, run.events, run.heartbeats / "rank-00000.json"):
        with suppress(OSError):
            signs.append(path.stat().st_mtime)
    return max(0.0, time.time() - max(signs))


def _uptime() -> float:
    with suppress(OSError, ValueError):
        return float((PROC / "uptime").read_text(encoding="ascii").split()[0])
    return float("inf")


def _read(path: Path) -> Holder | None:
    """The holder in a file; None where it holds none.

    Raises:
        OSError: It cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        device, node = found.pop("file", (0, 0))
        kinds = {field.name: field.type for field in dataclasses.fields(Holder)}
        values = {name: value for name, value in found.items() if name in kinds}
        if not all(isinstance(value, kinds[name]) for name, value in values.items()):  # type: ignore[arg-type]
            return None
        holder = Holder(**values, file=(int(device), int(node)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return holder if 0 < holder.process < 2**31 and 0 <= holder.time < 2**36 else None


def _files(folder: Path) -> list[tuple[int, Path]]:
    """The files of a lock with their numbers, the newest last."""
    try:
        named = [path for path in folder.iterdir() if path.stem.isdecimal() and path.suffix in ENDINGS]
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Of one number, a name that says how it ended counts more: a listing may show both names of a file renamed.
    return sorted(((int(path.stem), path) for path in named), key=lambda each: (each[0], each[1].suffix != f".{HELD}"))


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def duration(seconds: float) -> str:
    """1:02:03, as in the run's own log."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
