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
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.errors import UserError
from data_pipeline.rollout import Rollout

Order = Literal["shuffled", "longest_first", "sequential"]
STATE_VERSION = 1


@dataclass(frozen=True)
class _Waiting:
    """A document read up to `offset` that waits for a lane; its carry is in `slot`."""

    document: int
    epoch: int
    offset: int
    slot: int


@dataclass(frozen=True)
class PlanState:
    """Where a plan stands between two rollouts. The arrays, `[num_lanes]`, are not changed once they are in here."""

    step: int
    tokens: int
    epoch: int
    cursor: int
    documents: NDArray[np.int64]
    epochs: NDArray[np.int64]
    offsets: NDArray[np.int64]
    waiting: tuple[_Waiting, ...]


class LanePlan:
    """Greedy scheduling of documents onto lanes.

    Args:
        lengths: `[documents]`, tokens of each document; documents without a token are passed over.
        shards: `[documents]`, shard of each document; all in one shard by default.
        num_lanes: Lanes of the global batch, B.
        segment_length: Tokens a segment, S.
        seed: Decides the order; any integer.
        epochs: Number of epochs, or None to go on for ever. In the end of the last one lanes run idle.
        order: `shuffled`: shards by hash of (seed, epoch), then documents by hash within windows of `shard_window`
            shards. `longest_first`: the longest documents first, which ends a single epoch soonest.
            `sequential`: as stored.
        shard_window: Shards whose documents are shuffled together.
        fingerprint: Stands for the documents in saved states; by default a hash of lengths and shards.

    Raises:
        UserError: A setting is out of range, or no document has a token.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        shards: ArrayLike | None = None,
        *,
        num_lanes: int,
        segment_length: int,
        seed: int = 0,
        epochs: int | None = None,
        order: Order = "shuffled",
        shard_window: int = 4,
        fingerprint: str | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.shards = np.zeros(len(self.lengths), np.int32) if shards is None else np.asarray(shards, dtype=np.int32)
        for name, value in (
            ("num_lanes", num_lanes),
            ("segment_length", segment_length),
            ("shard_window", shard_window),
        ):
            if value < 1:
                raise UserError(f"{name} is {value}; give 1 or more")
        if epochs is not None and epochs < 1:
            raise UserError(f"epochs is {epochs}; give 1 or more, or none to go on for ever")
        if order not in get_args(Order):
            raise UserError(f"order is {order!r}; choose {', '.join(get_args(Order))}")
        if not (self.lengths > 0).any():
            raise UserError("the data set holds no token; build it from sources with text")
        self.num_lanes = num_lanes
        self.segment_length = segment_length
        self.seed = seed
        self.epochs = epochs
        self.order: Order = order
        self.shard_window = shard_window
        self.fingerprint = fingerprint or self._hash_of_lengths()
        self.carry_sources = np.arange(num_lanes, dtype=np.int64)
        self._cached_order: tuple[int, NDArray[np.int64]] | None = None
        self.state = PlanState(
            step=0,
            tokens=0,
            epoch=0,
            cursor=0,
            documents=np.full(num_lanes, -1, np.int64),
            epochs=np.zeros(num_lanes, np.int64),
            offsets=np.zeros(num_lanes, np.int64),
            waiting=(),
        )

    def next_rollout(self, num_segments: int) -> Rollout | None:
        """What all lanes read in the next `num_segments` segments; None when the last epoch has ended."""
        planner = _Planner(self, self.state)
        taken = planner.take_waiting()
        columns = [planner.next_segment() for _ in range(num_segments)]
        documents, epochs, starts, lengths = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
        if not lengths.any():
            return None
        rollout = Rollout(
            step=self.state.step,
            first_lane=0,
            documents=documents,
            epochs=epochs,
            starts=starts,
            lengths=lengths.astype(np.int32),
            resets=(documents >= 0) & (starts == 0),
            carry_from=taken,
            valid_tokens=int(lengths.sum()),
        )
        self.state = planner.state_after(rollout)
        return rollout

    def document_order(self, epoch: int) -> NDArray[np.int64]:
        """The order in which an epoch queues the documents, `[documents with a token]`."""
        if self._cached_order is None or self._cached_order[0] != epoch:
            documents = np.flatnonzero(self.lengths > 0)
            if self.order == "longest_first":
                documents = documents[np.argsort(-self.lengths[documents], kind="stable")]
            elif self.order == "shuffled":
                documents = documents[self._shuffle_keys(epoch, documents)]
            self._cached_order = (epoch, documents)
        return self._cached_order[1]

    def state_dict(self, state: PlanState | None = None) -> dict[str, Any]:
        """The state (by default the present one) as integers and strings, the same on all ranks.

        Columns are strings of numbers with blanks between them: 1,024 lanes take less than 20 kB of JSON.
        """
        state = state or self.state
        waiting = [(item.document, item.epoch, item.offset, item.slot) for item in state.waiting]
        return {
            "version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "order": self.order,
            "shard_window": self.shard_window,
            "num_lanes": len(state.documents),
            "segment_length": self.segment_length,
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.epoch,
            "cursor": state.cursor,
            "lane_documents": _written(state.documents),
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
            documents, epochs, offsets = (_read(saved[f"lane_{name}"]) for name in ("documents", "epochs", "offsets"))
            waiting = [_Waiting(*_read(item).tolist()) for item in saved["waiting"]]
            numbers = {key: int(saved[key]) for key in ("step", "tokens", "epoch", "cursor")}
            if not len(documents) == len(epochs) == len(offsets) == saved["num_lanes"]:
                raise ValueError("columns of unequal length")
            if max([*documents.tolist(), *(item.document for item in waiting)]) >= len(self.lengths):
                raise ValueError("a document that the data set does not hold")
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"the data state is damaged ({what}); resume from another one") from None
        unfinished = (documents >= 0) & (offsets < self.lengths[documents])
        waiting = [
            _Waiting(int(documents[lane]), int(epochs[lane]), int(offsets[lane]), lane)
            for lane in range(self.num_lanes, len(documents))
            if unfinished[lane]
        ] + waiting
        kept, missing = slice(0, self.num_lanes), max(0, self.num_lanes - len(documents))
        lane_sources = [*range(self.num_lanes - missing), *[-1] * missing]
        self.carry_sources = np.array([*lane_sources, *(item.slot for item in waiting)], dtype=np.int64)
        self.state = PlanState(
            **numbers,
            documents=np.pad(documents[kept], (0, missing), constant_values=-1),
            epochs=np.pad(epochs[kept], (0, missing)),
            offsets=np.pad(offsets[kept], (0, missing)),
            waiting=tuple(replace(item, slot=self.num_lanes + i) for i, item in enumerate(waiting)),
        )

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
        for name in ("seed", "order", "shard_window"):
            present, before = getattr(self, name), saved.get(name)
            if present != before:
                raise UserError(
                    f"{name} is {present}, but the saved data state was made with {name} {before}; "
                    f"set it to {before}, or start a new run"
                )

    def _shuffle_keys(self, epoch: int, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        salt = _mixed(_mixed(np.array([self.seed % (1 << 64)], np.uint64)) + np.uint64(epoch))
        num_shards = int(self.shards.max()) + 1
        shard_hashes = _mixed(np.arange(num_shards, dtype=np.uint64) ^ salt)
        place = np.empty(num_shards, np.int64)
        place[np.argsort(shard_hashes, kind="stable")] = np.arange(num_shards)
        # Another salt than the shards': otherwise shard i and document i would get the same hash.
        document_hashes = _mixed(documents.astype(np.uint64) ^ _mixed(salt))
        keys: NDArray[np.int64] = np.lexsort((document_hashes, place[self.shards[documents]] // self.shard_window))
        return keys

    def _hash_of_lengths(self) -> str:
        return hashlib.sha256(self.lengths.tobytes() + self.shards.tobytes()).hexdigest()[:32]


class _Planner:
    """Moves a copy of a plan's state through one rollout."""

    def __init__(self, plan: LanePlan, state: PlanState) -> None:
        self._plan = plan
        self._state = state
        self._epoch, self._cursor = state.epoch, state.cursor
        self._documents, self._epochs, self._offsets = (
            column.copy() for column in (state.documents, state.epochs, state.offsets)
        )
        self._waiting = list(state.waiting)

    def take_waiting(self) -> NDArray[np.int64]:
        """Gives waiting documents to free lanes, in order; returns the slots they come from, -1 elsewhere."""
        taken = np.full(len(self._documents), -1, np.int64)
        for lane, item in zip(self._free_lanes(), list(self._waiting), strict=False):
            self._documents[lane], self._epochs[lane], self._offsets[lane] = item.document, item.epoch, item.offset
            taken[lane] = item.slot
            self._waiting.pop(0)
        return taken

    def next_segment(self) -> tuple[NDArray[np.int64], ...]:
        """Documents, epochs, starts and lengths of one segment, `[B]` each."""
        free = self._free_lanes()
        # As many free lanes as documents wait are kept for them until the next rollout.
        for lane in free[: max(0, len(free) - len(self._waiting))]:
            self._documents[lane], self._epochs[lane], self._offsets[lane] = self._next_document(), self._epoch, 0
        live = self._unfinished()
        starts = np.where(live, self._offsets, 0)
        remaining = self._plan.lengths[self._documents] - self._offsets
        lengths = np.where(live, np.minimum(self._plan.segment_length, remaining), 0)
        self._offsets += lengths
        return np.where(live, self._documents, -1), np.where(live, self._epochs, 0), starts, lengths

    def state_after(self, rollout: Rollout) -> PlanState:
        return PlanState(
            step=rollout.step + 1,
            tokens=self._state.tokens + rollout.valid_tokens,
            epoch=self._epoch,
            cursor=self._cursor,
            documents=self._documents,
            epochs=self._epochs,
            offsets=self._offsets,
            waiting=tuple(self._waiting),
        )

    def _unfinished(self) -> NDArray[np.bool_]:
        unfinished: NDArray[np.bool_] = (self._documents >= 0) & (self._offsets < self._plan.lengths[self._documents])
        return unfinished

    def _free_lanes(self) -> list[int]:
        free: list[int] = np.flatnonzero(~self._unfinished()).tolist()
        return free

    def _next_document(self) -> int:
        """The head of the queue, or -1 when the last epoch is used up."""
        while self._plan.epochs is None or self._epoch < self._plan.epochs:
            order = self._plan.document_order(self._epoch)
            if self._cursor < len(order):
                self._cursor += 1
                return int(order[self._cursor - 1])
            self._epoch, self._cursor = self._epoch + 1, 0
        return -1


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: the same numbers in every version of numpy, unlike its random streams."""
    mixed: NDArray[np.uint64]
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _written(numbers: NDArray[np.int64]) -> str:
    return " ".join(map(str, numbers.tolist()))


def _read(text: str) -> NDArray[np.int64]:
    return np.array([int(number) for number in text.split()], dtype=np.int64)
