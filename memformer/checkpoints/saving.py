# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Saver`: writes checkpoints while the run waits, or from a copy in host memory while it goes on.

    start   all processes: probe losses, temporary directory, the tensors to write (copied first in the background)
    write   each process by itself, in a thread in the background: its files, synced and summed
    settle  all processes, between steps: manifest, rename, `latest`, retention; or, if anything failed, away with it

Threads take part in no collective, and one save is settled before the next starts.
"""

import dataclasses
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from memformer.checkpoints import base
from memformer.checkpoints import directory as files
from memformer.checkpoints import state as checkpoint
from memformer.checkpoints.lane_states import WAITING, LaneStates
from memformer.checkpoints.tensor_file import layout_of, write_tensors
from memformer.config.schema import CheckpointConfig
from memformer.engine.base import Engine
from memformer.processes import group
from memformer.processes.group import World
from memformer.run.directory import RunDirectory

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class SaveReport:
    """How a save ended.

    Attributes:
        step: Its step.
        directory: The checkpoint; None if it could not be written.
        error: Why not (the first process that failed).
        pause_seconds: How long training stood still for it.
        write_seconds: From the start to the published checkpoint.
        bytes: Size of what was written, all processes.
    """

    step: int
    directory: Path | None
    error: str | None
    pause_seconds: float
    write_seconds: float
    bytes: int


@dataclasses.dataclass
class _File:
    """A file that this process is to write: tensors, or text."""

    name: str
    tensors: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    text: bytes | None = None

    def copy(self) -> None:
        """Takes the tensors to host memory, so that the live state may change (`_copied`)."""
        self.tensors = {name: _copied(tensor) for name, tensor in self.tensors.items()}

    def write(self, directory: Path) -> dict[str, Any]:
        path = directory / self.name
        if self.text is not None:
            path.write_bytes(self.text)
            return files.describe_file(directory, self.name)
        return write_tensors(path, layout_of(self.tensors), self.tensors.__getitem__, self.metadata)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; of a tensor on a GPU one that the host does not wait for.

    The GPU copies between what it was asked for before and after, so that the next step may change the tensor. Its copy
    is pinned: to other memory it would be several times slower, and waited for. To pin takes long as well, but torch
    keeps such memory when it is freed, and gives it to the next save.
    """
    if tensor.device.type == "cpu":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class _Save:
    """One save under way, as this process sees it."""

    def __init__(self, step: int, directory: Path, parts: list[_File]) -> None:
        self.step, self.directory, self.parts = step, directory, parts
        self.began = time.perf_counter()
        self.pause = 0.0
        self.thread: threading.Thread | None = None
        self.copied: torch.cuda.Event | None = None
        self.written: dict[str, dict[str, Any]] = {}
        self.linked: dict[str, dict[str, Any]] = {}
        self.error: str | None = None
        self.fatal: BaseException | None = None

    def write_beside(self, device: torch.device) -> None:
        """Writes in a thread, once the copies that were asked for are there."""
        if device.type == "cuda":
            # Blocking: the thread sleeps, and leaves its core to training.
            self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self.copied.record()
        self.thread = threading.Thread(target=self.write, name="checkpoint-writer")
        self.thread.start()

    def write(self) -> None:
        """Writes this process's files; what goes wrong is kept for `settle`."""
        try:
            if self.copied is not None:
                self.copied.synchronize()
            for part in self.parts:
                self.written[part.name] = part.write(self.directory)
        except OSError as error:
            self.error = files.words(error)
        except BaseException as error:
            self.error, self.fatal = f"{type(error).__name__}: {error}", error
        self.parts = []

    @property
    def writing(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Saver:
    """Saves a run's state, one checkpoint at a time. Every method is called by all processes together.

    Args:
        run: The run.
        world: This process among all.
        engine: The engine.
        identity: What a resumed run must share or be told of; kept in state.json.
        tokenizer_file: Copied into each checkpoint, so that an export needs nothing else.
        settings: Retention, and whether to write in the background.
        report: Called on all processes when a save has ended.
    """

    def __init__(
        self,
        run: RunDirectory,
        world: World,
        engine: Engine,
        identity: dict[str, Any],
        tokenizer_file: Path,
        settings: CheckpointConfig,
        report: Callable[[SaveReport], None],
    ) -> None:
        self._run, self._world, self._engine, self._identity = run, world, engine, identity
        self._settings, self._report = settings, report
        # Read now: the data set may be moved or deleted while the run reads what it has opened of it.
        self._tokenizer = tokenizer_file.read_bytes() if world.is_main else b""
        self._save: _Save | None = None
        self._frozen = engine.parameter_state().frozen()

    @property
    def writing(self) -> bool:
        """Whether this process is still writing. When no process is, `settle` does not wait."""
        return self._save is not None and self._save.writing

    def start(self, lanes: LaneStates, progress: checkpoint.Progress) -> None:
        """Saves the state after `progress.step`; returns when it is complete, or in the background once it is copied.

        An earlier save is settled first. A disk that is full, or cannot be written, ends in a report with an error.
        """
        self.settle()
        began = time.perf_counter()
        temporary = files.temporary_directory(self._run, progress.step)
        parts = self._parts(lanes, progress)
        if self._settings.background:
            for part in parts:
                part.copy()
        save = self._save = _Save(progress.step, temporary, parts)
        save.began = began
        if self._world.is_main:
            try:
                self._run.checkpoints.mkdir(exist_ok=True)  # somebody may have deleted it meanwhile
                files.delete_partial(self._run)
                for name in ("parameters", "lanes", "random", *([base.BASE] if self._frozen else [])):
                    (temporary / name).mkdir(parents=True)
            except OSError as error:
                save.error = files.words(error)
        failed = group.all_max(save.error is not None)
        if self._frozen and not failed:
            self._add_frozen(save)
        if not failed and self._settings.background:
            save.write_beside(self._world.device)
            save.pause = time.perf_counter() - began
            return
        if not failed:
            save.write()
        self.settle()

    def _add_frozen(self, save: _Save) -> None:
        """Links what is not trained to where it lies already, or has every process write its part of it."""
        linked = base.linked(self._engine.frozen_from, save.directory) if self._world.is_main else None
        if self._world.is_main and linked is not None:
            save.linked = linked
        if group.from_main(linked is not None):
            return
        part = _File(
            f"{base.BASE}rank-{self._world.rank:05d}.safetensors", *self._engine.parameter_state().tensors(True)
        )
        if self._settings.background:
            part.copy()
        save.parts.append(part)

    def settle(self) -> None:
        """Waits for the save under way, if there is one, and publishes it or clears it away."""
        save, self._save = self._save, None
        if save is None:
            return
        began = time.perf_counter()
        if save.thread is not None:
            save.thread.join()
        shares = group.gather((save.written, save.error))
        errors = [f"process {rank}: {error}" for rank, (_, error) in enumerate(shares) if error]
        final: Path | None = None
        if self._world.is_main:
            if not errors:
                every = [*(share for share, _ in shares), save.linked]
                written = dict(sorted((name, entry) for share in every for name, entry in share.items()))
                try:
                    final = files.publish(self._run, save.step, written)
                except OSError as error:
                    errors = [files.words(error)]
            if errors:
                shutil.rmtree(save.directory, ignore_errors=True)
        final, errors = group.from_main((final, errors))
        if save.fatal is not None:
            raise save.fatal
        if final is not None and self._world.is_main:
            self._clear_up(save.step)
        if final is not None and self._frozen:
            self._engine.frozen_from = final
        now = time.perf_counter()
        self._report(
            SaveReport(
                save.step,
                final,
                errors[0] if errors else None,
                save.pause + now - began if save.thread is not None else now - save.began,
                now - save.began,
                sum(entry["bytes"] for share, _ in shares for entry in share.values()),
            )
        )

    def _clear_up(self, step: int) -> None:
        """Deletes what is not kept any more; where that fails, the next save does it."""
        try:
            files.delete_old(self._run, step, self._settings)
        except (OSError, UserError) as error:
            said = files.words(error) if isinstance(error, OSError) else error
            LOG.warning("checkpoints that are not kept any more could not be deleted: %s", said)

    def _parts(self, lanes: LaneStates, progress: checkpoint.Progress) -> list[_File]:
        """What this process writes; the tensors are views of the live state."""
        rank = f"rank-{self._world.rank:05d}.safetensors"
        state = self._engine.parameter_state()
        tensors, metadata = state.tensors()
        parts = [
            _File(f"parameters/{rank}", tensors, metadata),
            _File(f"random/{rank}", checkpoint.random_states(self._world)),
        ]
        mesh = self._world.mesh
        if mesh.speaks:
            parts.append(_File(f"lanes/rank-{mesh.data.rank:05d}.safetensors", lanes.tensors()))
        probe, shapes = checkpoint.probe_losses(self._engine), state.shapes()
        if self._world.is_main:
            if lanes.waiting:
                parts.append(_File(f"lanes/{WAITING}", lanes.waiting_tensors()))
            description = {
                "format": files.FORMAT,
                **self._identity,
                **dataclasses.asdict(progress),
                "parameters": shapes,
                **({base.DESCRIBED: self._frozen} if self._frozen else {}),
                "probe_losses": probe,
            }
            parts.append(_File("state.json", text=(json.dumps(description, indent=1) + "\n").encode()))
            parts.append(_File("tokenizer.json", text=self._tokenizer))
        return parts
