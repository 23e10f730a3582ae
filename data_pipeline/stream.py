# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentStream`: the batches of one rank, read ahead in a thread, resumable after any batch.

Data flow: `LanePlan` decides a rollout for all lanes → this rank's block of lanes is cut out → a `Store` reads the
tokens → `SegmentBatch`. Beside every batch that waits in the queue waits the plan's state after it, so that
`state_dict` speaks of the last batch that was delivered, however far the thread has read ahead.
"""

import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.index import DocumentIndex
from data_pipeline.plan import LanePlan, Order, PlanState
from data_pipeline.rollout import Rollout, SegmentBatch, lanes_of
from data_pipeline.store import MmapStore, Store

_POLL_SECONDS = 0.1  # how often a thread that waits for room in the queue looks whether it should end


class SegmentStream:
    """Iterates over the `SegmentBatch` of one rank's lanes.

    The stream can be used as a context manager; `close` ends the reading thread, and so does dropping the stream or
    leaving the interpreter.

    Args:
        data: The data set, or its directory.
        num_lanes: Lanes of the global batch (B over all ranks), at least `world_size`.
        segment_length: Tokens a segment, S.
        num_segments: Segments a rollout, T.
        seed: Decides the order of the documents.
        rank: This data-parallel rank.
        world_size: Number of data-parallel ranks; changes who reads what, never what is read.
        epochs: None to go on for ever, or the number of epochs after which the stream ends. In the last rollouts lanes
            run idle; the number of rollouts is the same on every rank.
        order: `shuffled`, `longest_first` (best for one epoch of evaluation) or `sequential`.
        prefetch: Rollouts read ahead; 0 reads in the calling thread.
        store: Where tokens are read from; by default the data set's own shards, mapped into memory.

    Raises:
        UserError: The data set cannot be read, or a setting is out of range.
    """

    def __init__(
        self,
        data: DocumentIndex | str | Path,
        *,
        num_lanes: int,
        segment_length: int,
        num_segments: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        order: Order = "shuffled",
        prefetch: int = 2,
        store: Store | None = None,
    ) -> None:
        self.index = data if isinstance(data, DocumentIndex) else DocumentIndex.load(data)
        if num_segments < 1:
            raise UserError(f"num_segments is {num_segments}; give 1 or more")
        if num_lanes < world_size:
            raise UserError(f"num_lanes is {num_lanes}; give {world_size} or more, one for each data-parallel rank")
        if prefetch < 0:
            raise UserError(f"prefetch is {prefetch}; give 0 or more rollouts")
        self.lanes = lanes_of(rank, world_size, num_lanes)
        self.segment_length = segment_length
        self.num_segments = num_segments
        self._plan = plan_for(
            self.index, num_lanes=num_lanes, segment_length=segment_length, seed=seed, epochs=epochs, order=order
        )
        self._store = store or MmapStore(self.index)
        self._prefetch = prefetch
        self._delivered = self._plan.state
        self._reader: _Reader | None = None
        self._ended: BaseException | None = None

    def __iter__(self) -> Iterator[SegmentBatch]:
        return self

    def __next__(self) -> SegmentBatch:
        """The next batch.

        Raises:
            StopIteration: The last epoch has ended, or the stream was closed.
            UserError: A shard is missing or damaged. Raised here, also when the thread found it.
        """
        if self._ended is not None:
            raise self._ended
        if self._reader is None:
            self._reader = _Reader(self._plan, self._store, self.lanes, self.num_segments, self._prefetch)
            self._end_reader = weakref.finalize(self, self._reader.close)
        item = self._reader.next()
        if isinstance(item, BaseException):
            self._stop(item)
            raise item
        self._delivered = item.state
        return item.batch

    @property
    def carry_sources(self) -> NDArray[np.int64]:
        """What `load_state_dict` did to the carries: `[lanes, then waiting documents]` → saved slot, or -1 for none.

        Entry s tells from which slot of the saved run the carry of slot s comes. Without a load, or with the same
        number of lanes and no waiting document, it is 0, 1, 2, …; see `data_pipeline.plan` for the whole protocol.
        """
        return self._plan.carry_sources

    @property
    def carry_slots(self) -> NDArray[np.int64]:
        """The slots whose carries belong to `state_dict()`: all lanes, then the documents that wait for a lane."""
        waiting = [item.slot for item in self._delivered.waiting]
        return np.array([*range(self._plan.num_lanes), *waiting], dtype=np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch delivered; integers and strings, the same on all ranks."""
        return self._plan.state_dict(self._delivered)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continues after the last batch delivered before `saved` was taken.

        The number of ranks, lanes, segments and tokens a segment may differ from the saved run's; `carry_sources`
        then tells where each carry comes from.

        Raises:
            UserError: The state is of another data set, was made with another seed or order, or is damaged.
        """
        self._stop(None)
        self._plan.load_state_dict(saved)
        self._delivered = self._plan.state

    def close(self) -> None:
        """Ends the reading thread; the stream then yields no more batches until a state is loaded."""
        self._stop(StopIteration())

    def __enter__(self) -> "SegmentStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self, reason: BaseException | None) -> None:
        if self._reader is not None:
            self._end_reader()
            self._reader = None
        self._ended = reason


def plan_for(
    index: DocumentIndex,
    *,
    num_lanes: int,
    segment_length: int,
    seed: int = 0,
    epochs: int | None = None,
    order: Order = "shuffled",
) -> LanePlan:
    """The plan that every `SegmentStream` with these settings follows."""
    return LanePlan(
        index.lengths,
        index.shards,
        num_lanes=num_lanes,
        segment_length=segment_length,
        seed=seed,
        epochs=epochs,
        order=order,
        fingerprint=index.fingerprint,
    )


@dataclass(frozen=True)
class _Item:
    batch: SegmentBatch
    state: PlanState


class _Reader:
    """Makes batches, in a thread when it may read ahead. Knows nothing of the stream, so the stream can be dropped."""

    def __init__(self, plan: LanePlan, store: Store, lanes: slice, num_segments: int, prefetch: int) -> None:
        self._plan = plan
        self._store = store
        self._lanes = lanes
        self._num_segments = num_segments
        self._stop = threading.Event()
        self._queue: queue.Queue[_Item | BaseException] = queue.Queue(max(1, prefetch))
        self._thread: threading.Thread | None = None
        if prefetch:
            self._thread = threading.Thread(target=self._run, name="segment-stream", daemon=True)
            self._thread.start()

    def next(self) -> "_Item | BaseException":
        """The next batch, or what ended the reading."""
        return self._make() if self._thread is None else self._queue.get()

    def close(self) -> None:
        self._stop.set()
        # A garbage collection may run this in the thread itself.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        item: _Item | BaseException | None = None
        while not isinstance(item, BaseException):
            item = self._make()
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=_POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if self._stop.is_set():
                return

    def _make(self) -> "_Item | BaseException":
        try:
            rollout = self._plan.next_rollout(self._num_segments)
            if rollout is None:
                return StopIteration()
            return _Item(_fetch(rollout.block(self._lanes), self._store, self._plan.segment_length), self._plan.state)
        except Exception as error:
            return error


def _fetch(rollout: Rollout, store: Store, segment_length: int) -> SegmentBatch:
    num_lanes, num_segments = rollout.documents.shape
    tokens = np.zeros((num_lanes, num_segments * segment_length), np.int32)
    begins = np.ones((num_lanes, num_segments), np.bool_)
    begins[:, 1:] = rollout.resets[:, 1:]
    for lane, first in np.argwhere(begins & (rollout.lengths > 0)).tolist():
        # Segments of one document lie side by side, and only the last is ragged: one read serves them all.
        later = np.flatnonzero(begins[lane, first + 1 :])
        end = first + 1 + int(later[0]) if len(later) else num_segments
        count = int(rollout.lengths[lane, first:end].sum())
        at = first * segment_length
        document, start = int(rollout.documents[lane, first]), int(rollout.starts[lane, first])
        tokens[lane, at : at + count] = store.read(document, start, count)
    return SegmentBatch(
        step=rollout.step,
        first_lane=rollout.first_lane,
        documents=rollout.documents,
        epochs=rollout.epochs,
        starts=rollout.starts,
        lengths=rollout.lengths,
        resets=rollout.resets,
        carry_from=rollout.carry_from,
        valid_tokens=rollout.valid_tokens,
        tokens=tokens.reshape(num_lanes, num_segments, segment_length),
    )
