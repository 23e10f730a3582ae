# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneWavefront`: reads a document along the diagonals of segments and layers, for matrices of each layer's own.

The cell of segment t and layer l needs what layer l-1 makes of the segment, and layer l's matrix behind segment t-1.
So the cells of a diagonal t + l = s need nothing of each other, and all of them are one batch (`stacked`):

    step s     0       1       2       3       4        T segments of N layers in T + N - 1 steps instead of T N,
    layer 0   t = 0    1       2       3                for T = 4, N = 2
    layer 1           t = 0    1       2       3

The same products in other batches: equal to one segment after another, to rounding, and so are gradients, which go back
along the diagonals. Diagonal batching of ARMT (Sivtsov et al., 2025), here by transformers' layers as they are.

Shapes: B lanes, n layers that run, of N, m of them with a matrix [P, C], L inputs of a segment, S of them scored, D
width.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from memformer.models.backbone.associative import AssociativeMemory
from memformer.models.backbone.computation import BackboneLayer
from memformer.models.backbone.model import Backbone
from memformer.models.backbone.reading import positions, read, with_memory
from memformer.models.backbone.stacked import NotStackable, Stack
from memformer.models.overlap import causal_mask
from memformer.replay.segment import Segment


class _Within(NamedTuple):
    """A segment on its way through the layers.

    Attributes:
        segment: Its tokens.
        mask: Which key a query sees, bool [B, 1, L, L]; None: plain causal.
        cos: Of its positions, [B or 1, L, head], with `sin`; None: there are no rotary positions.
        sin: See `cos`.
        scored: Which of its inputs predict the targets.
    """

    segment: Segment
    mask: torch.Tensor | None
    cos: torch.Tensor | None
    sin: torch.Tensor | None
    scored: slice


class BackboneWavefront:
    """Reads segments of the same lanes one behind the other through the layers; `models.protocol.Wavefront`.

    The parameters of the layers become views of one tensor for each kind (`stacked.side_by_side`): the model needs no
    more memory than before, and what reads it otherwise goes on. Beside it a step has the inputs of n segments.

    Args:
        model: Whole, on one process, with an associative memory.
        recompute: Of `scored`: keep the inputs of each diagonal alone, and run it again in the backward.
        moved: Whether parameters may become views of another storage. False where something else holds it, such as an
            engine, in which they lie as `side_by_side` has put them.

    Raises:
        ValueError: Its layers are not alike; one line.
    """

    def __init__(self, model: Backbone, recompute: bool = False, moved: bool = True) -> None:
        layers = [layer for layer in model.layers() if isinstance(layer, BackboneLayer)]
        memory: Any = model.memory
        if not isinstance(memory, AssociativeMemory):
            raise ValueError(f"memory.kind is {model.config.memory.kind}: a wavefront needs associative")
        assert len(layers) == len(model.layers())
        self.model: Backbone = model
        self.memory: AssociativeMemory = memory
        self.recompute = recompute
        readers: list[Any] = [layer.reader for layer in layers if layer.reader is not None]
        try:
            self._blocks: Stack = Stack([layer.block for layer in layers], moved)
            self._readers: Stack = Stack(readers, moved)
            self._writers: Stack = Stack(list(memory.writers), moved)
        except NotStackable as error:
            raise ValueError(f"{error}, so no diagonal of them is one batch") from None
        for each in (self._readers, self._writers):
            each.module.rows = slice(None)  # type: ignore[assignment]  # each is given its own matrix alone

    def side_by_side(self) -> list[list[torch.nn.Parameter]]:
        """Makes the parameters of the layers views; of each kind those of all layers, in their order."""
        stacks = (self._blocks, self._readers, self._writers)
        for each in stacks:
            each.gather()
        return [kind for each in stacks for kind in each.parameters_by_kind()]

    @torch.no_grad()
    def advance(self, segments: Iterable[Segment], memory: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, C] behind segments of one length, by the layers that it depends on."""
        for _, _, found in self._run(segments, memory, self.memory.depth, True):
            memory = memory if found is None else found
        return memory

    @torch.no_grad()
    def losses(
        self, segments: Iterable[Segment], memory: torch.Tensor, carried: bool = True
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Of each segment `MemoryModel.losses` [B, S]; and with the last, the memory [B, K, C] behind it.

        Args:
            segments: Of one length, in the order of the documents.
            memory: The memory before them, [B, K, C].
            carried: Each writes the memory that the next is read with; False: all are read with the one given.
        """
        model = self.model
        for segment, x_BSD, found in self._run(segments, memory, len(model.stack), carried):
            yield model.head(model.norm(x_BSD), model.targets(segment)), found

    def scored(
        self, segments: Iterable[Segment], memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`replay.WindowCell`: losses [T] and valid targets int64 [T] of segments, and the memory, with a graph.

        Raises:
            ValueError: The model is in training mode and has dropout, whose masks would be others than in turn.
        """
        model, losses, counts = self.model, [], []
        if model.training and (model.config.dropout or (model.config.lora and model.config.lora.dropout)):
            raise ValueError("a wavefront has no dropout: set model.dropout and model.lora.dropout to 0")
        for segment, x_BSD, found in self._run(segments, memory, len(model.stack), True):
            losses.append(segment.weighted(model.head(model.norm(x_BSD), model.targets(segment))).sum())
            counts.append(segment.target_length.sum())
            memory = memory if found is None else found
        return torch.stack(losses), torch.stack(counts), memory

    def _run(
        self, segments: Iterable[Segment], memory_BKC: torch.Tensor, depth: int, carried: bool
    ) -> Iterator[tuple[Segment, torch.Tensor, torch.Tensor | None]]:
        """Each segment with the first `depth` layers' output at its targets, [B, S, D], as it leaves them."""
        for each in (self._blocks, self._readers, self._writers):
            each.gather()
        lanes, matrices = len(memory_BKC), len(self.memory.at)
        shape = (lanes, matrices, -1, memory_BKC.shape[2])
        state_mBPC = memory_BKC.reshape(shape).transpose(0, 1).contiguous()
        first_m1PC = self.model.initial_memory(1).to(memory_BKC.dtype).view(1, *shape[1:]).transpose(0, 1)
        at_m = torch.tensor(self.memory.at, device=memory_BKC.device)  # once: a copy from the host is waited for
        within: deque[_Within] = deque()  # the newest, which is in the lowest layer, first
        x_nBLD: torch.Tensor | None = None
        coming = iter(segments)
        low = 0  # the first layer that runs
        segment = next(coming, None)
        while segment is not None or within:
            if segment is not None:
                x_BLD, entered = self._entering(segment, memory_BKC)
                x_nBLD = x_BLD[None] if x_nBLD is None or not within else torch.cat([x_BLD[None], x_nBLD])
                within.appendleft(entered)
            else:
                low += 1
            assert x_nBLD is not None
            inputs = (x_nBLD, low, list(within), state_mBPC, first_m1PC, at_m)
            if self.recompute and torch.is_grad_enabled():
                x_nBLD, following_mBPC = checkpoint(self._diagonal, *inputs, use_reentrant=False)
            else:
                x_nBLD, following_mBPC = self._diagonal(*inputs)
            state_mBPC = following_mBPC if carried else state_mBPC
            segment = next(coming, None)
            if low + len(within) == depth:
                done = within.pop()
                last = segment is None and not within
                found = state_mBPC.transpose(0, 1).reshape(memory_BKC.shape) if last else None
                yield done.segment, x_nBLD[-1][:, done.scored], found
                x_nBLD = x_nBLD[:-1]

    def _entering(self, segment: Segment, memory_BKC: torch.Tensor) -> tuple[torch.Tensor, _Within]:
        """The input [B, L, D] of the first layer, as `Backbone.run` has it."""
        model, config, length = self.model, self.model.config, segment.target.shape[1]
        reading = read(segment, config.overlap_of(length), model.bos, config.segment_bos, model.start_token_id)
        words_BND = model.embedding(reading.tokens)
        x_BLD = torch.cat([words_BND, self.memory.behind(memory_BKC).to(words_BND.dtype)], 1)
        end = x_BLD.shape[1] - config.memory.back
        seen_BL = with_memory(reading.seen, 0, config.memory.back)
        x_BLD, cos, sin = model.placed(x_BLD, positions(seen_BL, x_BLD.shape[1], x_BLD.device))
        return x_BLD, _Within(segment, causal_mask(seen_BL), cos, sin, slice(end - length, end))

    def _diagonal(
        self,
        x_nBLD: torch.Tensor,
        low: int,
        within: list[_Within],
        state_mBPC: torch.Tensor,
        first_m1PC: torch.Tensor,
        at_m: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layers low .. low+n-1, each on the segment that has come to it: their outputs, and all matrices."""
        count, lanes, length, _ = x_nBLD.shape
        parts = [part for part, layer in enumerate(self.memory.at) if low <= layer < low + count]
        self._blocks.show(low, low + count)
        # Places of the layers with a matrix among those that run; None: all have one.
        at = None if len(parts) == count else at_m[parts[0] : parts[-1] + 1] - low if parts else at_m[:0]
        own = [within[self.memory.at[part] - low].segment for part in parts]
        if parts:
            span = slice(parts[0], parts[-1] + 1)
            for stack in (self._readers, self._writers):
                stack.show(span.start, span.stop)
            before_pBPC = state_mBPC[span]
            if any(each.ragged for each in own):  # only there may a document begin
                resets_pB11 = torch.stack([each.reset for each in own])[..., None, None]
                before_pBPC = torch.where(resets_pB11, first_m1PC[span], before_pBPC)
            x_pBLD = x_nBLD if at is None else x_nBLD[at]
            added = self._readers.module(x_pBLD.flatten(0, 1), before_pBPC.flatten(0, 1)).view_as(x_pBLD)
            x_nBLD = x_nBLD + added if at is None else x_nBLD.index_add(0, at, added)
        mask, more = self._seen(within, lanes, length)
        y_nBLD = self._blocks.module(x_nBLD.flatten(0, 1), attention_mask=mask, **more).view_as(x_nBLD)
        if parts:
            behind = y_nBLD[..., length - self.memory.count :, :]
            behind = behind if at is None else behind[at]
            next_pBPC = self._writers.module(behind.flatten(0, 1), before_pBPC.flatten(0, 1)).view_as(before_pBPC)
            if any(each.short for each in own):  # only there may a lane have no document
                reads_pB11 = torch.stack([each.target_length > 0 for each in own])[..., None, None]
                next_pBPC = torch.where(reads_pB11, next_pBPC, before_pBPC)
            next_pBPC = next_pBPC.to(state_mBPC.dtype)
            if len(parts) < len(state_mBPC):
                next_pBPC = torch.cat([state_mBPC[: span.start], next_pBPC, state_mBPC[span.stop :]])
            state_mBPC = next_pBPC
        return y_nBLD, state_mBPC

    def _seen(self, within: list[_Within], lanes: int, length: int) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """The mask [n B, 1, L, L] of a diagonal, and its cosines and sines as transformers' layers take them."""
        if all(each.mask is None for each in within):
            cos, sin = within[0].cos, within[0].sin  # all have positions from 0
            return None, {} if cos is None else {"position_embeddings": (cos, sin)}
        plain = causal_mask(torch.ones(lanes, length, dtype=torch.bool, device=self.model.device))
        masks = [plain if each.mask is None else each.mask for each in within]
        mask = torch.cat([each for each in masks if each is not None])
        found = [[each.expand(lanes, -1, -1) for each in (one.cos, one.sin) if each is not None] for one in within]
        angles = tuple(torch.cat(each) for each in zip(*found, strict=True))
        return mask, {"position_embeddings": angles} if angles else {}
