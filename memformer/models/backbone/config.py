# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`BackboneConfig`: which language model, which memory, and what a segment sees; checked when it is made.

Shapes: S tokens a segment, w of them overlap, M write tokens, K slots, D width, P features of a key.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from memformer.models.backbone.architectures import Architecture, architecture_of, sliding_window
from memformer.models.backbone.directory import read_config
from memformer.models.configuration import Forgetting, ModelConfig, check_types, forgetting_of, require

TIED_HEAD = {"head.weight": "embedding.weight"}
"""Names of the two parameters that `tie_word_embeddings` makes one."""
FEATURES = 6
"""Features of a key for each number of `d_key` (DPFP-3: 2 signs, 3 products)."""


def _whole(name: str, value: Any) -> int:
    """A number of a config.json, which may hold anything."""
    require(isinstance(value, int) and not isinstance(value, bool), name, value, "give a whole number")
    return int(value)


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What a lane carries from segment to segment.

    Raises:
        ValueError: A value is out of range; the message names the field, the value and the mend.
    """

    __pydantic_config__: ClassVar[Any] = ModelConfig.__pydantic_config__

    kind: Literal["associative", "slots", "tokens"] = "associative"
    """associative: a matrix for each chosen layer, written by the delta rule (6 d_key D numbers a lane and layer);
    slots: a Memformer's slots and writer (K D numbers); tokens: embeddings in front of the segment, as in RMT (K D
    numbers; for comparison: unlike the others it changes what the backbone says before anything is learned)."""
    layers: tuple[int, ...] | None = None
    """Layers, from 0, before which the memory is read and, of associative, behind which it is written; null: all.
    Not of tokens. Of an associative memory every layer costs 6 d_key D numbers a lane."""
    rule: Literal["delta", "armt"] = "delta"
    """Of associative: how a matrix S is written and read, with features f of length 1 and gates b of 0 to 1.
    delta: one write token after another, S + f(k)^T b (v - f(k) S); read as f(q) S.
    armt: all at once with a sum z of the features beside S (one number more a row), S + f(k)^T b (v - f(k) S / f(k) z)
    and z + g f(k), where g = 1 - f(k) z, at least 0, is what of k is new; read as f(q) S / f(q) z (Rodkin et al.,
    2024). For comparison with it."""
    d_key: int = 16
    """Of associative: numbers in a key, which is expanded to 6 times as many features."""
    num_slots: int = 16
    """Of slots and tokens: slots K."""
    num_write_tokens: int = 8
    """Of associative: learned tokens M behind every segment whose states are written; each costs what a token does."""
    num_heads: int | None = None
    """Of slots: heads of readers and writer; null: those of the backbone."""
    forgetting: Forgetting | bool = "off"
    """Of slots: what is added to a written slot before it is normalised, of b, the slot that it starts from. off:
    nothing; written: (1 - a_h) b in the part of each writer head h, a_h its weight of the slot on itself, so that what
    is overwritten moves towards b; paper: b at every segment, so that what lies across b shrinks to 1/(1 + |b|)."""
    write_layer: int | Literal["half"] | None = "half"
    """Of slots: layers whose output is written, half of them, or null: all. Outputs of the last layers say what comes
    next rather than what was read: from half-way up a needle is learned that is not from the top. The first pass of a
    replay runs these layers alone, so fewer of them make training faster as well."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        object.__setattr__(self, "forgetting", forgetting_of(self.forgetting, "memory.forgetting"))
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
            require(bool(self.layers), "memory.layers", [], "name a layer, or leave it out for all")
        for name in ("d_key", "num_slots", "num_write_tokens"):
            require(getattr(self, name) >= 1, f"memory.{name}", getattr(self, name), "set it to 1 or more")
        for name, kind, plain in (("rule", "associative", "delta"), ("forgetting", "slots", "off")):
            mend = f"it is of kind {kind}, and this is {self.kind}: leave it out, or set memory.kind to {kind}"
            require(self.kind == kind or getattr(self, name) == plain, f"memory.{name}", getattr(self, name), mend)

    @property
    def front(self) -> int:
        """Tokens that stand before a segment."""
        return self.num_slots if self.kind == "tokens" else 0

    @property
    def back(self) -> int:
        """Tokens that stand behind a segment."""
        return {"associative": self.num_write_tokens, "slots": 0, "tokens": self.num_slots}[self.kind]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank maps beside linear maps of the backbone (Hu et al., 2021): W x + alpha / rank * B A x, B zero at first.

    Raises:
        ValueError: A value is out of range; the message names the field, the value and the mend.
    """

    __pydantic_config__: ClassVar[Any] = ModelConfig.__pydantic_config__

    rank: int = 8
    """Rows of A, columns of B: rank (inputs + outputs) numbers for each map."""
    alpha: float = 16.0
    """What the low-rank map is multiplied by, times rank."""
    dropout: float = 0.0
    """Dropout probability of what enters the low-rank maps."""
    targets: tuple[str, ...] | None = None
    """Names of linear maps within a layer, as PEFT's target_modules; null: q_proj and v_proj, or what joins them."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(sorted(set(self.targets))))
            require(bool(self.targets), "lora.targets", [], "name a linear map, or leave it out")
        require(self.rank >= 1, "lora.rank", self.rank, "set it to 1 or more")
        require(self.alpha > 0, "lora.alpha", self.alpha, "set it above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "set it to at least 0 and below 1")


def is_adapter(name: str) -> bool:
    """Whether a parameter of a backbone is a low-rank adapter's."""
    return ".lora_A." in name or ".lora_B." in name


@dataclasses.dataclass(frozen=True)
class BackboneConfig(ModelConfig):
    """A language model of transformers with a memory.

    Raises:
        ValueError: A value is out of range, or a directory cannot be used; the message names the field and the mend.
    """

    family: ClassVar[str] = "backbone"
    stacks: ClassVar[tuple[str, ...]] = ("reading layers", "other layers")
    weightless: ClassVar[frozenset[str]] = ModelConfig.weightless | {"pretrained", "lora.dropout", "initial_values"}

    pretrained: str | None = None
    """Directory of a pretrained model as transformers saves it: config.json and safetensors. Read by new runs alone."""
    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The model's config.json. Filled in from pretrained; given by hand, a model without weights: {model_type: llama,
    hidden_size: 512, num_hidden_layers: 8, ...}, under the names that transformers has for its sizes."""
    initial_values: Literal["transformers", "fan_in"] = "transformers"
    """How a backbone without weights is drawn. transformers: as transformers draws it, for most model types normal with
    std 0.02 whatever the width. fan_in: linear maps normal with std 1/sqrt(inputs), the last of each residual branch
    divided by sqrt(2 layers) as well, embeddings 1/sqrt(D), the last norm's weight D^-1/4; narrow models learn faster
    from these."""
    overlap: int | None = None
    """Tokens w of the segment before that a segment sees; null: segment_length / 4. They are not scored again: each
    costs what a token does."""
    segment_bos: bool = True
    """Start every segment with the start token, which pretrained models expect; False: only that of a document."""
    bos_token_id: int | None = None
    """Id of the start token in the backbone's vocabulary; null: bos_token_id of its config.json, else the bos_token of
    its tokenizer's files, else that of the data set."""
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    lora: LoraConfig | None = None
    """Low-rank adapters of the backbone, {rank: 8, alpha: 16, dropout: 0, targets: [q_proj, v_proj]}, for
    training.train: lora; null: none."""
    dropout: float = 0.0
    """Dropout probability wherever the backbone has one (of Llama-like ones: attention alone), whatever its
    config.json says."""
    vocab_size: int | None = None
    """Token ids, that of the start token included; null: taken from the data set's tokenizer."""
    start_token_id: int | None = None
    """Id of the start token in the data; null: taken from the data set's tokenizer. The backbone is given its own
    (bos_token_id) in its place."""
    segment_length: int | None = None
    """Tokens S of a segment; null: taken from data.segment_length. Generation and evaluation read it."""

    def __post_init__(self) -> None:
        """Reads the directory's config.json, and checks what is known by now."""
        if self.pretrained is not None and not self.backbone:
            object.__setattr__(self, "backbone", read_config(self.pretrained))
        if not self.backbone:
            raise ValueError(
                "pretrained and backbone are both left out: name a directory, or give sizes ({model_type: llama, ...})"
            )
        architecture = self.architecture
        if self.pretrained is None:
            unknown = sorted(set(self.backbone) - architecture.keys - set(architecture.sizes))
            require(not unknown, "backbone", unknown, "names no size of this model_type: leave it out")
        require(
            self.pretrained is None or self.initial_values == "transformers",
            "initial_values",
            self.initial_values,
            "a pretrained backbone has its values: leave it out, or give sizes in backbone instead of pretrained",
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "set it to at least 0 and below 1")
        for name in ("vocab_size", "segment_length"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "set it to 1 or more, or leave it out")
        require(self.overlap is None or self.overlap >= 0, "overlap", self.overlap, "set it to 0 or more")
        self._check_memory()
        if self.lora is not None and self.lora.targets is not None:
            unknown = sorted(set(self.lora.targets) - set(architecture.linear))
            require(not unknown, "lora.targets", unknown, f"choose from {', '.join(architecture.linear)}")
        if self.segment_length is not None:
            self._check_length(self.segment_length)
        if self.vocab_size is not None and self.start_token_id is not None:
            self._check_vocabulary(self.vocab_size)

    def __hash__(self) -> int:
        """Equal configurations have equal numbers; a dictionary alone has none."""
        return hash((repr(self.backbone), self.memory, self.lora, self.pretrained, self.overlap, self.vocab_size))

    def _check_memory(self) -> None:
        memory, count = self.memory, self.num_layers
        if memory.layers is not None:
            require(
                memory.layers[0] >= 0 and memory.layers[-1] < count,
                "memory.layers",
                list(memory.layers),
                f"choose numbers from 0 to {count - 1}",
            )
        depth = memory.write_layer
        require(
            not isinstance(depth, int) or 1 <= depth <= count,
            "memory.write_layer",
            depth,
            f"choose a number from 1 to {count}, half, or null for all",
        )
        heads = self.memory_heads
        require(
            memory.kind != "slots" or (heads >= 1 and self.width % (2 * heads) == 0),
            "memory.num_heads",
            heads,
            f"choose a divisor of half the backbone's width {self.width}",
        )

    def _check_length(self, segment_length: int) -> None:
        overlap = self.overlap_of(segment_length)
        require(
            overlap <= segment_length, "overlap", overlap, f"set it to at most data.segment_length = {segment_length}"
        )
        needed = self.memory.front + overlap + segment_length + self.memory.back + 1
        window = sliding_window(self.backbone, self.architecture)
        for most, words in ((self.positions, "positions"), (window, "tokens in its sliding window")):
            if most is not None and needed > most:
                raise ValueError(
                    f"segment_length {segment_length} with overlap {overlap} and the memory's "
                    f"{self.memory.front + self.memory.back} tokens needs {needed} positions, {self._where} has {most} "
                    f"{words}: lower data.segment_length, model.overlap or the memory's tokens"
                )

    def _check_vocabulary(self, vocab_size: int) -> None:
        have, start = self.own_vocabulary, self.start_token_id
        if start is None or vocab_size - 1 > have:
            raise ValueError(
                f"vocab_size is {vocab_size} with the start token, but {self._where} has {have} ids: build the data "
                "set with that model's own tokenizer"
            )
        bos = self.bos
        require(0 <= bos < have, "bos_token_id", bos, f"choose an id below the backbone's {have}")

    @property
    def architecture(self) -> Architecture:
        """Where the backbone keeps its parts."""
        return architecture_of(self.backbone, self._where)

    @property
    def _where(self) -> str:
        """What errors name."""
        return "backbone" if self.pretrained is None else f"pretrained {self.pretrained}"

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return int(self.backbone[self.architecture.sizes[0]])

    @property
    def width(self) -> int:
        """Width D."""
        return int(self.backbone[self.architecture.sizes[1]])

    @property
    def positions(self) -> int:
        """The longest input of the backbone."""
        return int(self.backbone[self.architecture.sizes[3]])

    @property
    def own_vocabulary(self) -> int:
        """Ids that the backbone embeds and predicts: those of its config.json, or of the data set."""
        found = self.backbone.get("vocab_size", self.vocab_size)
        if found is None:
            raise ValueError("vocab_size is None: take it from the tokenizer")
        return _whole("vocab_size", found)

    @property
    def bos(self) -> int:
        """The id that stands for the start token in the backbone's input."""
        for each in (self.bos_token_id, self.backbone.get("bos_token_id"), self.start_token_id):
            if each is not None:
                return _whole("bos_token_id", each)
        raise ValueError("start_token_id is None: take it from the tokenizer")

    @property
    def memory_heads(self) -> int:
        """Heads of the readers and the writer of slots."""
        return self.memory.num_heads or int(self.backbone[self.architecture.sizes[2]])

    @property
    def adapted(self) -> bool:
        """Whether there are low-rank adapters."""
        return self.lora is not None

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """Names of the linear maps within a layer that have an adapter; none without adapters."""
        if self.lora is None:
            return ()
        return self.architecture.linear[: self.architecture.adapted] if self.lora.targets is None else self.lora.targets

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """Layers before which the memory is read."""
        return tuple(range(self.num_layers)) if self.memory.layers is None else self.memory.layers

    def overlap_of(self, segment_length: int) -> int:
        """Tokens w of the segment before that a segment sees."""
        return (self.segment_length or segment_length) // 4 if self.overlap is None else self.overlap

    def length_of(self, segment_length: int) -> int:
        """Inputs L of the backbone in a segment: its start, the overlap, the segment, the memory's own tokens."""
        prefix = max(1, min(self.overlap_of(segment_length), segment_length) + self.segment_bos)
        return self.memory.front + prefix + segment_length - 1 + self.memory.back

    @property
    def memory_shape(self) -> tuple[int, int]:
        """[K, C]: slots, or the features of all layers' keys by the width, and by their sum under ARMT's rule."""
        if self.memory.kind == "associative":
            rows = len(self.memory_layers) * FEATURES * self.memory.d_key
            return rows, self.width + (self.memory.rule == "armt")
        return self.memory.num_slots, self.width

    @property
    def memory_depth(self) -> int:
        """Layers that must run for the next memory."""
        if self.memory.kind == "associative":
            return self.memory_layers[-1] + 1
        chosen = self.memory.write_layer
        if self.memory.kind == "tokens" or chosen is None:
            return self.num_layers
        return (self.num_layers + 1) // 2 if chosen == "half" else chosen

    def layer_counts(self) -> dict[str, int]:
        """Layers with a memory of their own or a reader, and those without."""
        return self._counts(self.num_layers)

    def advanced_counts(self) -> dict[str, int]:
        """The same of those that the next memory depends on."""
        return self._counts(self.memory_depth)

    def _counts(self, depth: int) -> dict[str, int]:
        reading = 0 if self.memory.kind == "tokens" else sum(layer < depth for layer in self.memory_layers)
        return dict(zip(self.stacks, (reading, depth - reading), strict=True))

    def of_layers(self, counts: Mapping[str, int]) -> "BackboneConfig":
        """The same with so many of them, the former last; slots are written behind all."""
        count = sum(counts.values())
        backbone = self.backbone | {self.architecture.sizes[0]: count}
        reading = tuple(range(count))[-max(1, counts[self.stacks[0]]) :]
        memory = dataclasses.replace(self.memory, layers=reading, write_layer=None)
        return dataclasses.replace(self, backbone=backbone, memory=memory)

    def summary(self) -> str:
        """Kind, layers, width and memory."""
        rows, width = self.memory_shape
        return (
            f"{self.backbone['model_type']} with {self.num_layers} layers, width {self.width}, {self.memory.kind} "
            f"memory of {rows * width:,} numbers a lane"
        )

    def rows(self) -> dict[str, str]:
        """Kind, layers, width and memory."""
        return {
            "backbone": f"{self.backbone['model_type']}, {self.num_layers} layers, width {self.width:,}",
            "memory": f"{self.memory.kind}, {self.memory_shape[0]:,} x {self.memory_shape[1]:,} numbers",
        }

    def tied(self) -> Mapping[str, str]:
        """The head is the token embedding, where `tie_word_embeddings` says so."""
        return TIED_HEAD if self.backbone.get("tie_word_embeddings", self.architecture.tied) else {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BackboneConfig":
        """The inverse of `to_dict`.

        Raises:
            ValueError: An unknown field, or a value out of range.
        """
        parts: dict[str, Any] = {}
        for part, kind in (("memory", MemoryConfig), ("lora", LoraConfig)):
            known, given = {field.name for field in dataclasses.fields(kind)}, values.get(part)
            if unknown := sorted(set(given or ()) - known):
                raise ValueError(
                    f"unknown model field '{part}.{unknown[0]}'; the fields are {', '.join(sorted(known))}"
                )
            if given is not None:
                check_types(kind, given, f"{part}.")
                parts[part] = kind(**given)
        return super().from_dict({**values, **parts})
