# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the memory keeps of a document: what the writer and the bias leave of each slot by segment, as numbers.

A *write* is one update of the memory (`DocumentReader`: what it reads). Everything is summed up while reading: what is
kept does not grow with the document.

One account of forgetting is behind every figure: a write leaves `retention` of a slot, its weight on itself divided by
the length that normalisation takes away, which the bias adds to. Kinds of slots go by it, what a slot holds of a token
shrinks by it, and the moved memory, which is measured, has it drawn beside.

Shapes: B lanes, S tokens a segment, K slots, D width, H writer heads, N writes, C columns (at most `COLUMNS`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data_pipeline import Tokenizer, UserError
from memformer.inference.attended import AROUND, AttendedTokens, Token
from memformer.inference.document import COLUMNS as COLUMNS
from memformer.inference.document import DocumentReader
from memformer.inference.perturbation import DIED, MOVED_ALONE, Perturbation
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.models.slots import SlotWriter
from memformer.replay import Segment

KEPT, OVERWRITTEN = 0.8, 0.2  # bounds of what a write leaves of a slot
BINS = 40  # of the histograms
PENDING = 64  # writes that are summed up at once
PHASES = ("early", "middle", "all")
KINDS = ("kept", "mixed", "overwritten")
BY_HEAD = ("kept_by_head", "overwritten_by_head")
WRITERS = tuple(f"writer_{kind}" for kind in KINDS)

DEFINITIONS = {
    "self_weight": "the writer's softmax weight of a slot on itself, mean over its heads; 1: the writer copies it, and "
    "forgetting comes after",
    "retention": "what a write leaves of a difference in a slot, forgetting included: the slot's weight on itself "
    "divided by the length of what is normalised (slot as written, plus what of the bias the model's forgetting adds: "
    "none, the overwritten share of it, or all), mean over the "
    "heads; of what lies across the slot, without what a changed slot changes in reading and attending",
    "kept": f"retention above {KEPT}",
    "overwritten": f"retention below {OVERWRITTEN}: by what was read or by the bias",
    "mixed": "in between",
    "kept_by_head": f"share of all heads of all slots whose own retention is above {KEPT}; a slot counts as mixed "
    "where its heads do different things, too",
    "overwritten_by_head": f"the same below {OVERWRITTEN}",
    "writer_kept, writer_mixed, writer_overwritten": "the same bounds for self_weight: what the writer does, before "
    "forgetting",
    "early": "the first tenth of the writes, at least one",
    "middle": "the writes from the first quarter of the document to the third",
    "kind": "of a slot: by its mean retention over the middle writes; writer_kind: by its mean self_weight",
    "took": "the tokens with the largest weight at the write that read them, mean over the heads",
    "holds": "the tokens with the largest weight times the retention of every later write, by head, mean over the "
    "heads: what is left of them at the end; of the tokens of which each head has most left",
    "change": "mean over the slots of 1 - cosine between the memory before and after a write",
    "slot_cosine": "mean cosine between two different slots of the memory before a write",
    "bias_norm_correlation": "Pearson's r of a slot's bias norm and its mean self_weight over the middle writes",
    "perturbation": "L2 norm of the difference of two memories that read the same text, by writes since one of them "
    "was moved, at one write in the middle of the text; a moved slot m is normalise(m + size * r) with r a random unit "
    f"vector. Followed for `horizon` writes or until {DIED:g} of the start is left; of more than {MOVED_ALONE} slots, "
    "as many evenly spread are moved alone (null: the others)",
    "expected": "the same norms by the product of the retention of each head since",
    "half_life": "writes until that norm is first below half of what it was at the start; null: not within the horizon",
}


class _Measured(NamedTuple):
    """Figures of one write that are summed up later."""

    own_HK: torch.Tensor
    retained_HK: torch.Tensor
    change: torch.Tensor
    slot_cosine: torch.Tensor


class MemoryInspector(DocumentReader):
    """Reads one document and sums up what becomes of the slots.

    Args:
        model: In evaluation mode, with memory slots, of a family that can be inspected.
        tokenizer: The model's, to make tokens readable.
        num_tokens: Length of the document, at least 1: places within it are told by it.
        horizon: Writes over which a perturbation is followed at most; 0: none is made.
        perturbation: Its size, relative to the slots' unit norm.
        top: Tokens kept a slot.
        seed: Of the perturbation's direction.
        segment_length: S; None: the length the model was trained with.
        progress: Told after each write how many are done, of how many.

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
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        inspect = family_of(model.config).inspect
        if inspect is None:
            raise UserError(f"inspect-memory is not built for family {model.config.family}: it shows memory slots")
        try:
            self.writer: SlotWriter = inspect(model)
        except ValueError as error:
            raise UserError(str(error)) from None
        super().__init__(model, num_tokens, self.writer.reads_targets, segment_length, progress)
        self.tokenizer, self.top, self.perturbation, self.seed = tokenizer, top, perturbation, seed
        self.slots = model.config.memory_shape[0]
        self._weight_CK, self._retained_CK = np.zeros((2, self.num_columns, self.slots))
        self._series = {name: np.zeros(self.num_columns) for name in (*KINDS, "slot_cosine", "change", "writes")}
        self._own_phase = {phase: np.zeros(self.slots) for phase in PHASES}
        self._retained_phase = {phase: np.zeros(self.slots) for phase in PHASES}
        self._phase = {phase: dict.fromkeys((*KINDS, *BY_HEAD, *WRITERS, "writes"), 0.0) for phase in PHASES}
        self._kept_K, self._overwritten_K = np.zeros((2, self.slots))
        self._weight_KH: Any = 0.0
        self._retained_KH: Any = 0.0
        self._own_bins, self._retained_bins = np.zeros((2, BINS), dtype=np.int64)
        self._tokens: AttendedTokens | None = None
        self._pending: list[_Measured] = []
        # Late enough for the memory to have filled, early enough to see the horizon, where the document allows both.
        self.perturb_at = max(0, min(self.num_writes // 2, self.num_writes - horizon))
        self.horizon = min(horizon, self.num_writes - self.perturb_at)
        self._study: Perturbation | None = None

    def _write(self, segment: Segment, tokens: np.ndarray[Any, Any], start: int) -> None:
        before = self.memory
        if self.horizon and self.done == self.perturb_at:
            self._study = Perturbation(
                self.model,
                before,
                size=self.perturbation,
                horizon=self.horizon,
                at_write=self.perturb_at,
                seed=self.seed,
            )
        weights_HKL, retained_HK, self.memory = self.writer.write(segment, before)
        if self._study is not None and not self._study.ended:
            self._study.follow(segment, retained_HK, self.memory)
        if self._tokens is None:
            self._tokens = AttendedTokens(self.slots, len(weights_HKL), self.top, self.device)
        self._tokens.add(weights_HKL[:, :, 1 : 1 + len(tokens)], retained_HK, tokens, start)
        change = 1 - F.cosine_similarity(before.float(), self.memory.float(), dim=-1).mean()
        self._pending.append(_Measured(weights_HKL[..., 0].clone(), retained_HK, change, mean_cosine(before[0])))
        if len(self._pending) == PENDING:
            self._sum_up(self.done + 1)

    def _sum_up(self, done: int) -> None:
        """Adds the pending writes, the last of so many, to the sums."""
        if not self._pending:
            return
        own_NHK, retained_NHK, change_N, cosine_N = (
            torch.stack(each).double().cpu().numpy() for each in zip(*self._pending, strict=True)
        )
        writes_N = np.arange(done - len(self._pending), done)
        self._pending = []
        own_NK, retained_NK = own_NHK.mean(1), retained_NHK.mean(1)
        shares = {
            **shares_of_kinds(retained_NK),
            **{f"writer_{kind}": share for kind, share in shares_of_kinds(own_NK).items()},
            "kept_by_head": (retained_NHK > KEPT).mean((1, 2)),
            "overwritten_by_head": (retained_NHK < OVERWRITTEN).mean((1, 2)),
            "writes": np.ones(len(writes_N)),
        }
        column_N = writes_N * self.num_columns // self.num_writes
        np.add.at(self._weight_CK, column_N, own_NK)
        np.add.at(self._retained_CK, column_N, retained_NK)
        for name, sums_C in self._series.items():
            np.add.at(sums_C, column_N, {**shares, "slot_cosine": cosine_N, "change": change_N}[name])
        for phase, chosen_N in self._phases(writes_N).items():
            self._own_phase[phase] += own_NK[chosen_N].sum(0)
            self._retained_phase[phase] += retained_NK[chosen_N].sum(0)
            for name in self._phase[phase]:
                self._phase[phase][name] += float(shares[name][chosen_N].sum())
        self._kept_K += (retained_NK > KEPT).sum(0)
        self._overwritten_K += (retained_NK < OVERWRITTEN).sum(0)
        self._weight_KH = self._weight_KH + own_NHK.sum(0).T
        self._retained_KH = self._retained_KH + retained_NHK.sum(0).T
        self._own_bins += np.histogram(own_NK, bins=BINS, range=(0, 1))[0]
        self._retained_bins += np.histogram(retained_NK.clip(0, 1), bins=BINS, range=(0, 1))[0]

    def _phases(self, writes_N: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Which of the writes are of each phase."""
        first = self.num_writes // 4
        return {
            "early": writes_N < max(1, self.num_writes // 10),
            "middle": (writes_N >= first) & (writes_N < max(first + 1, 3 * self.num_writes // 4)),
            "all": writes_N >= 0,
        }

    def report(self) -> dict[str, Any]:
        """Ends the document; everything as JSON-ready values.

        Returns:
            definitions; document; model; shares (by phase); columns (series by write); histogram (of retention and
            self_weight); slots; bias_norm_by_kind; similarity (cosines of the last memory); perturbation.
        """
        self.end()
        self._sum_up(self.done)
        middle = max(1.0, self._phase["middle"]["writes"])
        own_K, retained_K = self._own_phase["middle"] / middle, self._retained_phase["middle"] / middle
        kinds, writer_kinds = [kind_of(each) for each in retained_K], [kind_of(each) for each in own_K]
        norms = self.writer.bias_norms()
        unit_KD = F.normalize(self.memory[0].float(), dim=-1)
        report = {
            "definitions": DEFINITIONS,
            "document": {"tokens": self.num_tokens, "segment_length": self.length, "writes": self.done},
            "model": self.writer.facts(),
            "shares": {phase: self._shares(phase) for phase in PHASES},
            "columns": self._columns(),
            "histogram": {
                "edges": np.linspace(0, 1, BINS + 1).tolist(),
                "slots_times_writes": self._retained_bins.tolist(),
                "slots_times_writes_by_self_weight": self._own_bins.tolist(),
            },
            "slots": self._slots(kinds, writer_kinds, retained_K, own_K, norms),
            "bias_norm_by_kind": None if norms is None else by_kind(kinds, norms),
            "bias_norm_by_writer_kind": None if norms is None else by_kind(writer_kinds, norms),
            "bias_norm_correlation": None if norms is None else correlation(norms, own_K),
            "similarity": {
                "cosine": (unit_KD @ unit_KD.T).tolist(),
                "mean": float(mean_cosine(self.memory[0])),
            },
            "perturbation": None if self._study is None else self._study.report(),
        }
        result: dict[str, Any] = rounded(report)
        return result

    def _shares(self, phase: str) -> dict[str, float | int]:
        sums = dict(self._phase[phase])
        writes = sums.pop("writes")
        means = {name: each / max(1.0, writes) for name, each in sums.items()}
        means["retention"] = float(self._retained_phase[phase].mean()) / max(1.0, writes)
        means["self_weight"] = float(self._own_phase[phase].mean()) / max(1.0, writes)
        return {**means, "writes": int(writes)}

    def _columns(self) -> dict[str, Any]:
        writes_C = self._series["writes"]
        return {
            "first_write": self.first_writes(),
            "retention": (self._retained_CK / writes_C[:, None]).tolist(),
            "self_weight": (self._weight_CK / writes_C[:, None]).tolist(),
            **{name: (self._series[name] / writes_C).tolist() for name in (*KINDS, "slot_cosine", "change")},
        }

    def _slots(
        self,
        kinds: Sequence[str],
        writer_kinds: Sequence[str],
        retained_K: np.ndarray[Any, Any],
        own_K: np.ndarray[Any, Any],
        norms: Sequence[float] | None,
    ) -> list[dict[str, Any]]:
        assert self._tokens is not None, "write 0 has been"
        took, holds = self._tokens.took(), self._tokens.holds()
        return [
            {
                "slot": slot,
                "kind": kinds[slot],
                "writer_kind": writer_kinds[slot],
                "retention": float(self._retained_phase["all"][slot]) / self.done,
                "retention_middle": float(retained_K[slot]),
                "retention_by_head": (self._retained_KH[slot] / self.done).tolist(),
                "self_weight": float(self._own_phase["all"][slot]) / self.done,
                "self_weight_middle": float(own_K[slot]),
                "self_weight_by_head": (self._weight_KH[slot] / self.done).tolist(),
                "kept": float(self._kept_K[slot]) / self.done,
                "overwritten": float(self._overwritten_K[slot]) / self.done,
                "bias_norm": None if norms is None else norms[slot],
                "took": [self._readable(token) for token in took[slot]],
                "holds": [self._readable(token) for token in holds[slot]],
            }
            for slot in range(self.slots)
        ]

    def _readable(self, token: Token) -> dict[str, Any]:
        decode = self.tokenizer.decode
        text = "<start>" if token.position < 0 else decode([token.token])
        around = {"before": decode(token.before)[-AROUND:], "after": decode(token.after)[:AROUND]}
        return {"weight": token.weight, "position": token.position, "text": text, **around}


def inspect_tokens(
    model: MemoryModel, tokenizer: Tokenizer, pieces: Sequence[np.ndarray[Any, Any]], **options: Any
) -> dict[str, Any]:
    """The report on a document that lies in memory; options are `MemoryInspector`'s."""
    inspector = MemoryInspector(model, tokenizer, sum(map(len, pieces)), **options)
    for piece in pieces:
        inspector.read(piece)
    return inspector.report()


def kind_of(left: float) -> str:
    """What is said of a slot of which a write leaves so much."""
    return "kept" if left > KEPT else "overwritten" if left < OVERWRITTEN else "mixed"


def shares_of_kinds(left_NK: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The share of the slots that is of each kind, by write."""
    kept, overwritten = (left_NK > KEPT).mean(1), (left_NK < OVERWRITTEN).mean(1)
    return {"kept": kept, "mixed": 1 - kept - overwritten, "overwritten": overwritten}


def mean_cosine(memory_KD: torch.Tensor) -> torch.Tensor:
    """Mean cosine between two different slots, a scalar; 0 where there is but one."""
    unit_KD = F.normalize(memory_KD.float(), dim=-1)
    slots = len(unit_KD)
    return (unit_KD.sum(0).square().sum() - slots) / max(1, slots * (slots - 1)) * (slots > 1)


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
