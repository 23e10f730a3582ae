# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Family`: a kind of memory model, with everything the system needs to know of it.

Importing the module of a family must not import torch: a configuration is refused, and help is shown, without it. So
`build`, `reader` and the like import what they need when they are called.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memformer.models.configuration import ModelConfig, SegmentFlops


class Role(enum.Enum):
    """What becomes of a module when a layer is spread over t tensor-parallel processes (Shoeybi et al., 2019).

    A value is *replicated* (the same on all of them), *partial* (they sum to it) or *sliced* (each has a part of the
    last dimension).
    """

    ATTENTION = "attention"
    """Its `num_heads` becomes each process's own; its linear maps have roles of their own."""
    COLUMNS = "columns"
    """A linear map, `weight` and `bias`, from replicated to sliced: each process has some rows of the weight. Or gains
    of what it gives, of which each has those of its slice."""
    ROWS = "rows"
    """`nn.Linear` from sliced to replicated: each process has some columns, and the parts add up. Or another map that
    has an attribute `inputs`, a `memformer.models.heads.Inputs`, which is replaced."""
    BEFORE = "before"
    """A norm or an identity whose output goes into sliced work alone: gradients are summed behind it."""
    SUMMED = "summed"
    """A module in sliced work that each process has whole, such as a norm of each head: the gradients of its parameters
    are summed, those of its input stay partial."""
    VOCABULARY = "vocabulary"
    """`nn.Embedding`: each process has the rows of some ids."""
    HEAD = "head"
    """`memformer.models.scoring.Head`: each process has the logits of some ids, and its attribute `score`, at first a
    `scoring.Score`, is replaced."""
    JOINED_HEADS = "joined heads"
    """Like ATTENTION, but what its heads give is joined instead of projected: its attribute `heads`, a
    `memformer.models.heads.Heads`, is replaced. It is cut after the model is drawn, not while: its matrices may be
    drawn from each other."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How tensor parallelism cuts a family.

    Attributes:
        sizes: Of a configuration: field -> what the number of processes must divide; the first that it does not is
            named. ValueError, in one line: it is not built for such a configuration.
        roles: Of a module, be it the whole model or a part of it: every module inside that has a role. A tied head is
            told by its weight being the embedding's.
    """

    sizes: Callable[[Any], dict[str, int]]
    roles: Callable[[Any], Iterator[tuple[Any, Role]]]


class LayerFlops(NamedTuple):
    """Operations of one forward of a layer, for one lane's segment."""

    layer: int
    """What activation checkpointing computes again."""
    beside: int = 0
    """What is computed behind it and kept: its memory's writer, and behind the last one the head."""
    advance: int = 0
    """What of both pass 1 computes; 0 where no memory depends on the layer."""


def _anything(_: Any) -> None:
    """Every configuration can be cut."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """How a pipeline cuts a family.

    Its cell is an encoder, on the memory's path, and a decoder that needs its output (a memory that one stage writes);
    or layers with memories of their own, each of which stays on its layer's stage: these are all encoder layers then.
    The layers, and what goes with one of them, are children of one module by kind, named by their number.

    Attributes:
        layers: Of a configuration: number of encoder layers and of decoder layers.
        words: Where these numbers are set, for error messages.
        stacks: Of a configuration: for each layer, which of its `stacks` it is counted in.
        costs: (configuration, segment length) -> what each layer costs.
        width: Of a configuration: numbers a token in what one layer hands to the next.
        lengths: (configuration, segment length) -> tokens of that between encoder layers and between decoder layers.
        kind: Of a part of the model: the name of its kind, where it is a layer or goes with one, else None.
        places: Of a configuration: for each kind, the layer with which each of its parts goes, by the part's number.
        trained: (configuration, setting `training.train`) -> of each layer, whether it has a part that is trained.
        cut: (model, encoder layers, decoder layers) as ranges of numbers -> the module of one stage, a
            `protocol.Stage`. The model may have been left with these layers alone.
        home: Attribute of the model that has parameters outside its layers -> the stage that trains them: "first" (of
            the first layer), "writer" (of the last encoder layer) or "last".
        embedding: Attribute of the model, of those in `home`, that has the token embedding, of which stages other than
            the first may hold copies.
        rows: Of a configuration: rows of the memory that each layer has of its own, in their order; None: the last
            encoder layer writes all.
        check: Of a configuration. ValueError, in one line that begins with the field's name: it cannot be cut.
    """

    layers: Callable[[Any], tuple[int, int]]
    words: str
    stacks: Callable[[Any], Sequence[str]]
    costs: Callable[[Any, int], Sequence[LayerFlops]]
    width: Callable[[Any], int]
    lengths: Callable[[Any, int], tuple[int, int]]
    kind: Callable[[Any], str | None]
    places: Callable[[Any], Mapping[str, Sequence[int]]]
    trained: Callable[[Any, str], Sequence[bool]]
    cut: Callable[[Any, range, range], Any]
    home: Mapping[str, str]
    embedding: str = "embedding"
    rows: Callable[[Any], tuple[int, ...]] | None = None
    check: Callable[[Any], None] = _anything


@dataclasses.dataclass(frozen=True)
class Wavefronts:
    """How a family reads a document along the diagonals of segments and layers: for `--wavefront`, and for training.

    Attributes:
        check: (configuration, trained=False). ValueError, in one line: it has no wavefront, or none to be trained by.
        build: (model, recompute=False, moved=True) -> a `protocol.Wavefront`; ValueError as above, of what the
            configuration does not say. For training it is a `replay.WindowCell` too; with `recompute` each diagonal
            keeps its inputs alone, and without `moved` no parameter gets another storage.
    """

    check: Callable[..., None]
    build: Callable[..., Any]


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Export:
    """How a family's exports are laid out where transformers opens them too (`models.exported`, `models.hub`).

    Attributes:
        code: Module under `memformer.models.hub` with the classes for `trust_remote_code`; with all of this project
            that it imports it becomes one file beside the weights.
        code_file: Name of that file, modeling_*.py.
        config: (configuration, precision) -> what config.json has beside, or, with `place`, instead of the description.
        place: Of a configuration: where each parameter is, under which name. The description is then memory.json. None:
            under its own name in model.safetensors, described by config.json.
        facts: Of a configuration: what memory.json says of it at its top, for other programs.
        beside: Of a configuration: files of a pretrained model that go along (tokenizer, generation settings).
        base: Of a configuration: the directory of the pretrained model and its weights' files, or None; what of it is
            unchanged may be left out.
    """

    code: str
    code_file: str
    config: Callable[[Any, str], dict[str, Any]]
    place: Callable[[Any], Callable[[str], tuple[str, tuple[str, ...]]]] | None = None
    facts: Callable[[Any], dict[str, Any]] = _nothing
    beside: Callable[[Any], list[Path]] = lambda _: []
    base: Callable[[Any], tuple[Path, list[Path]] | None] = lambda _: None


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of memory model. What is None is refused in one line that names the setting and the family.

    Attributes:
        name: As `model.family` has it.
        architecture: As `architecture` in the config.json of an export has it.
        config: Its configuration, a frozen dataclass.
        build: (configuration, construction or None) -> the model (`protocol.MemoryModel`, a `torch.nn.Module`).
        flops: (configuration, segment length S) -> operations of a segment.
        reader: (model, batch size, segment length or None) -> a `protocol.Reader`.
        shard: For parallel.tensor above 1.
        stages: For parallel.pipeline above 1.
        decoder_apart: Whether its models are `replay.DecoderApart` with one forward for all of it, forward(segment,
            memory, "encode") and forward(segment, context, "score"): for training.segments_per_decoder_batch above 1.
            Its configurations' `stacks` are then the encoder's layers and the decoder's, and `stages` is given.
        inspect: Model -> what `inspect-memory` looks at (`memformer.models.slots.SlotWriter`); None where the memory
            has no such slots, and is looked at by `look`.
        look: (model, segment, memory) -> one read and one write (`memformer.models.looking.Looked`), without gradient,
            for the diagnostics of training and for `inspect-memory`; None: `MemoryModel.self_weights` says all.
        memory: Of a parameter's name: whether it is the memory's, for `optimizer.memory_learning_rate` and
            `training.train: memory`.
        adapter: Of a parameter's name: whether it is a low-rank adapter's, for `training.train: lora`.
        merge: (configuration with adapters, name -> tensor) -> the configuration without them, and name -> tensor with
            its adapter in it, for `memformer export --merge`; given where `adapter` is.
        beside: (configuration, directory, names of parameters, name -> tensor) -> None, which writes what an export has
            beside its weights in forms of other programs.
        weights: Configuration -> name and stored tensor (`construction.StoredTensor`) of every weight that a new model
            starts from, one after another, or None where all are drawn, as where this is None; the others stay as they
            were drawn. ValueError, in one line: they cannot be had.
        export: How its exports are laid out; None: for this program alone.
        compiled: Whether `compile: auto` compiles its layers: where a GPU has been seen to gain by it.
        wavefront: How it reads documents along diagonals; its readers then have an attribute `wavefront`, as
            `segment_reader.SegmentReader`.
    """

    name: str
    architecture: str
    config: type[ModelConfig]
    build: Callable[..., Any]
    flops: Callable[[Any, int], SegmentFlops]
    reader: Callable[..., Any]
    shard: Sharding | None = None
    stages: Stages | None = None
    decoder_apart: bool = False
    inspect: Callable[[Any], Any] | None = None
    look: Callable[[Any, Any, Any], Any] | None = None
    memory: Callable[[str], bool] | None = None
    adapter: Callable[[str], bool] | None = None
    merge: Callable[[Any, Callable[[str], Any]], tuple[Any, Callable[[str], Any]]] | None = None
    beside: Callable[[Any, Path, Iterable[str], Callable[[str], Any]], None] | None = None
    weights: Callable[[Any], Iterator[tuple[str, Any]] | None] | None = None
    export: Export | None = None
    compiled: bool = False
    wavefront: Wavefronts | None = None

    def trains(self, train: str, name: str) -> bool:
        """Whether a parameter is trained.

        Args:
            train: The setting `training.train`: all; memory; or lora, which is the memory and the adapters.
            name: The parameter.
        """
        parts = {"memory": (self.memory,), "lora": (self.memory, self.adapter)}.get(train)
        return parts is None or any(of is not None and of(name) for of in parts)
