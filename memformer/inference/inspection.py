# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the memory keeps of a document: the writer's attention by segment, as numbers.

A *write* is one update of the memory. Write 0 reads the start token, write n >= 1 reads segment n-1 of the document, as
in training and generation. Everything is summed up while reading: what is kept does not grow with the document.

Shapes: B lanes, S tokens a segment, K slots, D width, H writer heads, N writes, C columns (at most `COLUMNS`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data_pipeline import Tokenizer, UserError
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.models.slots import SlotWriter
from memformer.replay import Segment

KEPT, OVERWRITTEN = 0.8, 0.2  # bounds of a slot's weight on itself
COLUMNS = 256  # of a series by write; longer documents are averaged over neighbouring writes
BINS = 40  # of the histogram of weights
LANES = 16  # memories that are carried side by side after a perturbation
AROUND = 24  # bytes of text shown on either side of a token
PHASES = ("early", "middle", "all")
KINDS = ("kept", "mixed", "overwritten")
BY_HEAD = ("kept_by_head", "overwritten_by_head")

DEFINITIONS = {
    "self_weight": "the writer's softmax weight of a slot on itself, mean over its heads; 1 is an exact copy",
    "kept": f"self_weight above {KEPT}",
    "overwritten": f"self_weight below {OVERWRITTEN}",
    "mixed": "in between",
    "kept_by_head": "share of all heads of all slots whose own weight on itself is above 0.8; a slot counts as mixed "
    "where its heads do different things, too",
    "overwritten_by_head": "the same below 0.2",
    "early": "the first tenth of the writes, at least one",
    "middle": "the writes from the first quarter of the document to the third",
    "kind": "of a slot: by its mean self_weight over the middle writes",
    "took": "the tokens with the largest weight at the write that read them",
    "holds": "the tokens with the largest weight times the slot's self_weight in every later write: what is left of "
    "them at the end, apart from the bias and from differences between heads",
    "change": "mean over the slots of 1 - cosine between the memory before and after a write",
    "slot_cosine": "mean cosine between two different slots of the memory before a write",
    "perturbation": "L2 norm of the difference of two memories that read the same text, by writes since one of them "
    "was moved; a moved slot m is normalise(m + size * r) with r a random unit vector",
    "half_life": "writes until that norm is first below half of what it was at the start; null: not within the horizon",
}


class Token(NamedTuple):
    """A token that a slot attended to."""

    weight: float
    position: int  # in the document; -1 is the start token
    before: tuple[int, ...]
    token: int
    after: tuple[int, ...]


class MemoryInspector:
    """Reads one document and sums up what the writer does with the slots.

    Args:
        model: In evaluation mode, with memory slots, of a family that can be inspected.
        tokenizer: The model's, to make tokens readable.
        num_tokens: Length of the document, at least 1: places within it are told by it.
        horizon: Writes over which a perturbation is followed; 0: none is made.
        perturbation: Its size, relative to the slots' unit norm.
        top: Tokens kept a slot.
        seed: Of the perturbation's direction.
        segment_length: S; None: the length the model was trained with.

    Raises:
        UserError: The model has no memory slots, or nothing names a segment length.
    """

    def __init__(
        self,
        model: MemoryModel,
        tokenizer: Tokenizer,
        num_tokens: int,
        *,
        horizon: int = 32,
        perturbation: float = 0.1,
        top: int = 8,
        seed: int = 0,
        segment_length: int | None = None,
    ) -> None:
        length = segment_length or model.config.segment_length
        inspect = family_of(model.config).inspect
        if inspect is None:
            raise UserError(f"inspect-memory is not built for family {model.config.family}: it shows memory slots")
        try:
            self.writer: SlotWriter = inspect(model)
        except ValueError as error:
            raise UserError(str(error)) from None
        if length is None:
            raise UserError("config.json names no segment_length: export the model again")
        self.model, self.tokenizer, self.length, self.top = model, tokenizer, length, top
        self.num_tokens, self.perturbation = num_tokens, perturbation
        self.num_writes = 1 + math.ceil(num_tokens / length)
        self.num_columns = min(self.num_writes, COLUMNS)
        self.slots = model.config.memory_shape[0]
        self.device = model.device
        with torch.no_grad():
            self.memory_1KD = model.initial_memory(1).clone()
        self.done = 0
        self._rest = np.zeros(0, dtype=np.int64)
        self._weight_CK = np.zeros((self.num_columns, self.slots))
        self._series = {name: np.zeros(self.num_columns) for name in (*KINDS, "slot_cosine", "change", "writes")}
        self._phase_K = {phase: np.zeros(self.slots) for phase in PHASES}
        self._phase = {phase: dict.fromkeys((*KINDS, *BY_HEAD, "writes"), 0.0) for phase in PHASES}
        self._kept_K, self._overwritten_K = np.zeros(self.slots), np.zeros(self.slots)
        self._weight_KH: Any = 0.0
        self._histogram = np.zeros(BINS, dtype=np.int64)
        self._took: list[list[Token]] = [[] for _ in range(self.slots)]
        self._holds: list[list[Token]] = [[] for _ in range(self.slots)]
        # Late enough for the memory to have filled, early enough to see the horizon, where the document allows both.
        self.perturb_at = max(0, min(self.num_writes // 2, self.num_writes - horizon))
        self.horizon = min(horizon, self.num_writes - self.perturb_at)
        self._moved: torch.Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._distances: list[np.ndarray[Any, Any]] = []

    @torch.no_grad()
    def read(self, tokens: np.ndarray[Any, Any]) -> None:
        """Reads the next tokens of the document, any number of them."""
        if self.done == 0:
            self._write(np.array([self.model.config.start_token_id]), start=-1)
        self._rest = np.concatenate([self._rest, tokens.astype(np.int64)])
        while len(self._rest) >= self.length:
            segment, self._rest = self._rest[: self.length], self._rest[self.length :]
            self._write(segment, start=(self.done - 1) * self.length)

    def _write(self, tokens: np.ndarray[Any, Any], start: int) -> None:
        """One write; `start` is the position of the segment's first token."""
        segment = self._segment(tokens)
        self._follow(segment)
        weights, after = self.writer.write(segment, self.memory_1KD)
        weights = weights.double().cpu()  # [H, K, 1 + S]
        own_HK = weights[..., 0].numpy()
        self._count(own_HK, self.memory_1KD[0], after[0])
        self._attribute(own_HK.mean(0), weights[:, :, 1 : 1 + len(tokens)].mean(0), tokens, start)
        self.memory_1KD = after
        self.done += 1

    def _segment(self, tokens: np.ndarray[Any, Any]) -> Segment:
        # Write 0 is no reset: its memory is the initial one already, or that moved by a perturbation.
        padded = np.zeros((1, self.length), dtype=np.int64)
        padded[0, : len(tokens)] = tokens
        context = torch.from_numpy(padded).to(self.device)
        length = torch.full((1,), len(tokens), device=self.device)
        return Segment(context, length, context, length, length < 0, ragged=len(tokens) < self.length)

    def _count(self, own_HK: np.ndarray[Any, Any], before: torch.Tensor, after: torch.Tensor) -> None:
        own_K = own_HK.mean(0)
        kept, overwritten = own_K > KEPT, own_K < OVERWRITTEN
        shares = {"kept": kept.mean(), "overwritten": overwritten.mean()}
        shares["mixed"] = 1 - shares["kept"] - shares["overwritten"]
        column = self.done * self.num_columns // self.num_writes
        self._weight_CK[column] += own_K
        change = 1 - F.cosine_similarity(before.float(), after.float(), dim=-1).mean().item()
        values = {**shares, "slot_cosine": mean_cosine(before), "change": change, "writes": 1.0}
        for name, value in values.items():
            self._series[name][column] += value
        values["kept_by_head"], values["overwritten_by_head"] = (own_HK > KEPT).mean(), (own_HK < OVERWRITTEN).mean()
        for phase in self._phases():
            self._phase_K[phase] += own_K
            for name in (*KINDS, *BY_HEAD, "writes"):
                self._phase[phase][name] += values[name]
        self._kept_K += kept
        self._overwritten_K += overwritten
        self._weight_KH = self._weight_KH + own_HK.T
        self._histogram += np.histogram(own_K, bins=BINS, range=(0, 1))[0]

    def _phases(self) -> Iterator[str]:
        first = self.num_writes // 4
        yield "all"
        if self.done < max(1, self.num_writes // 10):
            yield "early"
        if first <= self.done < max(first + 1, 3 * self.num_writes // 4):
            yield "middle"

    def _attribute(
        self, own_K: np.ndarray[Any, Any], weights_KS: torch.Tensor, tokens: np.ndarray[Any, Any], start: int
    ) -> None:
        """Keeps, for each slot, the tokens with most weight, and those with most weight left."""
        best = weights_KS.topk(min(self.top, len(tokens)), dim=-1)
        for slot, own in enumerate(own_K.tolist()):
            left = [token._replace(weight=token.weight * own) for token in self._holds[slot]]
            found = [
                self._token(weight, place, tokens, start)
                for weight, place in zip(best.values[slot].tolist(), best.indices[slot].tolist(), strict=True)
            ]
            # All that is held shrinks by one factor a write, so what drops out of the list could never come back.
            self._holds[slot] = sorted([*left, *found], reverse=True)[: self.top]
            self._took[slot] = sorted([*self._took[slot], *found], reverse=True)[: self.top]

    def _token(self, weight: float, place: int, tokens: np.ndarray[Any, Any], start: int) -> Token:
        before = tuple(tokens[max(0, place - AROUND) : place].tolist())
        after = tuple(tokens[place + 1 : place + 1 + AROUND].tolist())
        return Token(weight, start + place, before, int(tokens[place]), after)

    def _follow(self, segment: Segment) -> None:
        """Starts the perturbation, or carries it through the write that comes next."""
        step = self.done - self.perturb_at
        if not self.horizon or not 0 <= step <= self.horizon:
            return
        if self._moved is None:
            # Row 0: all slots moved, each by its own vector; row 1 + k: slot k alone, by the same vector.
            noise_KD = F.normalize(torch.randn(self.memory_1KD.shape[1:], generator=self._generator), dim=-1)
            moved_KD = F.normalize(self.memory_1KD[0] + self.perturbation * noise_KD.to(self.memory_1KD), dim=-1)
            alone = torch.eye(self.slots, device=self.device, dtype=torch.bool)[:, :, None]
            self._moved = torch.cat([moved_KD[None], torch.where(alone, moved_KD, self.memory_1KD)])
        self._distances.append(self._distance())
        if step < self.horizon:
            parts = torch.split(self._moved, LANES)
            self._moved = torch.cat([self.model.advance(_repeated(segment, len(part)), part) for part in parts])

    def _distance(self) -> np.ndarray[Any, Any]:
        """Norm of each moved memory's difference to the memory, [1 + K]."""
        assert self._moved is not None
        distances: np.ndarray[Any, Any] = (self._moved - self.memory_1KD).double().flatten(1).norm(dim=1).cpu().numpy()
        return distances

    @torch.no_grad()
    def report(self) -> dict[str, Any]:
        """Ends the document; everything as JSON-ready values.

        Returns:
            definitions; document; model; shares (by phase); columns (series by write); histogram (of self_weight);
            slots; bias_norm_by_kind; similarity (cosines of the last memory); perturbation.
        """
        if len(self._rest):
            self._write(self._rest, start=(self.done - 1) * self.length)
            self._rest = self._rest[:0]
        if self._moved is not None and len(self._distances) <= self.horizon:
            self._distances.append(self._distance())
        writes_C = self._series["writes"]
        middle_K = self._phase_K["middle"] / max(1.0, self._phase["middle"]["writes"])
        kinds = ["kept" if own > KEPT else "overwritten" if own < OVERWRITTEN else "mixed" for own in middle_K]
        norms = self.writer.bias_norms()
        unit_KD = F.normalize(self.memory_1KD[0].float(), dim=-1)
        report = {
            "definitions": DEFINITIONS,
            "document": {"tokens": self.num_tokens, "segment_length": self.length, "writes": self.done},
            "model": self.writer.facts(),
            "shares": {
                phase: {
                    **{
                        name: float(self._phase[phase][name]) / max(1.0, self._phase[phase]["writes"])
                        for name in (*KINDS, *BY_HEAD)
                    },
                    "self_weight": float(self._phase_K[phase].mean()) / max(1.0, self._phase[phase]["writes"]),
                    "writes": int(self._phase[phase]["writes"]),
                }
                for phase in PHASES
            },
            "columns": {
                "first_write": [math.ceil(c * self.done / self.num_columns) for c in range(self.num_columns)],
                "self_weight": (self._weight_CK / writes_C[:, None]).tolist(),
                **{name: (self._series[name] / writes_C).tolist() for name in (*KINDS, "slot_cosine", "change")},
            },
            "histogram": {
                "edges": np.linspace(0, 1, BINS + 1).tolist(),
                "slots_times_writes": self._histogram.tolist(),
            },
            "slots": [
                {
                    "slot": slot,
                    "kind": kinds[slot],
                    "self_weight": float(self._phase_K["all"][slot]) / self.done,
                    "self_weight_middle": float(middle_K[slot]),
                    "self_weight_by_head": (self._weight_KH[slot] / self.done).tolist(),
                    "kept": float(self._kept_K[slot]) / self.done,
                    "overwritten": float(self._overwritten_K[slot]) / self.done,
                    "bias_norm": None if norms is None else norms[slot],
                    "took": [self._readable(token) for token in self._took[slot]],
                    "holds": [self._readable(token) for token in self._holds[slot]],
                }
                for slot in range(self.slots)
            ],
            "bias_norm_by_kind": None if norms is None else by_kind(kinds, norms),
            "bias_norm_correlation": None if norms is None else correlation(norms, middle_K),
            "similarity": {
                "cosine": (unit_KD @ unit_KD.T).tolist(),
                "mean": mean_cosine(self.memory_1KD[0]),
            },
            "perturbation": self._survival(),
        }
        result: dict[str, Any] = rounded(report)
        return result

    def _readable(self, token: Token) -> dict[str, Any]:
        decode = self.tokenizer.decode
        text = "<start>" if token.position < 0 else decode([token.token])
        around = {"before": decode(token.before)[-AROUND:], "after": decode(token.after)[:AROUND]}
        return {"weight": token.weight, "position": token.position, "text": text, **around}

    def _survival(self) -> dict[str, Any] | None:
        if not self._distances:
            return None
        distances = np.stack(self._distances, axis=1)  # [1 + K, horizon + 1]
        below = distances < distances[:, :1] / 2
        lives = [int(row.argmax()) if row.any() else None for row in below]
        return {
            "at_write": self.perturb_at,
            "size": self.perturbation,
            "all_slots": distances[0].tolist(),
            "each_slot": distances[1:].tolist(),
            "half_life_all_slots": lives[0],
            "half_life_each_slot": lives[1:],
        }


def inspect_tokens(
    model: MemoryModel, tokenizer: Tokenizer, pieces: Sequence[np.ndarray[Any, Any]], **options: Any
) -> dict[str, Any]:
    """The report on a document that lies in memory; options are `MemoryInspector`'s."""
    inspector = MemoryInspector(model, tokenizer, sum(map(len, pieces)), **options)
    for piece in pieces:
        inspector.read(piece)
    return inspector.report()


def _repeated(segment: Segment, lanes: int) -> Segment:
    """The segment of one lane in several lanes."""
    tokens, flags = segment.context.expand(lanes, -1), segment.reset.expand(lanes)
    lengths = segment.context_length.expand(lanes)
    return Segment(tokens, lengths, tokens, lengths, flags, segment.ragged)


def mean_cosine(memory_KD: torch.Tensor) -> float:
    """Mean cosine between two different slots; 0 where there is but one."""
    unit_KD = F.normalize(memory_KD.float(), dim=-1)
    slots = len(unit_KD)
    return float((unit_KD.sum(0).square().sum() - slots) / max(1, slots * (slots - 1))) if slots > 1 else 0.0


def by_kind(kinds: Sequence[str], norms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Number of slots and mean bias norm of each kind."""
    found = {}
    for kind in KINDS:
        of_kind = [norm for each, norm in zip(kinds, norms, strict=True) if each == kind]
        found[kind] = {"slots": len(of_kind), "mean": float(np.mean(of_kind)) if of_kind else None}
    return found


def correlation(norms: Sequence[float], weights_K: np.ndarray[Any, Any]) -> float | None:
    """Pearson's r between bias norm and self_weight over the slots; None where either does not vary."""
    if len(norms) < 3 or np.std(norms) < 1e-12 or np.std(weights_K) < 1e-12:
        return None
    return float(np.corrcoef(norms, weights_K)[0, 1])


def rounded(value: Any) -> Any:
    """The value with six significant digits, which is all that float32 has and keeps the file small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return value
