# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Perplexity of held-out documents: with the memory carried, with it reset at every segment, by position.

Both figures see the previous segment; "reset" takes away only what the memory carries from before it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch

from data_pipeline import SegmentBatch
from memformer.models.evaluation_mode import evaluation_mode
from memformer.models.protocol import MemoryModel, Wavefront
from memformer.processes.group import all_sum
from memformer.replay import Carry, DecoderApart, DecoderGroups, Segment
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
    from_token: int = 0,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
    wavefront: Wavefront | None = None,
    group: int = 1,
    total: Callable[[torch.Tensor], torch.Tensor] = all_sum,
) -> dict[str, Score]:
    """Scores documents in both modes, in one pass at constant memory, by their loss weights where they have any.

    Called by all processes with their own lanes; the result is the same on all.

    Args:
        model: The model; put into evaluation mode for the time.
        batches: One epoch of segments, e.g. a `SegmentStream` with epochs=1.
        device: Where the model lies.
        max_segments: Segments a lane at most; None: all.
        from_token: Targets from this token of their document on are scored. Segments in which no lane has one are read
            by what the memory depends on alone.
        autocast: The precision to compute in; None: the weights' own.
        wavefront: Of the model: reads the segments of a batch along the diagonals of segments and layers, equal to
            rounding; worth the more, the more segments a batch has. All their targets are computed.
        group: Segments of a batch that the decoder takes at once, of a model that is `replay.DecoderApart`; equal to
            rounding. Segments of the last batch behind all documents are computed too.
        total: Sums a tensor over the replicas, in place.
    """
    sums = {mode: torch.zeros(3, BUCKETS, dtype=torch.float64, device=device) for mode in MODES}
    carries: dict[str, Carry] = {}
    length, weighted = 0, False
    with evaluation_mode(model), autocast or contextlib.nullcontext():
        for done, batch in enumerate(batches):
            count = there = batch.tokens.shape[1]
            if max_segments is not None:
                count = min(there, max_segments - done * there)
            if count <= 0:
                break
            rollout, length = rollout_of(batch, device), batch.tokens.shape[2]
            scored = [True] * rollout.num_segments
            if from_token:  # agreed, as all processes run the same modules
                ends = torch.from_numpy((batch.starts + batch.lengths > from_token).sum(0)).to(device)
                scored = (total(ends) > 0).tolist()
            # Targets of each segment that come before the first scored one, [B, T].
            before = torch.from_numpy(from_token - batch.starts).clamp(0, length).to(device)
            weighted = rollout.loss_weights is not None
            buckets = torch.from_numpy(batch.starts // length).to(device)
            # Segment number n of a document lies in bucket 0 for n = 0, else floor(log2 n) + 1.
            buckets = torch.where(buckets > 0, torch.log2(buckets.clamp(min=1).double()).floor().long() + 1, 0)
            initial = model.initial_memory(len(batch.tokens)).clone()
            for mode in MODES:
                carry = carries.setdefault(mode, Carry.empty(initial, length))
                segments = [rollout.segment(t, carry) for t in range(count)]
                carried = mode == "with_memory"
                memory = carry.memory if carried else initial
                if group > 1:
                    read = _in_groups(cast(DecoderApart, model), scored, segments, memory, carried, group)
                elif wavefront is None:
                    read = _in_turn(model, scored, segments, memory, carried)
                else:  # where the last documents end before the batch does, it ends with them
                    until = 1 + int(batch.lengths.any(0).nonzero()[0].max(initial=0))
                    read = iter(wavefront.losses(segments[:until], memory, carried))
                for t, (losses, following) in enumerate(read):
                    if following is not None:
                        carries[mode] = rollout.carry(following)
                    if losses is None or not scored[t]:
                        continue
                    segment = segments[t]
                    losses, counted = segment.weighted(losses), segment.counted
                    counts = (segment.target_length - before[:, t]).clamp(min=0)
                    if from_token:
                        last_BS = torch.arange(length, device=device) >= before[:, t, None]
                        losses, counted = losses.where(last_BS, 0), counts
                        if segment.loss_weights is not None:
                            counted = segment.loss_weights.where(last_BS, 0).sum(1, dtype=torch.float64)
                    found = losses.sum(1, dtype=torch.float64)
                    for row, each in zip(sums[mode], (found, counts, counted), strict=True):
                        row.index_add_(0, buckets[:, t], each.double())
    totals = {mode: total(each).cpu() for mode, each in sums.items()}
    return {mode: Score(each[0], each[1], each[2], weighted, length) for mode, each in totals.items()}


def _in_turn(
    model: MemoryModel, scored: Sequence[bool], segments: Sequence[Segment], memory: torch.Tensor, carried: bool
) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """As `Wavefront.losses`, one segment after another; without losses where nothing is scored."""
    following = memory
    for t, segment in enumerate(segments):
        losses = None
        if scored[t]:
            losses, following = model.losses(segment, memory)
        elif carried:
            following = model.advance(segment, memory)
        memory = following if carried else memory
        yield losses, following if t == len(segments) - 1 else None


def _in_groups(
    model: DecoderApart,
    scored: Sequence[bool],
    segments: Sequence[Segment],
    memory: torch.Tensor,
    carried: bool,
    group: int,
) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """As `_in_turn`, `group` segments at a time through the decoder, and where no memory is carried through all."""
    for span in DecoderGroups(len(segments), group).spans:
        asked = [t for t in span if scored[t]]
        joined = Segment.joined([segments[t] for t in asked]) if asked else None
        contexts = []
        if carried:
            for t in span:
                if scored[t]:
                    context, memory = model.encode_and_write(segments[t], memory)
                    contexts.append(context)
                else:
                    memory = model.advance(segments[t], memory)
        elif joined is not None:
            contexts.append(model.encode_and_write(joined, memory.repeat(len(asked), 1, 1))[0])
        losses = iter(() if joined is None else model.score(joined, torch.cat(contexts)).chunk(len(asked)))
        for t in span:
            yield next(losses) if scored[t] else None, memory if t == len(segments) - 1 else None
