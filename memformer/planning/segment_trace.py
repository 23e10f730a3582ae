# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What one segment keeps and sends: the model's own code, run on tensors that have shapes but no numbers.

No formula can drift from the code here, since there is none: layers, tensor parallelism and checkpointing are those of
the run. Two depths of each stack of layers are traced, and since the layers of a stack are alike the rest follows by
counting.
"""

import contextlib
import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from memformer.config.schema import OptimizerConfig
from memformer.engine.frozen import freeze
from memformer.engine.optimizer import parameter_groups
from memformer.engine.precision import AUTOCAST
from memformer.engine.sent import of_linear_maps, only_multiplied
from memformer.engine.weight_copies import copied_weights
from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of
from memformer.models.scoring import Head, count_chunks
from memformer.parallel.activation_checkpointing import recomputed
from memformer.parallel.tensor import shard_model
from memformer.processes.topology import Axis
from memformer.replay import Segment

_ADDED: dict[tuple[ModelConfig, "Execution"], dict[str, tuple["SegmentTrace", dict[str, Counter["Shape"]]]]] = {}
"""What one more layer of a stack adds to a model, inside itself and outside: the same whether logits are whole."""
ACTIVATIONS, LOGITS, WEIGHT_COPIES = "activations", "logits", "16-bit weights"


class Shape(NamedTuple):
    """What matters of a parameter.

    Attributes:
        numel: Elements that the process has.
        low_precision: Whether ZeRO sends its gradient, and at stage 3 itself, in 16 bits: it is a linear layer's, or
            stored so.
        group: Number of the optimizer's group that it is in; -1: it is not trained.
        size: Bytes of an element as it is stored.
        muon: Whether Muon steps it.
        multiplied: Whether it is only multiplied, so that ZeRO 1 and 2 send it in 16 bits.
        copied: Whether a rollout in 16 bits is computed with a copy of it, and its gradients may be summed in as many.
    """

    numel: int
    low_precision: bool
    group: int
    size: int = 4
    muon: bool = False
    multiplied: bool = False
    copied: bool = False

    @property
    def trained(self) -> bool:
        """Whether it has a gradient."""
        return self.group >= 0


@dataclasses.dataclass(frozen=True)
class SegmentTrace:
    """One segment of a group of lanes on one process.

    Attributes:
        saved: Bytes that autograd keeps for the backward, by part: activations, logits, and in 16 bits the copies of
            the weights of linear layers that autocast makes.
        advance: Bytes of each collective over the tensor ranks in a pass-1 call, by kind.
        replay: The same in a forward with its backward.
        advance_calls: How many collectives those of `advance` are, by kind.
        replay_calls: The same of `replay`.
        parameters: How many parameters of each `Shape` the process has.
        below: Bytes of the activations that are kept when the last layer has run, and head and loss are still to come.
    """

    saved: Counter[str]
    advance: Counter[str]
    replay: Counter[str]
    advance_calls: Counter[str]
    replay_calls: Counter[str]
    parameters: Counter["Shape"]
    below: Counter[str]

    def combined(self, other: "SegmentTrace", factor: int) -> "SegmentTrace":
        """self + factor * other."""

        def add(a: Counter[Any], b: Counter[Any]) -> Counter[Any]:
            return Counter({key: a[key] + factor * b[key] for key in {**a, **b}})

        fields = (field.name for field in dataclasses.fields(self))
        return SegmentTrace(*(add(getattr(self, name), getattr(other, name)) for name in fields))


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a process computes a segment.

    Attributes:
        lanes: Lanes that are replayed together.
        segment_length: S.
        tensor: Tensor-parallel processes.
        precision: fp32, bf16 or fp16.
        recompute: Whether layers are checkpointed.
        train: The setting `training.train`.
        memory_rate: Whether the memory's parameters have a learning rate of their own.
        scored: Segments that are scored at once.
        optimizer: The setting `optimizer.name`.
    """

    lanes: int
    segment_length: int
    tensor: int
    precision: str
    recompute: bool = False
    train: str = "all"
    memory_rate: bool = False
    scored: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"


@dataclasses.dataclass(frozen=True)
class StackTraces:
    """The traces of the parts of a model.

    Attributes:
        rest: All that is in no layer: embedding, norms, head, loss and the like.
        stacks: One layer of each stack, by the configuration's field that counts them.
        rest_parameters: Those of `rest`, by the model's attribute that holds them.
        chunk_bytes: Bytes at most while logits that are never whole are scored or go back; 0 where they are whole.
        scored_again: Operations a token of the process's head that its backward repeats for chunks.
    """

    rest: SegmentTrace
    stacks: dict[str, SegmentTrace]
    rest_parameters: dict[str, Counter[Shape]]
    chunk_bytes: int = 0
    scored_again: int = 0

    def of(
        self, counts: Mapping[str, int], rest: bool = True, advanced: Mapping[str, int] | None = None
    ) -> SegmentTrace:
        """A process that has so many layers of each stack, and the rest of the model or not.

        Args:
            counts: Its layers.
            rest: Whether it has what is in no layer.
            advanced: Layers that a pass-1 call runs; None: all.
        """
        found = self.rest.combined(self.rest, 0 if rest else -1)
        shallow = found
        for stack, layer in self.stacks.items():
            found = found.combined(layer, counts[stack])
            shallow = shallow.combined(layer, (advanced or counts)[stack])
        return dataclasses.replace(found, advance=shallow.advance, advance_calls=shallow.advance_calls)


def recomputation_peak(config: ModelConfig, how: Execution, counts: Mapping[str, int]) -> int:
    """Bytes while the last layer is recomputed: what all layers were given, and all that the largest one keeps.

    What head and loss kept is gone by then: their backward comes first.

    Args:
        config: The model, with vocab_size.
        how: How the segment is computed; with recomputation, whatever it says.
        counts: Layers that the process has of each stack.
    """
    how = dataclasses.replace(how, recompute=True)
    return trace_parts(config, how).of(counts).below[ACTIVATIONS] + largest_layer(config, how)


def largest_layer(config: ModelConfig, how: Execution) -> int:
    """Bytes that a layer keeps by itself, at most.

    Args:
        config: The model, with vocab_size.
        how: How the segment is computed.
    """
    how = dataclasses.replace(how, scored=1)  # what the head scores at once is nothing to a layer
    two, three = (_largest_layer(_bare(config), dataclasses.replace(how, lanes=lanes)) for lanes in (2, 3))
    return two + (how.lanes - 2) * (three - two)


@functools.lru_cache(maxsize=256)
def _largest_layer(config: ModelConfig, how: Execution) -> int:
    """Bytes that a layer keeps by itself, beside what it is given and the 16-bit copies of its weights, at most."""
    sizes: list[int] = []
    _trace(
        config.of_layers(dict.fromkeys(config.stacks, 1)), dataclasses.replace(how, recompute=False), layer_sizes=sizes
    )
    return max(sizes)


def _bare(config: ModelConfig) -> ModelConfig:
    """The model without what changes nothing about its sizes."""
    # Subclasses of ModelConfig are dataclasses.
    return dataclasses.replace(config, start_token_id=0, segment_length=None)  # type: ignore[type-var]


def trace_parts(config: ModelConfig, how: Execution) -> StackTraces:
    """Traces the parts of a model.

    Args:
        config: The model, with vocab_size.
        how: How the segment is computed; what the recomputation of one layer keeps is not in the traces.
    """
    tokens, how = how.lanes * how.segment_length * how.scored, dataclasses.replace(how, scored=1)
    ids, width = _head_sizes(_bare(config).of_layers(dict.fromkeys(config.stacks, 1)), how.tensor)
    return _parts(config, how, tokens, count_chunks(tokens, ids), (ids, width))


@functools.lru_cache(maxsize=256)
def _parts(config: ModelConfig, how: Execution, tokens: int, chunks: int, head: tuple[int, int]) -> StackTraces:
    """`trace_parts` of so many tokens that are scored at once in so many chunks, by a head of (ids, width)."""
    ids, width = head
    two, three = (_parts_of_lanes(_bare(config), dataclasses.replace(how, lanes=lanes), chunks > 1) for lanes in (2, 3))
    chunk_bytes = scored_again = 0
    if chunks > 1:
        # Forward: a chunk's logits and their log-softmax in float32. Backward: its softmax, that in the 16 bits of the
        # products, of bfloat16 both in these, and the gradient of the head's weight so far.
        logits = -(-tokens // chunks) * ids
        chunk_bytes = max(8 * logits, (6 if how.precision == "fp16" else 4) * logits + 4 * ids * width)
        scored_again = 2 * ids * width

    def at(a: SegmentTrace, b: SegmentTrace) -> SegmentTrace:
        """Everything grows with the lanes in a straight line; parameters are the same."""
        return dataclasses.replace(a.combined(b.combined(a, -1), how.lanes - 2), parameters=a.parameters)

    stacks = {stack: at(layer, three.stacks[stack]) for stack, layer in two.stacks.items()}
    return StackTraces(at(two.rest, three.rest), stacks, two.rest_parameters, chunk_bytes, scored_again)


@functools.lru_cache(maxsize=64)
def _head_sizes(config: ModelConfig, tensor: int) -> tuple[int, int]:
    """(ids, width) of a process's `Head`; a backbone's may have fewer ids than its data; 0: the family has none."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = family_of(config).build(config)
        shard_model(model, Axis(0, tensor))
        for head in _heads(model):
            return head.score.most(head.weight.shape[0]), head.weight.shape[1]
        return 0, 0


def _heads(model: Any) -> list[Head]:
    return [module for module in model.modules() if isinstance(module, Head)]


@functools.lru_cache(maxsize=256)
def _parts_of_lanes(config: ModelConfig, how: Execution, chunked: bool) -> StackTraces:
    """The parts as differences of whole models: one layer in every stack, and one more in one stack."""
    ones = dict.fromkeys(config.stacks, 1)
    one, one_outside = _trace(config.of_layers(ones), how, chunked)
    if (config, how) not in _ADDED:
        added = {}
        for stack in config.stacks:
            deeper, outside = _trace(config.of_layers(ones | {stack: 2}), how, chunked)
            outside = {part: shapes - one_outside[part] for part, shapes in outside.items()}
            added[stack] = deeper.combined(one, -1), outside
        _ADDED[config, how] = added
    rest, stacks, rest_parameters = one, {}, dict(one_outside)
    for stack, (layer, outside) in _ADDED[config, how].items():
        for part, shapes in outside.items():  # what each such layer has outside itself
            rest_parameters[part] = rest_parameters[part] - shapes
        rest = rest.combined(layer, -1)
        # A layer keeps no logits: what looks like them is only as wide as the vocabulary.
        saved = Counter(layer.saved)
        saved[ACTIVATIONS] += saved.pop(LOGITS, 0)
        stacks[stack] = dataclasses.replace(layer, saved=saved)
    return StackTraces(rest, stacks, rest_parameters)


def _trace(
    config: ModelConfig, how: Execution, chunked: bool = False, layer_sizes: list[int] | None = None
) -> tuple[SegmentTrace, dict[str, Counter[Shape]]]:
    """A whole model, and its parameters outside the layers by attribute.

    Args:
        config: The model.
        how: How the segment is computed.
        chunked: Whether logits are never whole, which the lanes of the run say, and not those that are traced.
        layer_sizes: Gets the bytes that each layer keeps by itself, without what it is given.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _collectives() as (sent, calls):
        model = family_of(config).build(config)
        shard_model(model, Axis(0, how.tensor))
        freeze(model, how.train, how.precision)
        if how.recompute:
            for layer in model.layers():
                layer.forward = functools.partial(recomputed, layer.forward, True)
        heads = _heads(model)
        for head in heads:
            # Two chunks keep what any number keeps, and each is traced call by call.
            whole = how.lanes * how.segment_length * head.score.most(len(head.weight)) * 4
            head.chunk_bytes = -(-whole // 2) if chunked else sys.maxsize
        segment = _full_segment(how)
        memory = torch.zeros(how.lanes, *config.memory_shape)
        here_anyway = [*model.parameters(), segment.context, segment.target]
        ids = heads[0].weight.shape[0] if heads else config.vocab_size or 0
        kept = _Kept(here_anyway, (how.lanes * how.segment_length, ids))
        autocast = torch.autocast("cpu", dtype=AUTOCAST.get(how.precision), enabled=how.precision in AUTOCAST)
        if how.tensor > 1:  # without other ranks these tell nothing, and are most of the work: so is the backward
            with torch.no_grad(), autocast:
                model.advance(segment, memory)
        advance, advance_calls = Counter(sent), Counter(calls)
        sent.clear()
        calls.clear()
        leaf = memory.requires_grad_()
        below: Counter[str] = Counter()
        model.layers()[-1].register_forward_hook(
            lambda *_: below.update({ACTIVATIONS: sum(kept.bytes.values())})  # there are no logits yet
        )
        if layer_sizes is not None:
            _measure_layers(model, kept, layer_sizes, how.precision in AUTOCAST)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            with autocast:
                loss, _, following = model(segment, leaf)
            saved = Counter(kept.bytes)  # before the backward, in which checkpoints recompute
        if how.tensor > 1:
            (loss + following.sum()).backward()
        if how.precision in AUTOCAST:
            dropped = _parameters_of_layers(model) if how.recompute else set()
            dropped |= {id(head.weight) for head in heads if chunked}
            saved[WEIGHT_COPIES], among_saved = _weight_copies(model, dropped)
            saved[ACTIVATIONS] -= among_saved
        in_layers, rest = _shapes(model, how)
    parameters = sum(rest.values(), in_layers)
    return SegmentTrace(saved, advance, Counter(sent), advance_calls, Counter(calls), parameters, below), rest


def _measure_layers(model: Any, kept: "_Kept", sizes: list[int], autocast: bool) -> None:
    """Has each layer tell what it keeps in its forward, beside its arguments, which are told apart before it."""

    def before(layer: Any, inputs: tuple[Any, ...]) -> None:
        for each in inputs:
            if isinstance(each, torch.Tensor):
                kept.pack(each)
        copies = sum(2 * each.weight.numel() for each in layer.modules() if isinstance(each, torch.nn.Linear))
        sizes.append(-sum(kept.bytes.values()) - autocast * copies)

    def after(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        sizes[-1] += sum(kept.bytes.values())

    for layer in model.layers():
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)


def _full_segment(how: Execution) -> Segment:
    """A segment whose lanes are all full, and in the middle of a document."""
    tokens = torch.zeros(how.lanes, how.segment_length, dtype=torch.int64)
    full = torch.full((how.lanes,), how.segment_length)
    return Segment(tokens, full, tokens, full, torch.zeros(how.lanes, dtype=torch.bool), False, False)


def _weight_copies(model: Any, dropped: set[int]) -> tuple[int, int]:
    """Bytes of the 16-bit copies of linear layers' weights that autocast makes; those that autograd has kept of them.

    Those of some parameters, by `id`, are dropped after the forward, which checkpointed layers do; until then autocast
    keeps them all. A head that scores in chunks drops its own too, and makes it again in the backward.
    """
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    linear = {id(module.weight): module.weight for module in modules if module.weight.dtype == torch.float32}
    kept = [weight for key, weight in linear.items() if key not in dropped]
    return sum(2 * weight.numel() for weight in linear.values()), sum(2 * weight.numel() for weight in kept)


def _parameters_of_layers(model: Any) -> set[int]:
    return {id(parameter) for layer in model.layers() for parameter in layer.parameters()}


def _shapes(model: Any, how: Execution) -> tuple[Counter[Shape], dict[str, Counter[Shape]]]:
    """The parameters of the layers; and the others, by the model's attribute that holds them."""
    linear, multiplied = of_linear_maps(model), only_multiplied(model)
    copied = {id(each.weight) for each in copied_weights(model)}
    settings = OptimizerConfig(name=how.optimizer, memory_learning_rate=1e-3 if how.memory_rate else None)
    groups = parameter_groups(model, settings)
    group = {id(parameter): number for number, each in enumerate(groups) for parameter in each["params"]}
    layers = _parameters_of_layers(model)
    in_layers: Counter[Shape] = Counter()
    rest: dict[str, Counter[Shape]] = {}
    for name, parameter in model.named_parameters():
        low_precision = id(parameter) in linear or parameter.element_size() < 4
        number = group.get(id(parameter), -1)
        muon = number >= 0 and groups[number]["muon"]
        sizes = parameter.numel(), low_precision, number, parameter.element_size()
        shape = Shape(*sizes, muon, id(parameter) in multiplied, id(parameter) in copied)
        found = in_layers if id(parameter) in layers else rest.setdefault(name.split(".")[0], Counter())
        found[shape] += 1
    return in_layers, rest


class _Kept:
    """Adds up what autograd saves, each storage once.

    Args:
        exclude: Tensors that are there anyway and do not count: parameters, and the tokens.
        logits: Rows and columns of the logits, which are told by them: [..., V], a row for each token; V is what the
            process has of the vocabulary.
    """

    def __init__(self, exclude: Iterable[torch.Tensor], logits: tuple[int, int]) -> None:
        self.bytes: Counter[str] = Counter()
        self._seen = {tensor.untyped_storage()._cdata for tensor in exclude}
        self._alive: list[torch.Tensor] = []
        self._logits = logits

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # so that no other storage gets this number
            self.bytes[LOGITS if self._are_logits(tensor) else ACTIVATIONS] += storage.nbytes()
        return tensor

    def _are_logits(self, tensor: torch.Tensor) -> bool:
        rows, columns = self._logits
        if not tensor.is_contiguous():  # the head's weight [D, V], where a segment has D tokens
            return False
        return tensor.is_floating_point() and tensor.shape[-1:] == (columns,) and tensor.numel() == rows * columns


@contextlib.contextmanager
def _collectives() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Inside, collectives count the bytes of their payload and themselves by kind, and do nothing else."""
    sent: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def counting(name: str) -> Any:
        def call(payload: Any, *_: Any, **__: Any) -> None:
            tensors = payload if isinstance(payload, (list, tuple)) else [payload]
            sent[name] += sum(each.numel() * each.element_size() for each in tensors)
            calls[name] += 1

        return call

    with contextlib.ExitStack() as stack:
        for name in ("all_reduce", "all_gather_into_tensor", "all_gather"):
            stack.enter_context(mock.patch.object(dist, name, counting(name)))
        yield sent, calls
