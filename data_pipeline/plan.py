# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`LanePlan`: who reads what, as a pure function of the documents' lengths and a small state.

Every lane reads one document after another, segment by segment; a lane whose document has ended takes the next of
one queue. All ranks compute the whole plan, so they agree without a word, and the plan is the same for any number
of ranks. An epoch queues every document once; the next epoch follows without a gap.

Another number of lanes. A lane's unfinished document cannot be read on without the lane's carry (its memory and
previous segment), so carries have numbers, called slots: slot g is lane g, and documents that wait for a lane have
slots from `num_lanes` on. A saved state lists the slots in use (`carry_slots`); whoever saves the state saves the
carries of these slots. `load_state_dict` puts the unfinished documents of lanes that are gone at the head of the
queue, and `carry_sources` then tells for each slot now in use which saved slot its carry comes from. A lane takes a
waiting document only at the start of a rollout, and that rollout's `carry_from` names the slot; so a carry never
changes hands within a rollout. A lane that ends its document in mid-rollout while documents wait stays idle for the
rest of it.

Several sources. Each has a queue of its own; a free lane takes its next document from the source that has given the
fewest tokens for its weight. Weights may change at a resume: the count begins anew there, and only the future changes.

Damage. `skip` takes documents out of the plan for good; the state lists them. A plan and its state stay the same on
every rank as long as all ranks skip the same documents after the same rollout.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.document_order import DocumentOrder, Order, Source, blocks_of
from data_pipeline.errors import UserError
from data_pipeline.rollout import Rollout

STATE_VERSION = 2


@dataclass(frozen=True)
class _Waiting:
    """A piece read up to `offset` that waits for a lane; its carry is in `slot`."""

    piece: int
    epoch: int
    offset: int
    slot: int


@dataclass(frozen=True)
class SourceState:
    """Where the queue of one source stands; `dealt` counts its tokens given out since the weights were set."""

    epoch: int = 0
    cursor: int = 0
    dealt: int = 0


@dataclass(frozen=True)
class PlanState:
    """Where a plan stands between two rollouts. The arrays, `[num_lanes]`, are not changed once they are in here.

    Lanes hold pieces: whole documents, unless `max_document_tokens` cuts them.
    """

    step: int
    tokens: int
    sources: tuple[SourceState, ...]
    pieces: NDArray[np.int64]
    epochs: NDArray[np.int64]
    offsets: NDArray[np.int64]
    waiting: tuple[_Waiting, ...]
    skipped: tuple[int, ...]


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

    def next_rollout(self, num_segments: int) -> Rollout | None:
        """What all lanes read in the next `num_segments` segments; None when the last epoch has ended."""
        planner = _Planner(self, self.state)
        taken = planner.take_waiting()
        pieces, epochs, offsets, lengths = planner.segments(num_segments)
        valid_tokens = int(lengths.sum())
        if not valid_tokens:
            return None
        live = lengths > 0
        whole = self.max_document_tokens is None
        rollout = Rollout(
            step=self.state.step,
            first_lane=0,
            documents=pieces if whole else np.where(live, self.queue.documents[pieces], -1),
            epochs=epochs,
            starts=offsets if whole else np.where(live, self.queue.starts[pieces] + offsets, 0),
            lengths=lengths.astype(np.int32),
            resets=live & (offsets == 0),
            carry_from=taken,
            valid_tokens=valid_tokens,
        )
        self.state = planner.state_after(rollout)
        return rollout

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

    def state_dict(self, state: PlanState | None = None) -> dict[str, Any]:
        """The state (by default the present one) as integers and strings, the same on all ranks.

        Columns are strings of numbers with blanks between them: 1,024 lanes take less than 20 kB of JSON.
        """
        state = state or self.state
        waiting = [(item.piece, item.epoch, item.offset, item.slot) for item in state.waiting]
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
            waiting = [_Waiting(*_read(item).tolist()) for item in saved["waiting"]]
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
            _Waiting(int(pieces[lane]), int(epochs[lane]), int(offsets[lane]), lane)
            for lane in range(self.num_lanes, len(pieces))
            if unfinished[lane]
        ] + waiting
        kept, missing = slice(0, self.num_lanes), max(0, self.num_lanes - len(pieces))
        lane_sources = [*range(self.num_lanes - missing), *[-1] * missing]
        self.carry_sources = np.array([*lane_sources, *(item.slot for item in waiting)], dtype=np.int64)
        self.state = PlanState(
            step=step,
            tokens=tokens,
            sources=tuple(sources),
            pieces=np.pad(pieces[kept], (0, missing), constant_values=-1),
            epochs=np.pad(epochs[kept], (0, missing)),
            offsets=np.pad(offsets[kept], (0, missing)),
            waiting=tuple(replace(item, slot=self.num_lanes + i) for i, item in enumerate(waiting)),
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
    """Moves a copy of a plan's state through one rollout."""

    def __init__(self, plan: LanePlan, state: PlanState) -> None:
        self._plan = plan
        self._state = state
        self._sources = list(state.sources)
        self._pieces, self._epochs, self._offsets = (
            column.copy() for column in (state.pieces, state.epochs, state.offsets)
        )
        self._skipped = frozenset(state.skipped)
        self._waiting = list(state.waiting)

    def take_waiting(self) -> NDArray[np.int64]:
        """Gives waiting documents to free lanes, in order; returns the slots they come from, -1 elsewhere."""
        taken = np.full(len(self._pieces), -1, np.int64)
        for lane, item in zip(self._free_lanes(), list(self._waiting), strict=False):
            self._pieces[lane], self._epochs[lane], self._offsets[lane] = item.piece, item.epoch, item.offset
            taken[lane] = item.slot
            self._waiting.pop(0)
        return taken

    def segments(self, count: int) -> tuple[NDArray[np.int64], ...]:
        """Pieces (-1 where idle), epochs, offsets and lengths of the next segments, `[B, count]` each."""
        size = self._plan.segment_length
        shape = (len(self._pieces), count)
        pieces, epochs, offsets, lengths = (np.empty(shape, np.int64) for _ in range(4))
        done = 0
        while done < count:
            free = self._free_lanes()
            # As many free lanes as documents wait are kept for them until the next rollout.
            for lane in free[: max(0, len(free) - len(self._waiting))]:
                self._pieces[lane], self._epochs[lane] = self._next_piece()
                self._offsets[lane] = 0
            # Documents without a token are never queued, so tokens that are left mean that the lane reads.
            left = self._plan.queue.lengths[self._pieces] - self._offsets
            left[self._pieces < 0] = 0
            live = left > 0
            # Until a lane ends its document, lanes only move on: all those segments at once.
            ends = -(-left[live] // size)
            steps = min(count - done, int(ends.min())) if len(ends) else count - done
            ahead = size * np.arange(steps)
            now = slice(done, done + steps)
            pieces[:, now] = np.where(live, self._pieces, -1)[:, None]
            epochs[:, now] = np.where(live, self._epochs, 0)[:, None]
            offsets[:, now] = np.where(live[:, None], self._offsets[:, None] + ahead, 0)
            lengths[:, now] = np.clip(left[:, None] - ahead, 0, size)
            self._offsets += np.minimum(left, size * steps)
            done += steps
        return pieces, epochs, offsets, lengths

    def state_after(self, rollout: Rollout) -> PlanState:
        return PlanState(
            step=rollout.step + 1,
            tokens=self._state.tokens + rollout.valid_tokens,
            sources=tuple(self._sources),
            pieces=self._pieces,
            epochs=self._epochs,
            offsets=self._offsets,
            waiting=tuple(self._waiting),
            skipped=self._state.skipped,
        )

    def _free_lanes(self) -> list[int]:
        unfinished = (self._pieces >= 0) & (self._offsets < self._plan.queue.lengths[self._pieces])
        free: list[int] = np.flatnonzero(~unfinished).tolist()
        return free

    def _next_piece(self) -> tuple[int, int]:
        """The head of the queue that is furthest behind its share, and its epoch; (-1, 0) when all are used up."""
        candidates = list(self._plan.live_sources)
        while candidates:
            weights = self._plan.sources
            source = min(candidates, key=lambda number: (self._sources[number].dealt / weights[number].weight, number))
            piece = self._advance(source)
            if piece >= 0:
                return piece, self._sources[source].epoch
            candidates.remove(source)
        return -1, 0

    def _advance(self, source: int) -> int:
        """The next piece of a source, -1 when its last epoch is used up."""
        queue, state = self._plan.queue, self._sources[source]
        epoch, cursor, piece = state.epoch, state.cursor, -1
        while piece < 0 and (self._plan.epochs is None or epoch < self._plan.epochs):
            order = queue.pieces(source, epoch)
            if cursor == len(order):
                epoch, cursor = epoch + 1, 0
                continue
            candidate = int(order[cursor])
            cursor += 1
            if int(queue.documents[candidate]) not in self._skipped:
                piece = candidate
        dealt = state.dealt + (int(queue.lengths[piece]) if piece >= 0 else 0)
        self._sources[source] = SourceState(epoch, cursor, dealt)
        return piece


def _written(numbers: NDArray[np.int64]) -> str:
    return " ".join(map(str, numbers.tolist()))


def _read(text: str) -> NDArray[np.int64]:
    return np.array([int(number) for number in text.split()], dtype=np.int64)
