# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What each kind of memory of a backbone shows of itself: figures of training, and what `inspect-memory` reads.

The model runs as it always does, and hooks note what goes through the modules of the memory: no second computation of
a write that could differ from the first, and under ZeRO-3 a parameter is used where it is gathered.

Shapes: B lanes, S tokens a segment, M write tokens, P features, n layers of the memory, r readers, K slots, D width.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from memformer.models.backbone.associative import (
    AssociativeMemory,
    AssociativeWriter,
    at_least_float32,
    features,
    recalled,
    written,
)
from memformer.models.backbone.computation import BackboneLayer, BackbonePart
from memformer.models.backbone.model import Backbone
from memformer.models.backbone.slots import SlotMemory, slot_config
from memformer.models.looking import Association, Figure, Looked
from memformer.models.memformer import computation
from memformer.replay.segment import Segment

Note = Callable[[tuple[Any, ...], Any], Any]
"""(arguments, output) of a module's call -> what is kept of it."""
Noted = dict[nn.Module, Any]


@contextlib.contextmanager
def noted(notes: Mapping[nn.Module, Note]) -> Iterator[Noted]:
    """Notes calls of modules inside the block, where compiled layers run as they were written."""
    found: Noted = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found[module] = notes[module](inputs, output)

    handles = [module.register_forward_hook(note) for module in notes]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        for handle in handles:
            handle.remove()


def look(model: Backbone, segment: Segment, memory_BKC: torch.Tensor) -> Looked:
    """Reads a segment by all layers and writes; `Family.look`."""
    return look_while(model, segment, memory_BKC, lambda: model.run(segment, memory_BKC, len(model.stack)).memory)


@torch.no_grad()
def look_while(
    model: BackbonePart, segment: Segment, memory_BKC: torch.Tensor, run: Callable[[], torch.Tensor]
) -> Looked:
    """Looks at the layers of a backbone, all or some, while a segment is read and written by all.

    Args:
        model: The layers.
        segment: The segment.
        memory_BKC: The memory before it, of these layers.
        run: Reads it, and gives the memory behind it of these layers.

    Returns:
        The figures `change` and `norm` of every kind; `read` by reader; of the associative memory by layer `rank`,
        `gate` and `retention` as well; of slots what they have (docs/backbones.md).
    """
    kind = model.memory
    readers = [layer.reader for layer in _layers(model) if layer.reader is not None]
    # What a reader adds is summed up at once: the streams of all layers would be those of a training step.
    notes: dict[nn.Module, Note] = dict.fromkeys(readers, _sizes(segment, model.config.memory.back)) | _parts(kind)
    with noted(notes) as found:
        before_BKC = at_least_float32(model.begun(segment, memory_BKC))
        next_BKC = run()
        after_BKC = at_least_float32(next_BKC)
        slots = None
        if isinstance(kind, SlotMemory):
            write = observed(kind, found)
            slots = (write.weights_BHKL[..., 0].mean(1), write.retained_BHK.mean(1), before_BKC)
    figures: dict[str, Figure] = {}
    associations: tuple[Association, ...] = ()
    if isinstance(kind, AssociativeMemory):
        with torch.autocast(after_BKC.device.type, enabled=False):
            associations, figures = _associations(kind, found, before_BKC, after_BKC)
    else:
        norms_BK = after_BKC.norm(dim=-1)
        figures["norm"] = Figure(norms_BK.sum(1), torch.full_like(norms_BK[:, 0], norms_BK.shape[1]))
        figures["change"] = Figure(_squares(after_BKC - before_BKC), _squares(after_BKC), squares=True)
    if readers:
        added_B, stream_B = zip(*(found[each] for each in readers), strict=True)
        figures["read"] = Figure(torch.stack(added_B, 1), torch.stack(stream_B, 1), squares=True)
    return Looked(next_BKC, figures, slots, associations)


def _layers(model: BackbonePart) -> list[BackboneLayer]:
    return [layer for layer in model.stack if isinstance(layer, BackboneLayer)]


def _writers(kind: AssociativeMemory) -> list[AssociativeWriter]:
    return [writer for writer in kind.writers if isinstance(writer, AssociativeWriter)]


def _parts(kind: Any) -> dict[nn.Module, Note]:
    """The modules of a memory that its writes go through, and what is kept of them."""
    if isinstance(kind, AssociativeMemory):
        parts = [part for writer in _writers(kind) for part in (writer.key, writer.value, writer.gate)]
        return dict.fromkeys(parts, lambda inputs, output: at_least_float32(output))
    return {kind.writer.write: _given} if isinstance(kind, SlotMemory) else {}


def _given(inputs: tuple[Any, ...], output: Any) -> tuple[Any, ...]:
    return inputs


def observed(kind: SlotMemory, found: Noted) -> computation.Write:
    """The write of slots that was noted, as it is looked at."""
    memory_BKD, x_BSD, mask_BS = found[kind.writer.write]
    forget = kind.start
    return computation.observe(
        kind.writer.write,
        lambda mixed, lengths=False: forget(len(memory_BKD), mixed, lengths),
        memory_BKD,
        x_BSD,
        mask_BS,
    )


def _squares(x: torch.Tensor) -> torch.Tensor:
    """The sum of squares of each lane, [B]."""
    return x.square().flatten(1).sum(1)


def _sizes(segment: Segment, back: int) -> Note:
    """Of a reader's call: squares [B] of what it adds and of the stream, over the tokens that predict targets."""
    length = segment.target.shape[1]
    beyond_BS1 = (torch.arange(length, device=segment.target.device) >= segment.target_length[:, None])[..., None]

    def size(x_BLD: torch.Tensor) -> torch.Tensor:
        end = x_BLD.shape[1] - back
        return _squares(at_least_float32(x_BLD[:, end - length : end]).masked_fill(beyond_BS1, 0))

    return lambda inputs, output: (size(output), size(inputs[0]))


def _associations(
    kind: AssociativeMemory, found: Noted, before_BKC: torch.Tensor, after_BKC: torch.Tensor
) -> tuple[tuple[Association, ...], dict[str, Figure]]:
    """What was written, and the figures [B, n], each of a layer's matrix without the sums of ARMT's rule."""
    associations, columns = [], []
    for writer in _writers(kind):
        keys_BMP, values_BMD, gates_BM1 = (found[part] for part in (writer.key, writer.value, writer.gate))
        keys_BMP, gates_BM1 = features(keys_BMP), torch.sigmoid(gates_BM1)
        normalised, rows = writer.normalised, writer.rows

        def recall(
            keys: torch.Tensor, memory: torch.Tensor, rows: slice = rows, normalised: bool = normalised
        ) -> torch.Tensor:
            found_BMC = keys @ memory[:, rows].to(keys.dtype)
            return recalled(found_BMC, normalised=True) if normalised else found_BMC

        associations.append(Association(keys_BMP, values_BMD, recall))
        before_BPC, after_BPC = before_BKC[:, rows], after_BKC[:, rows]
        left_BPC = written(before_BPC, keys_BMP, torch.zeros_like(values_BMD), gates_BM1, normalised)
        # Without the column of sums.
        before, after, left = (each[..., : values_BMD.shape[-1]] for each in (before_BPC, after_BPC, left_BPC))
        energy_B = _squares(after)
        unit = after / energy_B.sqrt().clamp(min=1e-30)[:, None, None]
        columns.append(
            {
                "norm": (energy_B.sqrt(), torch.ones_like(energy_B)),
                "rank": ((energy_B > 0) / _squares(unit @ unit.mT).clamp(min=1e-30), torch.ones_like(energy_B)),
                "change": (_squares(after - before), energy_B),
                "retention": (_squares(left), _squares(before)),
                "gate": (gates_BM1.sum((1, 2)), torch.full_like(energy_B, gates_BM1.shape[1])),
            }
        )
    figures = {
        name: Figure(
            torch.stack([column[name][0] for column in columns], 1),
            torch.stack([column[name][1] for column in columns], 1),
            squares=name in ("change", "retention"),
        )
        for name in columns[0]
    }
    return tuple(associations), figures


class BackboneSlots:
    """The writer of a backbone's slots (`models.slots.SlotWriter`).

    Args:
        model: With slots for its memory.
    """

    reads_targets = True

    def __init__(self, model: Backbone) -> None:
        assert isinstance(model.memory, SlotMemory)
        self._model: Backbone = model
        self._kind: SlotMemory = model.memory

    @torch.no_grad()
    def write(self, segment: Segment, memory_1KD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The weights [H, K, 1 + S] and what is left of the slots [H, K], of all heads; the next memory."""
        with noted(_parts(self._kind)) as found:
            following_1KD = self._model.advance(segment, memory_1KD)
            write = observed(self._kind, found)
        return write.weights_BHKL[0], write.retained_BHK[0], following_1KD

    def bias_norms(self) -> list[float] | None:
        """Of where the slots start, which they move towards where they forget."""
        rows_KD = self._kind.start.rows
        if rows_KD.numel() == 0:
            return None
        norms: list[float] = rows_KD.detach().float().norm(dim=-1).tolist()
        return norms

    def facts(self) -> dict[str, Any]:
        """What decides how slots are written."""
        config, sizes = self._model.config, slot_config(self._model.config)
        return {
            "num_memory_slots": config.memory.num_slots,
            "effective_writer_heads": sizes.effective_writer_heads,
            "memory_temperature": sizes.memory_temperature,
            "memory_forgetting": config.memory.forgetting,
            "write_layer": self._kind.depth,
        }
