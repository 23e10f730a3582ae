# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Perplexity of held-out documents: with the memory carried, with it reset at every segment, by position.

Both figures see the previous segment; "reset" takes away only what the memory carries from before it.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from data_pipeline import SegmentBatch
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel
from memformer.processes.group import all_sum
from memformer.replay import Carry
from memformer.run.data import rollout_of
from memformer.run.metrics import perplexity

MODES = ("with_memory", "memory_reset")
BUCKETS = 40


@dataclasses.dataclass(frozen=True)
class Score:
    """Losses of one mode, summed over all processes.

    Attributes:
        losses: Nats by bucket of position, times the targets' weights, float64 [BUCKETS].
        tokens: Targets by bucket, float64 [BUCKETS].
        counted: Sum of the targets' weights by bucket, float64 [BUCKETS]; their number where the data has no weights.
        weighted: Whether the data has weights.
        segment_length: Tokens S of a segment; bucket 0 is positions below S, bucket b >= 1 is 2^(b-1)*S .. 2^b*S - 1.
    """

    losses: torch.Tensor
    tokens: torch.Tensor
    counted: torch.Tensor
    weighted: bool
    segment_length: int

    def report(self) -> dict[str, Any]:
        """Loss in nats a token, perplexity, tokens, and the same by position, JSON-ready.

        Of data with loss weights they are means by these, `counted_tokens` is the sum of the weights, and positions of
        which no token counts are left out. Loss and perplexity are None where no token counts at all.
        """
        rows = []
        for bucket, counted in enumerate(self.counted.tolist()):
            if counted:
                start = 0 if bucket == 0 else self.segment_length << (bucket - 1)
                rows.append(
                    {"from": start, "to": self.segment_length << bucket, **self._figures(slice(bucket, bucket + 1))}
                )
        return {**self._figures(slice(None)), "by_position": rows}

    def _figures(self, buckets: slice) -> dict[str, Any]:
        loss, tokens, counted = (float(each[buckets].sum()) for each in (self.losses, self.tokens, self.counted))
        mean = loss / counted if counted else None
        figures = {"loss": mean, "perplexity": None if mean is None else perplexity(mean), "tokens": int(tokens)}
        return figures | ({"counted_tokens": counted} if self.weighted else {})


@torch.no_grad()
def evaluate(
    model: MemoryModel,
    batches: Iterable[SegmentBatch],
    device: torch.device,
    *,
    max_segments: int | None = None,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
    total: Callable[[torch.Tensor], torch.Tensor] = all_sum,
) -> dict[str, Score]:
    """Scores documents in both modes, in one pass at constant memory, by their loss weights where they have any.

    Called by all processes with their own lanes; the result is the same on all.

    Args:
        model: The model; put into evaluation mode for the time.
        batches: One epoch of segments, e.g. a `SegmentStream` with epochs=1.
        device: Where the model lies.
        max_segments: Segments a lane at most; None: all.
        autocast: The precision to compute in; None: the weights' own.
        total: Sums a tensor over the replicas, in place.
    """
    sums = {mode: torch.zeros(3, BUCKETS, dtype=torch.float64, device=device) for mode in MODES}
    carries: dict[str, Carry] = {}
    length, weighted = 0, False
    with evaluation_mode(model), autocast or contextlib.nullcontext():
        for done, batch in enumerate(batches):
            if max_segments is not None and done * batch.tokens.shape[1] >= max_segments:
                break
            rollout, length = rollout_of(batch, device), batch.tokens.shape[2]
            weighted = rollout.loss_weights is not None
            buckets = torch.from_numpy(batch.starts // length).to(device)
            # Segment number n of a document lies in bucket 0 for n = 0, else floor(log2 n) + 1.
            buckets = torch.where(buckets > 0, torch.log2(buckets.clamp(min=1).double()).floor().long() + 1, 0)
            initial = model.initial_memory(len(batch.tokens)).clone()
            for mode, t in itertools.product(MODES, range(rollout.num_segments)):
                if t == 0:
                    carries.setdefault(mode, Carry.empty(initial, length))
                    memory = carries[mode].memory
                segment = rollout.segment(t, carries[mode])
                losses, memory = model.losses(segment, memory if mode == "with_memory" else initial)
                found = segment.weighted(losses).sum(1, dtype=torch.float64)
                for row, each in zip(sums[mode], (found, segment.target_length, segment.counted), strict=True):
                    row.index_add_(0, buckets[:, t], each.double())
                if t == rollout.num_segments - 1:
                    carries[mode] = rollout.carry(memory)
    totals = {mode: total(each).cpu() for mode, each in sums.items()}
    return {mode: Score(each[0], each[1], each[2], weighted, length) for mode, each in totals.items()}
