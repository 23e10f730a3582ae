# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Watchdog`: notices a run that stands still, and says whose fault it is before the process group's time-out.

A thread in each process writes RUN/heartbeats/rank-00000.json every few seconds: the step, the phase, the last
collective, and how long ago anything moved. When nothing has moved for `hang_timeout_seconds`, the process writes the
Python stack of all its threads to RUN/hangs/, compares the heartbeats, and ends: a stopped or dead process has no
fresh heartbeat, and one that is stuck elsewhere has entered fewer collectives than those that wait for it. What torch
noted of the last collectives lies beside the stacks.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from memformer.processes import collective_log, flight_record
from memformer.processes.group import World
from memformer.run import exit_codes
from memformer.run.directory import RunDirectory
from memformer.run.stop_requests import leave_at_once

LOG = logging.getLogger("memformer")


class Watchdog:
    """Context manager around the loop.

    Args:
        run: The run.
        world: This process among all.
        timeout_seconds: How long nothing may move; 0: no watch.
        leave: Called before the process ends; it must not take long.
    """

    def __init__(self, run: RunDirectory, world: World, timeout_seconds: float, leave: Callable[[], None]) -> None:
        self._run, self._world, self._timeout, self._leave = run, world, timeout_seconds, leave
        self._interval = min(5.0, timeout_seconds / 8)
        self._phase, self._step, self._moved = "start", 0, time.monotonic()
        self._silent = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def pulse(self, phase: str, step: int) -> None:
        """The process has got this far."""
        self._phase, self._step, self._moved = phase, step, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._timeout:
            self._moved = time.monotonic()
            self._try_beat(0.0)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._done.set()
        if self._timeout:
            self._thread.join()
            with contextlib.suppress(OSError):
                _file(self._run, self._world.rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            still = time.monotonic() - max(self._moved, collective_log.LOG.moved_at)
            self._try_beat(still)
            if still > self._timeout:
                self._report(still)

    def _try_beat(self, still: float) -> None:
        """Writes the heartbeat; where that fails, it says so once."""
        try:
            self._beat(still)
            self._silent = False
        except OSError as error:
            if not self._silent:
                LOG.warning("%s: cannot be written (%s): the run goes on without", self._run.heartbeats, error.strerror)
            self._silent = True

    def _beat(self, still: float) -> None:
        path = _file(self._run, self._world.rank)
        path.parent.mkdir(exist_ok=True)
        content = {
            "rank": self._world.rank,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "step": self._step,
            "phase": self._phase,
            "collectives": collective_log.LOG.count,
            "collective": collective_log.LOG.describe(),
            "still_seconds": round(still, 1),
        }
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content) + "\n")
        os.replace(temporary, path)

    def _write_flight_record(self, folder: Path, file: TextIO) -> None:
        """The record as torch has it in a file of its own, and its end in words behind the stacks."""
        record = flight_record.read()
        if record is not None:
            (folder / f"rank-{self._world.rank:05d}.collectives.json").write_text(json.dumps(record) + "\n")
            file.write("\nlast collectives\n" + "".join(f"  {line}\n" for line in flight_record.in_words(record)))

    def _report(self, still: float) -> None:
        """Stacks, then the comparison, then the end of this process."""
        folder = self._run.hangs / f"step-{self._step:08d}"
        culprits = [f"unknown: nothing moved for {still:.0f} s"]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"rank-{self._world.rank:05d}.txt").open("w") as file:
                file.write(f"rank {self._world.rank}, step {self._step}, {self._phase}, nothing moved for ")
                file.write(f"{still:.0f} s, {collective_log.LOG.describe()}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                self._write_flight_record(folder, file)
            # The others hang as well, and notice it within an interval.
            for _ in range(3):
                time.sleep(self._interval)
                self._beat(still)
            culprits = find_culprits(read_heartbeats(self._run, self._world.size), 2.5 * self._interval)
            with (folder / f"report-{self._world.rank:05d}.json").open("w") as file:
                json.dump({"step": self._step, "still_seconds": still, "culprits": culprits}, file, indent=1)
            self._run.event("hang", step=self._step, seen_by=self._world.rank, culprits=culprits)
        except OSError as error:
            culprits.append(f"the report could not be written ({error})")
        with contextlib.suppress(OSError):
            print(f"hang at step {self._step}: {'; '.join(culprits)}; stacks in {folder}", file=sys.stderr, flush=True)
        leave_at_once(self._leave, exit_codes.HUNG)


def read_heartbeats(run: RunDirectory, size: int) -> dict[int, dict[str, Any] | None]:
    """The heartbeats by rank, each with `age_seconds` behind the youngest; None where there is none.

    Ages are differences of file times, which one file server stamps: clocks of the machines do not matter.
    """
    found: dict[int, dict[str, Any] | None] = {}
    times: dict[int, float] = {}
    for rank in range(size):
        path = _file(run, rank)
        try:
            times[rank] = path.stat().st_mtime
            found[rank] = json.loads(path.read_text())
        except (OSError, ValueError):
            found[rank] = None
    for rank, beat in found.items():
        if beat is not None:
            beat["age_seconds"] = max(times.values()) - times[rank]
    return found


def find_culprits(beats: dict[int, dict[str, Any] | None], stale_seconds: float) -> list[str]:
    """Who the others wait for, one line each."""
    lines = []
    fresh = []
    for rank, beat in beats.items():
        if beat is None:
            lines.append(f"rank {rank}: has no heartbeat, it is dead or never started")
        elif beat["age_seconds"] > stale_seconds:
            lines.append(
                f"rank {rank} (process {beat['process']} on {beat['host']}): stopped or dead, no heartbeat for "
                f"{beat['age_seconds']:.0f} s, last seen in {beat['phase']} of step {beat['step']}"
            )
        else:
            fresh.append(beat)
    if lines or not fresh:
        return lines
    most = max(beat["collectives"] for beat in fresh)
    behind = [beat for beat in fresh if beat["collectives"] < most]
    if not behind:
        return [f"no single rank: all are {fresh[0]['collective']}; look at the network between the machines"]
    return [
        f"rank {beat['rank']} (process {beat['process']} on {beat['host']}): in {beat['phase']} of step "
        f"{beat['step']}, {beat['collective']}, while others have entered {most}"
        for beat in behind
    ]


def _file(run: RunDirectory, rank: int) -> Path:
    return run.heartbeats / f"rank-{rank:05d}.json"
