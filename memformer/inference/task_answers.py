# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Who answers the questions of documents: one model in this process, or the same model in several.

Both take batches of documents and give their answers in the same order, so that what is counted does not know which it
was. Each process answers whole batches, so the answers are those of one process, but for the rounding of sums where it
computes with another number of threads.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from data_pipeline import UserError
from data_pipeline.tasks.prompts import Prompt
from memformer.inference.perplexity import MODES
from memformer.inference.tasks import Said, answer_questions
from memformer.inference.without_memory import answer_without_memory, context_of
from memformer.models.loading import load_model
from memformer.models.protocol import MemoryModel

WITHOUT = "without_memory"
ALL_MODES = (*MODES, WITHOUT)
Answered = dict[str, list[tuple[Said, ...] | None]]
"""By mode, for each document what was said to each of its questions; None: nothing could be."""
Progress = Callable[[int], None]
_AHEAD = 2  # batches for each process that are answered before their turn: their documents are held


class Answers(Protocol):
    """What answers.

    Attributes:
        context: Tokens that the model reads at once without its memory; None: it cannot do without.
    """

    context: int | None

    def __call__(self, batches: Iterable[Sequence[Prompt]]) -> Iterator[Answered]:
        """The answers to each batch of documents, in the order of the batches."""


class OneProcess:
    """Answers with a model that is here.

    Args:
        model: Of any family.
        progress: Told after each segment how many tokens it had.
    """

    def __init__(self, model: MemoryModel, progress: Progress | None = None) -> None:
        self.model, self.progress, self.context = model, progress, context_of(model)

    def __call__(self, batches: Iterable[Sequence[Prompt]]) -> Iterator[Answered]:
        """See `Answers`; the documents of a batch are read side by side."""
        for prompts in batches:
            said = answer_questions(self.model, prompts, len(prompts), progress=self.progress)
            found: Answered = {mode: list(each) for mode, each in said.items()}
            found[WITHOUT] = [None] * len(prompts)
            if self.context is not None:
                found[WITHOUT] = answer_without_memory(self.model, prompts)
            yield found


class SeveralProcesses:
    """Answers with a model in each of several processes; a context, at whose end they are gone.

    Args:
        path: The exported model.
        model: The same, opened here, so that what is wrong with it has been said. They open it with its type of
            weights.
        devices: Where each of them computes.
        progress: Told how many tokens any of them has read.
    """

    def __init__(
        self, path: Path, model: MemoryModel, devices: Sequence[torch.device], progress: Progress | None = None
    ) -> None:
        self.context, self.progress = context_of(model), progress
        dtype = next(weight.dtype for _, weight in model.named_parameters())
        spawn = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads, nor CUDA
        threads = max(1, torch.get_num_threads() // len(devices)) if "OMP_NUM_THREADS" not in os.environ else None
        self._processes, self._connections = [], list[Connection]()
        for device in devices:
            mine, theirs = spawn.Pipe()
            arguments = (theirs, path, device, dtype, threads)
            process = spawn.Process(target=_answer, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the connection
            self._processes.append(process)
            self._connections.append(mine)

    def __enter__(self) -> "SeveralProcesses":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the processes, whatever they are doing."""
        for process in self._processes:
            process.terminate()
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            connection.close()

    def __call__(self, batches: Iterable[Sequence[Prompt]]) -> Iterator[Answered]:
        """See `Answers`.

        Raises:
            UserError: A process has ended, or failed.
        """
        waiting, turn = enumerate(batches), 0
        idle, busy, done = deque[Any](self._connections), dict[Any, int](), dict[int, Answered]()
        while True:
            while turn in done:
                yield done.pop(turn)
                turn += 1
            while idle and len(busy) + len(done) < _AHEAD * len(self._connections):
                following = next(waiting, None)
                if following is None:
                    break
                connection = idle.popleft()
                busy[connection], prompts = following
                self._send(connection, prompts)
            if not busy:
                return
            for ready in wait(list(busy)):
                found = self._receive(ready)
                if found is not None:
                    done[busy.pop(ready)] = found
                    idle.append(ready)

    def _send(self, connection: Connection, prompts: Sequence[Prompt]) -> None:
        try:
            connection.send(list(prompts))
        except OSError:
            raise self._ended(connection) from None

    def _receive(self, connection: Any) -> Answered | None:
        """The answers of a process; None where it tells how far it is.

        Raises:
            UserError: It has ended, or failed.
        """
        try:
            what, value = connection.recv()
        except (EOFError, OSError):
            raise self._ended(connection) from None
        if what == "failed":
            raise value
        if what == "read":
            if self.progress:
                self.progress(value)
            return None
        answered: Answered = value
        return answered

    def _ended(self, connection: Any) -> UserError:
        process = self._processes[self._connections.index(connection)]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return UserError(
            f"--processes {len(self._processes)}: process {process.pid} {how}: if memory ran out, give fewer processes "
            "or --lanes",
            exit_code=1,
        )


def _answer(connection: Connection, path: Path, device: torch.device, dtype: torch.dtype, threads: int | None) -> None:
    """The life of a process: batches in, answers out, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is told to all; the one that was started ends the others
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        answers = OneProcess(load_model(path, device, dtype), lambda tokens: connection.send(("read", tokens)))
        while True:
            for found in answers([connection.recv()]):
                connection.send(("answered", found))
    except (EOFError, BrokenPipeError):
        return  # nobody asks any more
    except Exception as error:
        failed = error if isinstance(error, UserError) else UserError(f"--processes: {error}", exit_code=1)
        connection.send(("failed", failed))
