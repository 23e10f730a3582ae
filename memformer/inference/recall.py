# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a memory keeps of a document that is not slots which attend: its figures by segment, and what its keys recall.

Of a memory of keys and values, what the last `horizon` writes wrote is read again after every later one, by the keys
that it was written with: how much of it is there is measured, not inferred from gates. What is kept meanwhile grows
with the horizon, not with the document.

Shapes: n layers, C columns (at most `COLUMNS`), M things written a segment, P features, D width.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from data_pipeline import UserError
from memformer.inference.diagnostics import Figures, pooled
from memformer.inference.document import DocumentReader
from memformer.inference.inspection import rounded
from memformer.models.looking import Association, Figure, Looked
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.replay import Segment

DEFINITIONS = {
    "norm": "size of the memory after a write: of a layer's matrix the Frobenius norm; of memory tokens the mean L2 "
    "norm of one",
    "rank": "effective rank of a layer's matrix after a write, (sum of s^2)^2 / sum of s^4 over its singular values s",
    "change": "norm of the difference that a write makes, divided by the norm after it",
    "retention": "norm of what a write would leave of the matrix if it wrote zeros by the same keys and gates, divided "
    "by the norm before it",
    "gate": "mean of the gate b of what is written, 0 to 1",
    "read": "norm of what a layer reads from the memory divided by that of the stream that it is added to",
    "recall": "what the keys of a write read so many writes later, along the values that were written: the sum of "
    "<read, value> divided by the sum of <value, value>; 1: all of it, 0: none. At distance 0, right after the write",
    "error": "norm of (read - value) divided by that of the values",
    "distinct": "recall of what sets the values apart: both what is read and the values less the mean of all values up "
    "to their write. A memory that says the same to every key has recall 1 where values are alike, but distinct 0",
    "recall_before, distinct_before": "the same by the same keys from the memory before the write: what is there "
    "without it",
    "half_life": "the first distance whose distinct is below half of that at distance 0; null: not within the horizon",
}


class _Written(NamedTuple):
    write: int
    association: Association
    mean_D: torch.Tensor


class RecallInspector(DocumentReader):
    """Reads one document and sums up what its writes do to the memory.

    Args:
        model: In evaluation mode, of a family with `look`.
        num_tokens: Length of the document, at least 1.
        horizon: Writes over which values are read again at most.
        segment_length: S; None: the length the model was trained with.
        progress: Told after each write how many are done, of how many.

    Raises:
        UserError: The family has no `look`, or nothing names a segment length.
    """

    def __init__(
        self,
        model: MemoryModel,
        num_tokens: int,
        *,
        horizon: int = 32,
        segment_length: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        look = family_of(model.config).look
        if look is None:
            raise UserError(f"inspect-memory is not built for family {model.config.family}")
        super().__init__(model, num_tokens, True, segment_length, progress)
        self._look = look
        self.horizon = min(horizon, self.num_writes - 1)
        self._columns: list[dict[str, Figure]] = [{} for _ in range(self.num_columns)]
        self._kept: deque[list[_Written]] = deque(maxlen=self.horizon + 1)
        self._sums: Any = None  # [5, horizon + 1, n]: those of `compared`
        self._before_sums: Any = None  # [5, n]
        self._values: list[Any] = []  # by layer, the sum of all values
        self._count = 0  # of the values of a layer

    def _write(self, segment: Segment, tokens: np.ndarray[Any, Any], start: int) -> None:
        before = self.memory
        looked: Looked = self._look(self.model, segment, before)
        self.memory = looked.memory
        column = self._columns[self.done * self.num_columns // self.num_writes]
        for name, figure in looked.figures.items():
            part, whole = figure.part.double().cpu(), figure.whole.double().cpu()
            if name in column:
                part, whole = column[name].part + part, column[name].whole + whole
            column[name] = Figure(part, whole, figure.squares)
        if looked.associations:
            self._recall(looked, before)

    def _recall(self, looked: Looked, before: torch.Tensor) -> None:
        """Reads what the last writes wrote, this one among them, from the memory as it is now."""
        if self._sums is None:
            self._sums = np.zeros((5, self.horizon + 1, len(looked.associations)))
            self._before_sums = np.zeros((5, len(looked.associations)))
            self._values = [0.0] * len(looked.associations)
        now = []
        self._count += looked.associations[0].values.shape[1]
        for layer, each in enumerate(looked.associations):
            self._values[layer] = self._values[layer] + each.values[0].double().sum(0)
            now.append(_Written(self.done, each, self._values[layer] / self._count))
            self._before_sums[:, layer] += compared(each, before, now[layer].mean_D)
        self._kept.append(now)
        for layers in self._kept:
            for layer, (write, each, mean_D) in enumerate(layers):
                self._sums[:, self.done - write, layer] += compared(each, looked.memory, mean_D)

    def report(self) -> dict[str, Any]:
        """Ends the document; everything as JSON-ready values.

        Returns:
            definitions; document; model; figures (of the whole document); columns (the same by write); recall (by
            distance and layer; null for a memory without keys). A figure by layer is a list.
        """
        self.end()
        config = self.model.config
        whole: dict[str, Figure] = {}
        for column in self._columns:
            for name, figure in column.items():
                part, total = (0, 0) if name not in whole else whole[name][:2]
                whole[name] = Figure(figure.part + part, figure.whole + total, figure.squares)
        columns = [_values(column) for column in self._columns]
        result: dict[str, Any] = rounded(
            {
                "definitions": DEFINITIONS,
                "document": {"tokens": self.num_tokens, "segment_length": self.length, "writes": self.done},
                "model": {"family": config.family, "summary": config.summary(), **config.rows()},
                "figures": _values(whole),
                "columns": {
                    "first_write": self.first_writes(),
                    **{name: [column[name] for column in columns] for name in whole},
                },
                "recall": None if self._sums is None else self._recalled(),
            }
        )
        return result

    def _recalled(self) -> dict[str, Any]:
        along, values, errors, apart, own = self._sums
        distinct_XN = ratio(apart, own)
        half_N = [next((x for x, left in enumerate(left_X) if left < left_X[0] / 2), None) for left_X in distinct_XN.T]
        before = self._before_sums
        return {
            "distance": list(range(len(values))),
            "recall": ratio(along, values).tolist(),
            "error": np.sqrt(ratio(errors, values)).tolist(),
            "distinct": distinct_XN.tolist(),
            "recall_before": ratio(before[0], before[1]).tolist(),
            "distinct_before": ratio(before[3], before[4]).tolist(),
            "half_life": half_N,
        }


def compared(each: Association, memory: torch.Tensor, mean_D: torch.Tensor) -> list[float]:
    """What keys read from a memory, beside the values.

    Returns:
        Sums of <read, value>, <value, value>, |read - value|^2, and the first two of what both are less a mean.
    """
    with torch.autocast(memory.device.type, enabled=False):  # of the training, between whose steps it is looked at
        read, values = each.recall(each.keys, memory).double(), each.values.double()
    apart = values - mean_D
    products = (read * values, values.square(), (read - values).square(), (read - mean_D) * apart, apart.square())
    found: list[float] = torch.stack([product.sum() for product in products]).tolist()
    return found


def ratio(part: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """part / whole, 0 where there is no whole."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0)


def _values(figures: dict[str, Figure]) -> Figures:
    return pooled(figures, torch.ones(1, dtype=torch.bool), lambda sums: sums)
