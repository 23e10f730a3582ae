# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`SegmentStream`: the batches of one rank, read ahead in a thread, resumable after any batch.

Data flow: `LanePlan` decides a stretch of rollouts for all lanes → this rank's lanes are cut out, and of them what
this rank must know where others have the same lanes → a `Store` reads the stretch's tokens, and another their loss
weights, where there are any → one `SegmentBatch` a rollout. Beside every batch that waits in the queue waits the plan's
state after it, so that `state_dict` speaks of the last batch that was delivered, however far the thread has read ahead.

Damage is found by the rank that reads it. With `on_damage="skip"` every batch is delivered only after all ranks have
told each other what they found in theirs; if anybody found something, all of them skip those documents, go back to the
state before the batch and plan it anew. So nothing of a damaged chunk is delivered, and the plan stays equal.
"""

import itertools
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.blend import Blend
from data_pipeline.errors import DamagedDocument
from data_pipeline.index import DocumentIndex
from data_pipeline.loss_weights import ONE, WEIGHT_DTYPE
from data_pipeline.opening import open_data, open_store, open_weight_store
from data_pipeline.plan import LanePlan
from data_pipeline.reading import SegmentBatch, known_segments
from data_pipeline.store import Store
from data_pipeline.stream_settings import Damage, StreamSettings
from data_pipeline.stretch import PlanState, Stretch

# Rollouts are planned and read in stretches of so many of a lane's tokens, and of at most so many rollouts.
_STRETCH_TOKENS, _STRETCH_ROLLOUTS = 1 << 15, 64
_POLL_SECONDS = 0.1  # how often a thread that waits for room in the queue looks whether it should end


class SegmentStream:
    """Iterates over the `SegmentBatch` of one rank's lanes.

    The stream can be used as a context manager; `close` ends the reading thread, and so does dropping the stream or
    leaving the interpreter.

    Args:
        data: The data set, a blend of several, or whatever `open_data` opens: a directory, an address.
        settings: How it is read.
        store: Where tokens are read from; by default the data set's own shards.
        fields: Fields of `StreamSettings` by name, instead of `settings` or to change them.

    Raises:
        UserError: The data set cannot be read, or a setting is out of range.
        ValueError: `skip` on several ranks without `agree`.
    """

    def __init__(
        self,
        data: DocumentIndex | Blend | str | Path,
        settings: StreamSettings | None = None,
        *,
        store: Store | None = None,
        **fields: Any,
    ) -> None:
        self.settings = StreamSettings(**fields) if settings is None else replace(settings, **fields)
        self.index = data if isinstance(data, DocumentIndex | Blend) else open_data(data)
        self._plan = self.settings.plan(self.index)
        self._store, self._weights = store or open_store(self.index), open_weight_store(self.index)
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
        while True:
            item = self._next_item()
            if self.settings.on_damage == "skip":
                agree = self.settings.agree
                damage = agree(item.damage) if agree else item.damage
                if damage:
                    self._skip(damage)
                    continue
            assert item.batch is not None
            self._delivered = item.state
            return item.batch

    @property
    def lanes(self) -> slice:
        """The lanes of this rank."""
        return self.settings.lanes

    @property
    def carry_sources(self) -> NDArray[np.int64]:
        """What `load_state_dict` did to the carries: `[lanes, then waiting documents]` → saved row, or -1 for none.

        Entry s tells from which row of the saved run the carry of row s comes. Without a load, or with the same
        number of lanes and no waiting document, it is 0, 1, 2, …; see `data_pipeline.plan` for the whole protocol.
        """
        return self._plan.carry_sources

    @property
    def carry_rows(self) -> NDArray[np.int64]:
        """The rows whose carries belong to `state_dict()`: all lanes, then the documents that wait for a lane."""
        waiting = [item.row for item in self._delivered.waiting]
        return np.array([*range(self._plan.num_lanes), *waiting], dtype=np.int64)

    @property
    def skipped_documents(self) -> tuple[int, ...]:
        """The documents left out because they are damaged, in ascending order."""
        return self._delivered.skipped

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

    def start_over(self, step: int) -> None:
        """Begins at the beginning, whatever was delivered, but counts rollouts on: `step` of other data came before.

        `carry_sources` then tells that no lane has a carry.
        """
        self._stop(None)
        self._plan = self.settings.plan(self.index)
        self._plan.begin_after(step)
        self._delivered = self._plan.state

    def close(self) -> None:
        """Ends the reading thread and closes the shards; no more batches come until a state is loaded."""
        self._stop(StopIteration())
        for store, _ in self._columns():
            store.close()

    def __enter__(self) -> "SegmentStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _columns(self) -> list[tuple[Store, np.dtype[Any]]]:
        """What is read of each token, and how it is stored: its id and, where there are any, its loss weight."""
        ids = self._store, self.index.token_dtype
        return [ids] if self._weights is None else [ids, (self._weights, WEIGHT_DTYPE)]

    def _next_item(self) -> "_Item":
        if self._ended is not None:
            raise self._ended
        if self._reader is None:
            self._reader = _Reader(self._plan, self._columns(), self.settings)
            self._end_reader = weakref.finalize(self, self._reader.close)
        item = self._reader.next()
        if isinstance(item, BaseException):
            self._stop(item)
            raise item
        return item

    def _skip(self, damage: Damage) -> None:
        """Leaves documents out and goes back to the last batch delivered."""
        self._stop(None)
        self._plan.state = self._delivered
        self._plan.skip(damage)
        self._delivered = self._plan.state
        if self.settings.on_skip is not None:
            self.settings.on_skip(damage)

    def _stop(self, reason: BaseException | None) -> None:
        if self._reader is not None:
            self._end_reader()
            self._reader = None
        self._ended = reason


@dataclass(frozen=True)
class _Item:
    batch: SegmentBatch | None  # None where there is damage
    state: PlanState
    damage: Damage


class _Reader:
    """Makes batches, in a thread when it may read ahead. Knows nothing of the stream, so the stream can be dropped."""

    def __init__(self, plan: LanePlan, columns: list[tuple[Store, np.dtype[Any]]], settings: StreamSettings) -> None:
        self._plan = plan
        self._stores = [store for store, _ in columns]
        self._look_ahead = max(store.look_ahead for store in self._stores)
        self._lanes = lanes = settings.lanes
        self._trained = settings.trained
        self._segments, self._segment_length = settings.segments, settings.segment_length
        self._collects_damage = settings.on_damage == "skip"
        self._one_by_one = False
        self._planned: deque[Stretch] = deque()
        self._stretch: Stretch
        self._unread: deque[int] = deque()  # rollouts of the stretch that are yet to be delivered
        self._ends = False
        # As stored; kept from stretch to stretch, since new memory costs more than what is written into it.
        room = max(self._most(segments) * segments for _, segments in self._segments.starts)
        shape = (lanes.stop - lanes.start, room, settings.segment_length)
        self._stored = [np.empty(shape, dtype) for _, dtype in columns]
        self._stop = threading.Event()
        self._queue: queue.Queue[_Item | BaseException] = queue.Queue(max(1, settings.prefetch))
        self._thread: threading.Thread | None = None
        if settings.prefetch:
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
            while not self._unread:
                if not self._plan_ahead():
                    return StopIteration()
                self._stretch = stretch = self._planned.popleft()
                try:
                    self._read(stretch)
                except DamagedDocument:
                    if len(stretch) > 1:
                        # What comes before the damage is sound: from here on rollout by rollout.
                        self._plan.state, self._one_by_one, self._ends = stretch.states[0], True, False
                        self._planned.clear()
                        continue
                    if not self._collects_damage:
                        raise
                    return _Item(None, stretch.states[1], self._damage_in(stretch.runs))
                self._unread.extend(range(len(stretch)))
            number = self._unread.popleft()
            return _Item(self._batch(self._stretch, number), self._stretch.states[number + 1], {})
        except Exception as error:
            return error

    def _plan_ahead(self) -> bool:
        """Whether there is a stretch to read; those after it are planned as far as the store looks ahead."""
        while not self._ends and sum(map(len, self._planned)) <= self._look_ahead:
            done = self._plan.state.step
            segments, left = self._segments.at(done), self._segments.until_change(done)
            most = self._most(segments)
            whole = self._plan.next_stretch(segments, most if left is None else min(most, left))
            if whole is None:
                self._ends = True
                break
            stretch = whole.block(self._lanes)
            if self._trained is not None:
                stretch = stretch.only(known_segments(self._trained(segments)), self._segment_length)
            for store in self._stores:
                store.prepare(stretch.step, stretch.runs)
            self._planned.append(stretch)
        return bool(self._planned)

    def _most(self, num_segments: int) -> int:
        """Rollouts of so many segments that a stretch has at most."""
        lane_tokens = num_segments * self._segment_length
        return 1 if self._one_by_one else max(1, min(_STRETCH_ROLLOUTS, _STRETCH_TOKENS // lane_tokens))

    def _read(self, stretch: Stretch) -> None:
        """Puts a stretch's columns, and zeros behind the ends of documents, where `_batch` takes them from."""
        lengths = stretch.columns["lengths"]
        num_segments = lengths.shape[2]
        short = np.argwhere(lengths < self._segment_length).tolist()
        for store, stored in zip(self._stores, self._rooms(stretch), strict=True):
            for rollout, lane, segment in short:
                stored[lane, rollout * num_segments + segment, lengths[rollout, lane, segment] :] = 0
            if self._trained is not None:
                unknown = np.tile(~known_segments(self._trained(num_segments)), (1, len(stretch)))
                stored[:, : unknown.shape[1]][unknown] = 0
            if len(stretch.runs):
                store.read_runs(stretch.runs, stored.reshape(-1))

    def _batch(self, stretch: Stretch, number: int) -> SegmentBatch:
        num_segments = stretch.columns["lengths"].shape[2]
        segments = slice(number * num_segments, (number + 1) * num_segments)
        tokens, *weights = (room[:, segments] for room in self._rooms(stretch))
        loss_weights = weights[0].astype(np.float32) / np.float32(ONE) if weights else None
        return SegmentBatch(
            **stretch.fields(number),
            tokens=tokens.astype(np.int32),
            loss_weights=loss_weights,
            trained=None if self._trained is None else self._trained(num_segments),
        )

    def _rooms(self, stretch: Stretch) -> list[NDArray[Any]]:
        """The columns of a stretch as stored, `[lanes, segments, S]` each."""
        lanes, _, size = self._stored[0].shape
        count = lanes * stretch.lane_tokens
        return [stored.reshape(-1)[:count].reshape(lanes, -1, size) for stored in self._stored]

    def _damage_in(self, runs: NDArray[np.int64]) -> Damage:
        damage: dict[int, str] = {}
        for (document, start, length, _), store in itertools.product(runs.tolist(), self._stores):
            try:
                store.read(document, start, length)
            except DamagedDocument as error:
                damage[document] = str(error)
        return damage
