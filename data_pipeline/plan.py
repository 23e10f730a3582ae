# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`LanePlan`: who reads what, as a pure function of the documents' lengths and a small state.

Every lane reads one document after another, segment by segment; a lane whose document has ended takes the next of
one queue. All ranks compute the whole plan, so they agree without a word, and the plan is the same for any number
of ranks. An epoch queues every document once; the next epoch follows without a gap.

Another number of lanes. A lane's unfinished document cannot be read on without the lane's carry (its memory and
previous segment), so the carries are numbered like the rows of a table: row g is lane g, and documents that wait for a
lane have rows from `num_lanes` on. A saved state lists the rows in use (`carry_rows`); whoever saves the state saves
the carries of these rows. `load_state_dict` puts the unfinished documents of lanes that are gone at the head of the
queue, and `carry_sources` then tells for each row now in use which saved row its carry comes from. A lane takes a
waiting document only at the start of a rollout, and that rollout's `carry_from` names the row; so a carry never
changes hands within a rollout. A lane that ends its document in mid-rollout while documents wait stays idle for the
rest of it.

Several sources. Each has a queue of its own; a free lane takes its next document from the source that has given the
fewest tokens for its weight. Weights may change at a resume: the count begins anew there, and only the future changes.

Rollouts are planned in stretches of one or more (`next_stretch`): many at once cost little more than one, and the
states between them are the same. What is worked out one by one is the documents that end.

Damage. `skip` takes documents out of the plan for good; the state lists them. A plan and its state stay the same on
every rank as long as all ranks skip the same documents after the same rollout.
"""

import functools
import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.document_order import DocumentOrder, Order, Source, blocks_of
from data_pipeline.errors import UserError
from data_pipeline.reading import Reading
from data_pipeline.stretch import PlanState, SourceState, Stretch, Waiting

STATE_VERSION = 2


class LanePlan:
    """Greedy scheduling of documents onto lanes.

    Args:
        lengths: `[documents]`, tokens of each document; documents without a token are passed over.
        blocks: `[documents]`, what is shuffled first; by default stretches of `document_order.BLOCK_TOKENS` tokens.
        num_lanes: Lanes of the global batch, B.
        segment_length: Tokens a segment, S.
        seed: Decides the order; any integer.
        epochs: Number of epochs, or None to go on for ever. In the end of the last one lanes run idle.
        order: `shuffled`: blocks by hash of (seed, epoch), then documents by hash within windows of `block_window`
            blocks. `longest_first`: the longest documents first, which ends a single epoch soonest.
            `sequential`: as stored.
        block_window: Blocks whose documents are shuffled together.
        fingerprint: Stands for the documents in saved states; by default a hash of lengths and blocks.
        sources: Sources to blend by weight, whose documents follow each other in `lengths`; by default one. An epoch
            is an epoch of a source.
        max_document_tokens: Cut longer documents into pieces of this many tokens, each read with a fresh memory, so
            that few lanes idle in the end of the last epoch. None: never.

    Raises:
        UserError: A setting is out of range, or no document has a token.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        blocks: ArrayLike | None = None,
        *,
        num_lanes: int,
        segment_length: int,
        seed: int = 0,
        epochs: int | None = None,
        order: Order = "shuffled",
        block_window: int = 4,
        fingerprint: str | None = None,
        sources: Sequence[Source] | None = None,
        max_document_tokens: int | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.blocks = blocks_of(self.lengths) if blocks is None else np.asarray(blocks, dtype=np.int32)
        self.sources = tuple(sources or [Source(len(self.lengths))])
        for name, value in (
            ("num_lanes", num_lanes),
            ("segment_length", segment_length),
            ("block_window", block_window),
            ("max_document_tokens", max_document_tokens),
        ):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give 1 or more")
        if epochs is not None and epochs < 1:
            raise UserError(f"epochs is {epochs}; give 1 or more, or none to go on for ever")
        if order not in get_args(Order):
            raise UserError(f"order is {order!r}; choose {', '.join(get_args(Order))}")
        if not (self.lengths > 0).any():
            raise UserError("the data set holds no token; build it from sources with text")
        if not all(source.weight >= 0 and math.isfinite(source.weight) for source in self.sources):
            weights = ", ".join(f"{source.weight:g}" for source in self.sources)
            raise UserError(f"the weights of the data sets are {weights}; give numbers of 0 or more")
        self.num_lanes = num_lanes
        self.segment_length = segment_length
        self.seed = seed
        self.epochs = epochs
        self.order: Order = order
        self.block_window = block_window
        self.max_document_tokens = max_document_tokens
        self.fingerprint = fingerprint or self._hash_of_lengths()
        self.carry_sources = np.arange(num_lanes, dtype=np.int64)
        self.queue = DocumentOrder(
            self.lengths, self.blocks, self.sources, seed, order, block_window, max_document_tokens
        )
        self.state = PlanState(
            step=0,
            tokens=0,
            sources=(SourceState(),) * len(self.sources),
            pieces=np.full(num_lanes, -1, np.int64),
            epochs=np.zeros(num_lanes, np.int64),
            offsets=np.zeros(num_lanes, np.int64),
            waiting=(),
            skipped=(),
        )
        self._check_some_document()

    def next_rollout(self, num_segments: int) -> Reading | None:
        """What all lanes read in the next `num_segments` segments; None when the last epoch has ended."""
        stretch = self.next_stretch(num_segments, 1)
        return None if stretch is None else Reading(**stretch.fields(0))

    def next_stretch(self, num_segments: int, rollouts: int) -> Stretch | None:
        """The next rollouts, at most this many and fewer where an epoch is the last; None as in `next_rollout`."""
        if self.state.waiting:
            rollouts = 1  # documents that wait are given to lanes between rollouts
        stretch = _Planner(self, self.state).stretch(num_segments, rollouts)
        if not len(stretch):
            return None
        self.state = stretch.states[-1]
        return stretch

    def document_order(self, epoch: int, source: int = 0) -> NDArray[np.int64]:
        """The order in which an epoch of a source queues its documents, `[documents with a token]` (or pieces)."""
        return self.queue.documents[self.queue.pieces(source, epoch)]

    def skip(self, documents: Iterable[int]) -> None:
        """Takes documents out of the plan, also where they are being read; lanes on them are free at the next rollout.

        Raises:
            UserError: No document would be left.
        """
        skipped = tuple(sorted({*self.state.skipped, *documents}))
        gone = np.isin(self.queue.documents, skipped)
        held = (self.state.pieces >= 0) & gone[self.state.pieces]
        self.state = replace(
            self.state,
            offsets=np.where(held, self.queue.lengths[self.state.pieces], self.state.offsets),
            waiting=tuple(item for item in self.state.waiting if not gone[item.piece]),
            skipped=skipped,
        )
        self._check_some_document()

    def begin_after(self, step: int) -> None:
        """Counts the rollouts of a fresh plan from `step` on; no lane has a carry from before."""
        self.state = replace(self.state, step=step)
        self.carry_sources = np.full(self.num_lanes, -1, dtype=np.int64)

    def state_dict(self, state: PlanState | None = None) -> dict[str, Any]:
        """The state (by default the present one) as integers and strings, the same on all ranks.

        Columns are strings of numbers with blanks between them: 1,024 lanes take less than 20 kB of JSON.
        """
        state = state or self.state
        waiting = [(item.piece, item.epoch, item.offset, item.row) for item in state.waiting]
        return {
            "version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "order": self.order,
            "block_window": self.block_window,
            "max_document_tokens": self.max_document_tokens or 0,
            "num_lanes": len(state.pieces),
            "segment_length": self.segment_length,
            "step": state.step,
            "tokens": state.tokens,
            "sources": [f"{source.epoch} {source.cursor} {source.dealt}" for source in state.sources],
            "weights": " ".join(repr(float(source.weight)) for source in self.sources),
            "skipped": _written(np.array(state.skipped, np.int64)),
            "lane_pieces": _written(state.pieces),
            "lane_epochs": _written(state.epochs),
            "lane_offsets": _written(state.offsets),
            "waiting": [_written(np.array(item)) for item in waiting],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continues after the rollout that `saved` describes, with this plan's number of lanes and segment length.

        Raises:
            UserError: The state is of another data set, was made with another seed or order, or is damaged.
        """
        self._check_same_plan(saved)
        try:
            pieces, epochs, offsets = (_read(saved[f"lane_{name}"]) for name in ("pieces", "epochs", "offsets"))
            waiting = [Waiting(*_read(item).tolist()) for item in saved["waiting"]]
            sources = [SourceState(*_read(item).tolist()) for item in saved["sources"]]
            skipped = tuple(_read(saved["skipped"]).tolist())
            weights = [float(weight) for weight in saved["weights"].split()]
            step, tokens = int(saved["step"]), int(saved["tokens"])
            if not len(pieces) == len(epochs) == len(offsets) == saved["num_lanes"]:
                raise ValueError("columns of unequal length")
            if not len(sources) == len(weights) == len(self.sources):
                raise ValueError("another number of sources")
            if max([-1, *pieces.tolist(), *(item.piece for item in waiting)]) >= len(self.queue.lengths):
                raise ValueError("a document that the data set does not hold")
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"the data state is damaged ({what}); resume from another one") from None
        if weights != [source.weight for source in self.sources]:
            sources = [replace(source, dealt=0) for source in sources]
        unfinished = (pieces >= 0) & (offsets < self.queue.lengths[pieces])
        waiting = [
            Waiting(int(pieces[lane]), int(epochs[lane]), int(offsets[lane]), lane)
            for lane in range(self.num_lanes, len(pieces))
            if unfinished[lane]
        ] + waiting
        kept, missing = slice(0, self.num_lanes), max(0, self.num_lanes - len(pieces))
        lane_sources = [*range(self.num_lanes - missing), *[-1] * missing]
        self.carry_sources = np.array([*lane_sources, *(item.row for item in waiting)], dtype=np.int64)
        self.state = PlanState(
            step=step,
            tokens=tokens,
            sources=tuple(sources),
            pieces=np.pad(pieces[kept], (0, missing), constant_values=-1),
            epochs=np.pad(epochs[kept], (0, missing)),
            offsets=np.pad(offsets[kept], (0, missing)),
            waiting=tuple(replace(item, row=self.num_lanes + i) for i, item in enumerate(waiting)),
            skipped=skipped,
        )
        self._check_some_document()

    def _check_same_plan(self, saved: Mapping[str, Any]) -> None:
        if saved.get("version") != STATE_VERSION:
            raise UserError(
                f"the data state has version {saved.get('version')}, this program reads {STATE_VERSION}; "
                "resume with the program that wrote it"
            )
        if saved.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"the data set is not the one this run was reading (fingerprint {self.fingerprint}, saved state "
                f"{saved.get('fingerprint')}); name that data set again, or start a new run"
            )
        for name in ("seed", "order", "block_window", "max_document_tokens"):
            present, before = getattr(self, name) or 0, saved.get(name)
            if present != before:
                raise UserError(
                    f"{name} is {present}, but the saved data state was made with {name} {before}; "
                    f"set it to {before}, or start a new run"
                )

    def _check_some_document(self) -> None:
        """Some source can give a document: the search for the next one then ends."""
        left = (self.lengths > 0) & ~np.isin(np.arange(len(self.lengths)), self.state.skipped)
        parts = np.split(left, np.cumsum([source.documents for source in self.sources])[:-1])
        self.live_sources = tuple(
            number for number, part in enumerate(parts) if self.sources[number].weight > 0 and part.any()
        )
        if not self.live_sources:
            reason = "every document is damaged" if self.state.skipped else "every data set of weight above 0 is empty"
            raise UserError(f"nothing is left to read: {reason}; restore or rebuild the data", exit_code=1)

    def _hash_of_lengths(self) -> str:
        return hashlib.sha256(self.lengths.tobytes() + self.blocks.tobytes()).hexdigest()[:32]


class _Planner:
    """Moves a copy of a plan's state through a stretch."""

    def __init__(self, plan: LanePlan, state: PlanState) -> None:
        self._plan = plan
        self._state = state
        self._sources = list(state.sources)
        self._pieces, self._epochs, self._offsets = (
            column.copy() for column in (state.pieces, state.epochs, state.offsets)
        )
        self._waiting = state.waiting

    def stretch(self, num_segments: int, most: int) -> Stretch:
        """Up to `most` rollouts; fewer, or none, where the last epoch ends."""
        plan, queue, size = self._plan, self._plan.queue, self._plan.segment_length
        lanes, count = len(self._pieces), most * num_segments
        carry_from = self._take_waiting()
        (places, pieces, epochs, offsets), sources = self._rows(count, num_segments)
        tokens = self._tokens(pieces)
        documents, starts = queue.documents[pieces], queue.starts[pieces]
        room = np.append(places[1:], lanes * count) - places
        runs = np.stack([documents, starts + offsets, np.minimum(tokens - offsets, size * room), size * places], axis=1)

        # From rows to segments, `[rollouts, B, T]`. An idle lane stands at the end of its row's piece.
        row = np.repeat(np.arange(len(places)), room).reshape(lanes, most, num_segments)
        row = np.ascontiguousarray(row.swapaxes(0, 1))
        left = tokens.take(row)
        begins = (offsets - size * places).take(row)
        begins += size * _places(lanes, most, num_segments)
        np.minimum(begins, left, out=begins)
        left -= begins
        lengths = np.minimum(left, size)
        columns = {
            "documents": documents.take(row),
            "epochs": epochs.take(row),
            "starts": begins if plan.max_document_tokens is None else starts.take(row) + begins,
            "lengths": lengths.astype(np.int32),
            "resets": begins == 0,
        }
        idle = lengths == 0
        if idle.any():
            for name, nothing in (("documents", -1), ("epochs", 0), ("starts", 0), ("resets", False)):
                columns[name] = np.where(idle, nothing, columns[name])

        valid = lengths.sum(axis=(1, 2)).tolist()
        if not valid[-1]:
            valid = valid[: valid.index(0)]
        last = row[:, :, -1]
        held = pieces.take(last), epochs.take(last), begins[:, :, -1] + lengths[:, :, -1]
        states = [self._state]
        for number, new in enumerate(valid):
            states.append(
                PlanState(
                    step=states[-1].step + 1,
                    tokens=states[-1].tokens + new,
                    sources=sources[number],
                    pieces=held[0][number],
                    epochs=held[1][number],
                    offsets=held[2][number],
                    waiting=self._waiting,
                    skipped=self._state.skipped,
                )
            )
        return Stretch(
            step=self._state.step,
            first_lane=0,
            columns=columns,
            carry_from=carry_from,
            valid_tokens=valid,
            states=states,
            runs=runs[runs[:, 2] > 0],
            lane_tokens=size * count,
        )

    def _rows(self, count: int, every: int) -> tuple[NDArray[np.int64], list[tuple[SourceState, ...]]]:
        """What lanes hold in the next `count` segments, and the states of the sources after each `every` of them.

        A row (place, piece or -1, epoch, offset) holds from its place on, where it stands at the offset, until the
        next row's place; places count segments lane by lane.
        """
        lanes, size = len(self._pieces), self._plan.segment_length
        ends = -(-(self._tokens(self._pieces) - self._offsets) // size)
        ending = [(end, lane) for lane, end in enumerate(ends.tolist()) if end < count]
        heapq.heapify(ending)
        taken: list[int] = []
        sources: list[tuple[SourceState, ...]] = []
        free: list[int] = []
        while ending:
            now = ending[0][0]
            sources += [tuple(self._sources)] * (now // every - len(sources))
            while ending and ending[0][0] == now:
                free.append(heapq.heappop(ending)[1])
            free.sort()
            # As many free lanes as documents wait are kept for them until the next rollout.
            given = max(0, len(free) - len(self._waiting))
            ready, free = free[:given], free[given:]
            for lane, (piece, epoch, tokens) in zip(ready, self._next_pieces(len(ready)), strict=True):
                taken += (count * lane + now, piece, epoch)
                if tokens == 0:
                    free.append(lane)
                elif now + -(-tokens // size) < count:
                    heapq.heappush(ending, (now + -(-tokens // size), lane))
        sources += [tuple(self._sources)] * (count // every - len(sources))
        rows = np.zeros((4, lanes + len(taken) // 3), np.int64)
        rows[0, :lanes], rows[1, :lanes] = count * np.arange(lanes), self._pieces
        rows[2, :lanes], rows[3, :lanes] = self._epochs, self._offsets
        rows[:3, lanes:] = np.array(taken, np.int64).reshape(-1, 3).T
        # Stable: a lane that is free from the first segment has two rows there, and the later one holds.
        return rows[:, np.argsort(rows[0], kind="stable")], sources

    def _take_waiting(self) -> NDArray[np.int64]:
        """Gives waiting documents to free lanes, in order; returns the carry rows they come from, -1 elsewhere."""
        taken = np.full(len(self._pieces), -1, np.int64)
        if self._waiting:
            free = np.flatnonzero(self._offsets == self._tokens(self._pieces)).tolist()
            for lane, item in zip(free, self._waiting, strict=False):
                self._pieces[lane], self._epochs[lane], self._offsets[lane] = item.piece, item.epoch, item.offset
                taken[lane] = item.row
            self._waiting = self._waiting[len(free) :]
        return taken

    def _tokens(self, pieces: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of pieces; 0 for -1, no piece."""
        tokens: NDArray[np.int64] = np.where(pieces < 0, 0, self._plan.queue.lengths[pieces])
        return tokens

    def _next_pieces(self, count: int) -> Iterator[tuple[int, int, int]]:
        """The heads of the queues that are furthest behind their shares: piece, epoch, tokens; -1, 0, 0 if all end."""
        candidates, weights = list(self._plan.live_sources), self._plan.sources
        while count and candidates:
            source = min(candidates, key=lambda number: (self._sources[number].dealt / weights[number].weight, number))
            found = self._advance(source, count if len(candidates) == 1 else 1)
            if not found:
                candidates.remove(source)
            count -= len(found)
            yield from found
        yield from [(-1, 0, 0)] * count

    def _advance(self, source: int, count: int) -> list[tuple[int, int, int]]:
        """The next pieces of a source, up to `count`, each with its epoch and tokens; none when the last one ends."""
        queue, state = self._plan.queue, self._sources[source]
        epoch, cursor, dealt = state.epoch, state.cursor, state.dealt
        found: list[tuple[int, int, int]] = []
        while len(found) < count and (self._plan.epochs is None or epoch < self._plan.epochs):
            order = queue.pieces(source, epoch)
            if cursor == len(order):
                epoch, cursor = epoch + 1, 0
                continue
            pieces = order[cursor : cursor + count - len(found)]
            cursor += len(pieces)
            if self._state.skipped:
                pieces = pieces[~np.isin(queue.documents[pieces], self._state.skipped)]
            tokens = queue.lengths[pieces].tolist()
            dealt += sum(tokens)
            found += [(piece, epoch, each) for piece, each in zip(pieces.tolist(), tokens, strict=True)]
        self._sources[source] = SourceState(epoch, cursor, dealt)
        return found


@functools.lru_cache(maxsize=4)
def _places(lanes: int, rollouts: int, num_segments: int) -> NDArray[np.int64]:
    """The places of segments, counted lane by lane, `[rollouts, B, T]`."""
    places = np.arange(lanes * rollouts * num_segments).reshape(lanes, rollouts, num_segments)
    return np.ascontiguousarray(places.swapaxes(0, 1))


def _written(numbers: NDArray[np.int64]) -> str:
    return " ".join(map(str, numbers.tolist()))


def _read(text: str) -> NDArray[np.int64]:
    return np.array([int(number) for number in text.split()], dtype=np.int64)
