# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneReader`: continues documents token by token, at constant memory for any length.

Where logits are asked for, the keys and values of the present segment's inputs are kept. At the segment's end the
memory's own tokens run on these, so that no input is computed twice; kinds that write from the segment's own tokens
have kept what left the layer they write behind.

    [memory] [BOS] [last w tokens of the segment before]   x_0  x_1  ..  x_{S-2}    | x_{S-1}: [M write tokens], next
     run when the first logits are asked for                one run for each time    segment

Segments in which nobody asked are read as in training, by the layers that the memory depends on alone.

Shapes: B documents, R of them that are run, L inputs of one run, S tokens a segment, w overlap, M write tokens, D
width, V ids of the data.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from memformer.models.backbone.memory import LayerOutput
from memformer.models.backbone.model import Backbone
from memformer.models.segment_cache import SegmentCache, put
from memformer.models.segment_reader import UNASKED, SegmentReader


class BackboneReader(SegmentReader):
    """Reads tokens one after another and gives the logits of the next; arguments and errors of `SegmentReader`.

    Logits of a start token that the backbone has no id for are minus infinity.
    """

    def __init__(self, model: Backbone, batch_size: int = 1, segment_length: int | None = None) -> None:
        super().__init__(model, batch_size, segment_length)
        config, length = model.config, self.segment_length
        prefix = max(1, config.overlap_of(length) + config.segment_bos)
        inputs = config.memory.front + prefix + length - 1 + config.memory.back
        self._cache = SegmentCache(batch_size, inputs)
        self._inputs = [0] * batch_size  # of this segment that were run
        # Tables of positions that grow with the text wait for the device.
        growing = str(getattr(model.rotary, "rope_type", "default"))
        self.fixed = "dynamic" not in growing and "longrope" not in growing
        self._kept: torch.Tensor | None = None  # what left the layer that is written behind, [B, S, D]

    def _decode(self, rows: list[int]) -> torch.Tensor:
        """Runs the inputs that were not run yet: first those of segments that begin, then those of the others."""
        begun = self._unasked(rows)
        order = [*begun, *self._asked(rows)]
        groups = [group for group in (begun, order[len(begun) :]) if group]
        last = [self._read_on(group, [self._counts[row] for row in group], len(self.model.stack)) for group in groups]
        logits_RV = self._answer(torch.cat(last))
        if order == rows:
            return logits_RV
        return logits_RV[torch.tensor([order.index(row) for row in rows], device=self.device)]

    def _answer(self, x_RD: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] from what left the last layer."""
        model, count = self.model, self.model.config.vocab_size or 0
        logits_RV = model.head.score.whole(model.head(model.norm(x_RD)))
        return F.pad(logits_RV, (0, max(0, count - logits_RV.shape[1])), value=float("-inf"))[:, :count]

    def _stand(self, rows: list[int]) -> list[list[int]]:
        """See `SegmentReader`: the inputs that were run."""
        before = list(self._inputs)
        for row in rows:
            self._inputs[row] += 1
        return [before]

    def _step(self, tokens_B1: torch.Tensor, numbers_PB: torch.Tensor, memory_BKC: torch.Tensor) -> torch.Tensor:
        """See `SegmentReader`."""
        model, (moves_B, decoded_B, starts_B) = self.model, numbers_PB
        lanes_B, moves_B = torch.arange(self.batch_size, device=self.device), moves_B > 0
        places = self._cache.place_one(starts_B, moves_B)
        x_B1D = model.embedding(tokens_B1.masked_fill(tokens_B1 == model.start_token_id, model.bos))
        x_B1D, cos, sin = model.placed(x_B1D, places.at)
        for number, layer in enumerate(model.layers()):
            x_B1D = layer(x_B1D, memory_BKC, places.mask, cos, sin, self._cache)
            if number == model.memory.kept:
                assert self._kept is not None
                put(self._kept, lanes_B, decoded_B + 1, x_B1D[:, 0], moves_B)
        return self._answer(places.last(x_B1D))

    def _read_on(self, rows: list[int], counts: list[int], depth: int) -> torch.Tensor:
        """Runs the inputs of rows up to so many of their tokens; before a segment's first, what stands in front.

        Args:
            rows: All of which begin their segment, or none.
            counts: Tokens.
            depth: Layers.

        Returns:
            What left the last of the layers at the last input of each row, [R, D].
        """
        model, begins = self.model, self._decoded[rows[0]] == UNASKED
        if begins:
            for row in rows:
                self._inputs[row] = 0
        # The last of what stands in front predicts the segment's first token, x_i the one behind it.
        firsts = [self._decoded[row] + 1 for row in rows]
        new = zip(rows, firsts, counts, strict=True)
        words = [self._tokens[row, max(0, first - 1) : count] for row, first, count in new]
        if begins:
            words = [torch.cat([self._prefix(row), each]) for row, each in zip(rows, words, strict=True)]
        tokens = pad_sequence(words, batch_first=True)
        x_RLD = model.embedding(tokens.masked_fill(tokens == model.start_token_id, model.bos))
        front = model.memory.front(self._of(self._memory, rows)) if begins else None
        lengths = [len(each) for each in words]
        if front is not None:
            x_RLD = torch.cat([front.to(x_RLD.dtype), x_RLD], 1)
            lengths = [front.shape[1] + each for each in lengths]
        gives = [slice(first, count + 1) for first, count in zip(firsts, counts, strict=True)]
        return self._run(rows, x_RLD, lengths, depth, gives)[0]

    def _prefix(self, row: int) -> torch.Tensor:
        """The start token and the last w tokens of the segment before, as `reading.read` has them, int64 [P]."""
        model, config = self.model, self.model.config
        overlap = min(config.overlap_of(self.segment_length), self._known[row])
        start = self._context.new_full((int(config.segment_bos or overlap == 0),), model.bos)
        return torch.cat([start, self._context[row, self.segment_length - overlap :]])

    def _run(
        self, rows: list[int], x_RLD: torch.Tensor, lengths: Sequence[int], depth: int, gives: list[slice] | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs inputs behind those that were run, by the first layers.

        Args:
            rows: Whose inputs they are.
            x_RLD: Their embeddings.
            lengths: How many are there of each row; shorter ones are padded behind.
            depth: Layers.
            gives: Which of the segment's S outputs the last inputs of each row give; None: these are the memory's own
                tokens.

        Returns:
            What left the last of the layers at the last input of each row, [R, D], and the rows of the next memory that
            the memory's tokens give.
        """
        model, memory = self.model, self._of(self._memory, rows)
        places = self._cache.place(rows, [self._inputs[row] for row in rows], lengths, self.device)
        for row, length in zip(rows, lengths, strict=True):
            self._inputs[row] += length
        x_RLD, cos, sin = model.placed(x_RLD, places.at)
        written: list[torch.Tensor] = []
        for number, layer in enumerate(model.layers()[:depth]):
            x_RLD = layer(x_RLD, memory, places.mask, cos, sin, self._cache)
            if gives is None:
                found = model.memory.after(number, LayerOutput(x_RLD, memory, slice(0, 0), None))
                written += [] if found is None else [found]
            elif number == model.memory.kept:
                if self._kept is None:
                    self._kept = x_RLD.new_empty(self.batch_size, self.segment_length, x_RLD.shape[2])
                for row, x_LD, length, at in zip(rows, x_RLD, lengths, gives, strict=True):
                    self._kept[row, at] = x_LD[length - (at.stop - at.start) : length]
        return places.last(x_RLD), written

    def _written(self, rows: list[int]) -> torch.Tensor:
        """Runs what is left of the segment and the memory's own tokens, by the layers that the memory depends on."""
        memory = self.model.memory
        last = self.segment_length - 1  # a segment's last token is an input of the next one alone
        if rest := [row for row in rows if self._decoded[row] < last]:
            self._read_on(rest, [last] * len(rest), memory.depth)
        before = self._of(self._memory, rows)
        behind = memory.behind(before)
        written: list[torch.Tensor] = []
        if memory.kept is not None:
            assert self._kept is not None
            everything = slice(0, self.segment_length)
            found = memory.after(memory.kept, LayerOutput(self._of(self._kept, rows), before, everything, None))
            written += [] if found is None else [found]
        if behind is not None:
            lengths = [behind.shape[1]] * len(rows)
            written += self._run(rows, behind.to(self.model.embedding.weight.dtype), lengths, memory.depth, None)[1]
        return torch.cat(written, 1).to(self._memory.dtype)

    def tensors(self) -> list[torch.Tensor]:
        """See `SegmentReader`."""
        return [*super().tensors(), *([] if self._kept is None else [self._kept]), *self._cache.tensors()]
