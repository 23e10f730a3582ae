# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Profiler`: traces of some optimizer steps by torch's profiler, with the parts of a step by name.

run_dir/profile/steps-00000010-00000012/rank-00000.json.gz is a Chrome trace, which Perfetto (ui.perfetto.dev) and
TensorBoard's profiler plugin open, and `memformer profile` sums up. A GPU's memory snapshot lies beside it
(rank-00000.memory.pickle, for pytorch.org/memory_viz). Nothing that is computed changes.
"""

import contextlib
import gzip
import logging
import os
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

from memformer.config.profile import ProfileConfig
from memformer.processes.group import World
from memformer.processes.spans import span
from memformer.run.directory import RunDirectory
from memformer.training.callbacks import Callback, TrainingState

LOG = logging.getLogger("memformer")
MEMORY_EVENTS = 1_000_000
"""Of a GPU's memory history, the newest are kept."""


class Profiler(Callback):
    """Traces the steps that the settings name; a context manager, which writes a trace that is still open.

    A trace that cannot be written costs a warning, not the run.

    Args:
        run: The run's directory.
        world: This process.
        settings: Which steps and processes.
        first_step: The step that comes next.
    """

    def __init__(self, run: RunDirectory, world: World, settings: ProfileConfig, first_step: int) -> None:
        self._world, self._settings = world, settings
        self._first, self._last = settings.steps or (0, -1)
        self._folder = run.profile / f"steps-{self._first:08d}-{self._last:08d}"
        self._wanted = bool(settings.steps) and world.rank in settings.ranks
        if settings.steps and world.is_main:
            if min(settings.ranks) >= world.size:
                LOG.warning("profile.ranks is %s: the run has no such process, nothing is traced", settings.ranks)
            if first_step > self._last:
                LOG.warning("profile.steps is %s: they are done, nothing is traced", settings.steps)
        self._profile: Any = None
        self._step: contextlib.AbstractContextManager[object] | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._end()

    def before_step(self, state: TrainingState) -> None:
        """Ends the step before, to which its save and its evaluation belong, and begins the next."""
        if not self._wanted:
            return
        step = state.progress.step + 1
        if self._profile is not None:
            self._end_step()
        if step > self._last and self._profile is not None:
            self._end()
        if self._first <= step <= self._last:
            if self._profile is None:
                self._begin()
            self._step = span(f"step {step}")
            self._step.__enter__()

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            if self._settings.memory:
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._profile = torch.profiler.profile(activities=activities, profile_memory=self._settings.memory)
        self._profile.start()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _end(self) -> None:
        self._end_step()
        profile, self._profile = self._profile, None
        profile.stop()
        path = self._folder / f"rank-{self._world.rank:05d}.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(profile, path)
            if self._settings.memory and self._world.device.type == "cuda":
                memory: Any = torch.cuda.memory
                memory._dump_snapshot(str(path).removesuffix(".json.gz") + ".memory.pickle")
                memory._record_memory_history(enabled=None)
        except (OSError, RuntimeError) as error:
            LOG.warning("%s: the trace could not be written (%s); the run goes on", path, error)
            return
        LOG.info("wrote %s: memformer profile sums it up, ui.perfetto.dev opens it", path)

    @staticmethod
    def _write(profile: Any, path: Path) -> None:
        """Complete or absent."""
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trace-") as folder:
            plain, packed = Path(folder) / "trace.json", Path(folder) / path.name
            profile.export_chrome_trace(str(plain))
            with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=4) as target:
                while block := source.read(1 << 20):
                    target.write(block)
            os.replace(packed, path)
