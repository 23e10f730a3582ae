# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What one segment keeps and sends: the model's own code, run on tensors that have shapes but no numbers.

No formula can drift from the code here, since there is none: layers, tensor parallelism and checkpointing are those of
the run. Two depths of each stack are traced, and since layers are alike the rest follows by counting.
"""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from memformer.engine.optimizer import parameter_groups
from memformer.engine.precision import AUTOCAST
from memformer.models.memformer import Memformer, MemformerConfig
from memformer.parallel.tensor import shard_model
from memformer.processes.topology import Axis
from memformer.replay import Segment

ACTIVATIONS, LOGITS, WEIGHT_COPIES = "activations", "logits", "16-bit weights"


class Shape(NamedTuple):
    """What matters of a parameter.

    Attributes:
        numel: Elements that the process has.
        low_precision: Whether autocast has a 16-bit form of it, in which ZeRO sends it: the weights of linear layers.
        decayed: Whether it is in the optimizer's group with weight decay.
    """

    numel: int
    low_precision: bool
    decayed: bool


@dataclasses.dataclass(frozen=True)
class SegmentTrace:
    """One segment of a group of lanes on one process.

    Attributes:
        saved: Bytes that autograd keeps for the backward, by part: activations, logits, and in 16 bits the copies of
            the weights of linear layers that autocast makes.
        advance: Bytes of each collective over the tensor ranks in a pass-1 call, by kind.
        replay: The same in a forward with its backward.
        parameters: How many parameters of each `Shape` the process has.
    """

    saved: Counter[str]
    advance: Counter[str]
    replay: Counter[str]
    parameters: Counter["Shape"]

    def combined(self, other: "SegmentTrace", factor: int) -> "SegmentTrace":
        """self + factor * other."""

        def add(a: Counter[Any], b: Counter[Any]) -> Counter[Any]:
            return Counter({key: a[key] + factor * b[key] for key in {*a, *b}})

        fields = (field.name for field in dataclasses.fields(self))
        return SegmentTrace(*(add(getattr(self, name), getattr(other, name)) for name in fields))


@dataclasses.dataclass(frozen=True)
class StackTraces:
    """The traces of the parts of a model.

    Attributes:
        rest: Embedding, writer, norms, head and loss.
        encoder_layer: One encoder layer.
        decoder_layer: One decoder layer.
        rest_parameters: Those of `rest`, by part: embedding, encoder_norm, writer, forget, decoder_norm, head.
    """

    rest: SegmentTrace
    encoder_layer: SegmentTrace
    decoder_layer: SegmentTrace
    rest_parameters: dict[str, Counter[Shape]]

    def of(self, encoder_layers: int, decoder_layers: int, rest: bool = True) -> SegmentTrace:
        """A process that has so many layers, and the rest of the model or not."""
        start = self.rest.combined(self.rest, 0 if rest else -1)
        return start.combined(self.encoder_layer, encoder_layers).combined(self.decoder_layer, decoder_layers)


def recomputation_peak(kept: StackTraces, plain: StackTraces, encoder_layers: int, decoder_layers: int) -> int:
    """Bytes while the largest layer is recomputed: the layers' inputs, the context, and all that one layer keeps.

    What head, loss and writer kept is gone by then: their backward comes first.

    Args:
        kept: Traced with recomputation.
        plain: Traced without.
        encoder_layers: That the process has.
        decoder_layers: The same.
    """
    inputs = encoder_layers * kept.encoder_layer.saved[ACTIVATIONS]
    inputs += (decoder_layers + 1) * kept.decoder_layer.saved[ACTIVATIONS]
    return inputs + max(layer.saved[ACTIVATIONS] for layer in (plain.encoder_layer, plain.decoder_layer))


def trace_parts(
    config: MemformerConfig, lanes: int, segment_length: int, tensor: int, precision: str, recompute: bool = False
) -> StackTraces:
    """Traces the parts of a model.

    Args:
        config: The model, with vocab_size.
        lanes: Lanes that are replayed together.
        segment_length: S.
        tensor: Tensor-parallel processes.
        precision: fp32, bf16 or fp16.
        recompute: Whether layers are checkpointed; what one layer's recomputation keeps is not in it.
    """
    config = dataclasses.replace(config, start_token_id=0, segment_length=None)
    two, three = (_parts_of_lanes(config, each, segment_length, tensor, precision, recompute) for each in (2, 3))

    def at(a: SegmentTrace, b: SegmentTrace) -> SegmentTrace:
        """Everything grows with the lanes in a straight line; parameters are the same."""
        return dataclasses.replace(a.combined(b.combined(a, -1), lanes - 2), parameters=a.parameters)

    return StackTraces(
        at(two.rest, three.rest),
        at(two.encoder_layer, three.encoder_layer),
        at(two.decoder_layer, three.decoder_layer),
        two.rest_parameters,
    )


@functools.lru_cache(maxsize=64)
def _parts_of_lanes(
    config: MemformerConfig, lanes: int, length: int, tensor: int, precision: str, recompute: bool
) -> StackTraces:
    traced = {}
    for encoder, decoder in ((1, 1), (2, 1), (1, 2)):
        shape = dataclasses.replace(config, num_encoder_layers=encoder, num_decoder_layers=decoder)
        traced[encoder, decoder], rest = _trace(shape, lanes, length, tensor, precision, recompute)
    one = traced[1, 1]
    encoder_layer, decoder_layer = traced[2, 1].combined(one, -1), traced[1, 2].combined(one, -1)
    return StackTraces(one.combined(encoder_layer, -1).combined(decoder_layer, -1), encoder_layer, decoder_layer, rest)


def _trace(
    config: MemformerConfig, lanes: int, length: int, tensor: int, precision: str, recompute: bool
) -> tuple[SegmentTrace, dict[str, Counter[Shape]]]:
    with FakeTensorMode(allow_non_fake_inputs=True), _collectives() as sent:
        model = Memformer(config)
        shard_model(model, Axis(0, tensor))
        if recompute:
            for layer in (*model.encoder, *model.decoder):
                layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=True)
        tokens = torch.zeros(lanes, length, dtype=torch.int64)
        full = torch.full((lanes,), length)
        segment = Segment(tokens, full, tokens, full, torch.zeros(lanes, dtype=torch.bool), False)
        memory = torch.zeros(lanes, config.num_memory_slots, config.d_model)
        kept = _Kept(model, logits=(lanes * length, model.head.out_features))
        autocast = torch.autocast("cpu", dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)
        with torch.no_grad(), autocast:
            model.advance(segment, memory)
        advance = Counter(sent)
        sent.clear()
        leaf = memory.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            with autocast:
                loss, _, following = model(segment, leaf)
            saved = Counter(kept.bytes)  # before the backward, in which checkpoints recompute
        (loss + following.sum()).backward()
        if precision in AUTOCAST:
            # Checkpointed layers drop theirs after the forward; until then autocast keeps them all.
            linear = {id(m.weight): m for m in model.modules() if isinstance(m, torch.nn.Linear)}
            saved[WEIGHT_COPIES] = sum(2 * module.weight.numel() for module in linear.values())
            layers = {id(p) for layer in (*model.encoder, *model.decoder) for p in layer.parameters()}
            kept_now = linear if not recompute else {key: m for key, m in linear.items() if key not in layers}
            saved[ACTIVATIONS] -= sum(2 * module.weight.numel() for module in kept_now.values())
        by_part = _shapes(model)
    rest = {name: shapes for name, shapes in by_part.items() if name not in ("encoder", "decoder")}
    return SegmentTrace(saved, advance, Counter(sent), sum(by_part.values(), Counter())), rest


def _shapes(model: Memformer) -> dict[str, Counter[Shape]]:
    """The parameters by the model's attribute that holds them."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    decayed = {id(parameter) for parameter in cast(Any, parameter_groups(model, weight_decay=0.1)[0]["params"])}
    found: dict[str, Counter[Shape]] = {}
    for name, parameter in model.named_parameters():
        shape = Shape(parameter.numel(), id(parameter) in linear, id(parameter) in decayed)
        found.setdefault(name.split(".")[0], Counter())[shape] += 1
    return found


class _Kept:
    """Adds up what autograd saves, each storage once, without the parameters."""

    def __init__(self, model: Memformer, logits: tuple[int, int]) -> None:
        self.bytes: Counter[str] = Counter()
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._alive: list[torch.Tensor] = []
        self._logits = logits

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # so that no other storage gets this number
            of_logits = tensor.is_floating_point() and tuple(tensor.shape) == self._logits
            self.bytes[LOGITS if of_logits else ACTIVATIONS] += storage.nbytes()
        return tensor


@contextlib.contextmanager
def _collectives() -> Iterator[Counter[str]]:
    """Inside, collectives count the bytes of their payload by kind, and do nothing else."""
    sent: Counter[str] = Counter()

    def counting(name: str) -> Any:
        def call(payload: Any, *_: Any, **__: Any) -> None:
            tensors = payload if isinstance(payload, (list, tuple)) else [payload]
            sent[name] += sum(each.numel() * each.element_size() for each in tensors)

        return call

    with contextlib.ExitStack() as stack:
        for name in ("all_reduce", "all_gather_into_tensor", "all_gather"):
            stack.enter_context(mock.patch.object(dist, name, counting(name)))
        yield sent
