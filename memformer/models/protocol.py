# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the system asks of a model, whichever it is.

A **cell** (`memformer.replay.Cell`) can be trained by memory replay. A `MemoryModel` is a cell that can also be
optimized, checkpointed, evaluated and exported; a `Standalone` one also does without its memory. A `Reader` reads a
document token by token, to continue it; a `Wavefront` many segments at once.

Shapes: B lanes, S tokens a segment, [K, C] a lane's memory, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from memformer.models.looking import Looked
from memformer.models.segment_reader import ReadingState
from memformer.replay.backward import Cell
from memformer.replay.segment import Segment


class MemoryModel(Cell, Protocol):
    """A model of any family: a `torch.nn.Module`, or the stages of a pipeline that answer together as one.

    Under ZeRO-3 a process executes the same modules in the same order as all others, whatever its data.

    Attributes:
        config: Its configuration, with vocab_size and start_token_id.
    """

    config: Any

    @property
    def training(self) -> bool:
        """Whether dropout is on, as `torch.nn.Module.training`."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def losses(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood of each target in nats, [B, S], 0 beyond the valid length; and the next memory."""

    def layers(self) -> list[nn.Module]:
        """The layers that are recomputed, compiled and counted one by one, in the order of the computation.

        Each is called with its input [B, S, D], one tensor that all layers of its stack share (its gradient is summed
        over them), and any number of arguments without gradient; it returns the next layer's input.
        """

    def undecayed(self) -> set[str]:
        """Names of the matrices that weight decay leaves alone; what is no matrix never decays."""

    def self_weights(self, segment: Segment, memory: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """What the write that reads `segment` does to each slot.

        Without gradient. None for a model whose memory has no slots of that kind: then there are no such diagnostics.

        Returns:
            The writer's weight of each slot on itself, 0 to 1, [B, K]; what is left of a difference in the slot once
            it has been written and has forgotten, [B, K]; the memory read.
        """

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's parameters, a tied one once, under their names in the whole model."""

    def train(self, mode: bool = True) -> Any:
        """Switches dropout."""

    def eval(self) -> Any:
        """Switches dropout off."""


@runtime_checkable
class Standalone(Protocol):
    """What a `MemoryModel` has beside, if it is also a language model without its memory.

    Attributes:
        context: The longest text, in tokens, that it then reads at once.
    """

    @property
    def context(self) -> int:
        """See above."""

    def without_memory(self, tokens_N: torch.Tensor, places_P: torch.Tensor, part: int) -> Iterator[torch.Tensor]:
        """Logits of the language model alone, with all of a text in its own context.

        Args:
            tokens_N: The text in ids of the data, int64 [N], N at most `context`; the start token stands before it.
            places_P: Places of the tokens that are to be predicted, each from all before it, int64 [P].
            part: Places whose logits are made at a time.

        Returns:
            Logits [part, V], in the order of the places; the last part may be shorter.
        """


@runtime_checkable
class Looking(Protocol):
    """What a `MemoryModel` has beside, if it shows its memory by itself and is no whole model for `Family.look`."""

    def look(self, segment: Segment, memory: torch.Tensor) -> Looked:
        """One read and one write of the memory [B, K, C], without gradient; as of `Family.look`."""


@runtime_checkable
class Compiled(Protocol):
    """What a `MemoryModel` has beside, if more of it than its layers is compiled with them.

    Attributes:
        compiled_methods: Names of methods that compute on tensors alone, as between the layers.
    """

    compiled_methods: tuple[str, ...]


class Stage(Protocol):
    """The layers of one stage of a pipeline, as `family_record.Stages.cut` gives them: a `torch.nn.Module`.

    Stage 0 owns the token embedding. Where a decoder begins, and where a head is tied to the embedding, stages have a
    copy of it. Of a memory that one stage writes, which is the last encoder stage, K are all rows, and that stage alone
    answers `initial_memory` and `self_weights`. Of layers with memories of their own, K are the rows of the stage's
    layers; lanes that start a document are given their initial memory where it is read, so that `begin` is not asked;
    there is no decoder, and the last stage scores.

    Attributes:
        config: Of the whole model.
        copy: This stage's copy of the token embedding, which is no parameter; None where it has none.
    """

    config: Any
    copy: torch.Tensor | None

    @property
    def training(self) -> bool:
        """Whether dropout is on, as `torch.nn.Module.training`."""

    @property
    def shared(self) -> torch.Tensor | None:
        """The token embedding, a parameter, on stage 0."""

    def __call__(self, part: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """`read_part` ("read"), `decode_part` ("decode") or `begin`, the latter in a tuple.

        With "advance" it is of `read_part` what pass 1 needs: the layers that a memory depends on, without a head.
        """

    def begin(self, reset: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, C] that a segment is read with: the initial one in lanes that start a document.

        On the last encoder stage; elsewhere the memory that is given.
        """

    def read_part(
        self,
        segment: Segment,
        memory: torch.Tensor,
        stream: torch.Tensor | None,
        next_reset: torch.Tensor | None = None,
        at_2N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """This stage's layers on the memory's path, with the memory of `begin`, on what the stage before gives.

        Args:
            segment: The segment.
            memory: The memory before it, [B, K, C].
            stream: What the stage before made of it; None on stage 0.
            next_reset: Of a memory that one stage writes: lanes that start a document with the segment after it; None
                after the last one.
            at_2N: Of a stage without a decoder that scores: as of `decode_part`.

        Returns:
            The stream for the next stage [B, L, width]; of the last encoder stage the encoder's output [B, S, width];
            of a last stage without a decoder what `decode_part` returns. And of a stage that writes memory the next one
            [B, K, C]; of one that `begin` is asked of, as that gives it.
        """

    def decode_part(
        self,
        segment: Segment,
        context: torch.Tensor,
        stream: torch.Tensor | None,
        at_2N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """This stage's decoder layers.

        Returns:
            The stream for the next stage [B, S, width]; of the last stage the losses [B, S] or, where `at_2N` names
            targets (int64, lane and place of each), their logits [N, vocab_size].
        """

    def initial_memory(self, lanes: int) -> torch.Tensor:
        """The memory [lanes, K, C] of lanes that have read nothing, of a model with memory; differentiable."""

    def look(self, segment: Segment, memory: torch.Tensor, run: Callable[[], torch.Tensor]) -> Looked:
        """What the stage's layers show while all stages read a segment, of a family with `look` and memories by layer.

        Args:
            segment: The segment.
            memory: What the stage reads of the memory before it.
            run: Reads it together with the other stages, and gives the memory behind it that this stage writes.

        Returns:
            The figures of these layers alone, each [B, n] by layer; none where they have no memory.
        """

    def self_weights(self, segment: Segment, memory: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Both figures of `MemoryModel.self_weights`, [2, B, K], from the memory read and the encoder's output."""

    def layers(self) -> list[nn.Module]:
        """As in `MemoryModel`."""

    def undecayed(self) -> set[str]:
        """As in `MemoryModel`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its parameters, under their names in the whole model."""

    def train(self, mode: bool = True) -> Any:
        """Switches dropout."""

    def eval(self) -> Any:
        """Switches dropout off."""


class Wavefront(Protocol):
    """Reads segments of the same lanes while those before them are still on their way through the layers.

    Equal to a `MemoryModel` that reads one after another, to rounding; without gradient. What is trained by is a
    `replay.WindowCell` too.
    """

    def side_by_side(self) -> list[list[nn.Parameter]]:
        """Puts the parameters that it runs at once into one storage each; of each those of all layers, in their order.

        What gives them new storage must keep those of a list neighbours, if the wavefront was built without `moved`.
        """

    def advance(self, segments: Iterable[Segment], memory: torch.Tensor) -> torch.Tensor:
        """The memory [B, K, C] behind segments of one length, from that before them."""

    def losses(
        self, segments: Iterable[Segment], memory: torch.Tensor, carried: bool = True
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Of each segment `MemoryModel.losses` [B, S]; and with the last one the memory [B, K, C] behind it.

        Not `carried`, each is read with the memory that is given.
        """


class Reader(Protocol):
    """Reads B documents side by side, each at its own place, and gives logits of the next token, at constant memory.

    `segment_reader.SegmentReader` has all of it but how a present segment is decoded.
    """

    device: torch.device

    @property
    def batch_size(self) -> int:
        """Documents B."""

    @property
    def logits(self) -> torch.Tensor:
        """Logits of the next token, [B, V]."""

    def read(self, tokens: torch.Tensor, counts: Sequence[int] | None = None) -> None:
        """Reads tokens, int64 [B, n], of each row the first `counts`; None: all."""

    @property
    def state(self) -> ReadingState:
        """All that is remembered, as a value."""

    def restore(self, state: ReadingState) -> None:
        """Goes on from a state of as many documents in the place of what was read."""
