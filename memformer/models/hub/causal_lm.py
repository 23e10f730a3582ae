# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`MemoryCausalLM`: a memory model as transformers knows models, for `trust_remote_code`; source of a bundle.

`generate()` is that of transformers, with its settings, processors and streamers; what it keeps between tokens is a
reader of this project, which carries the memory from segment to segment. `model(input_ids)` scores texts segment by
segment in the same way. A lane is read from the beginning of a document; a start token there is the model's own.

Shapes: B texts, n tokens, S tokens a segment, V ids.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils.hub import cached_file

from memformer.models.exported import (
    DESCRIPTIONS,
    SINGLE,
    Place,
    check_facts,
    description_file,
    fill,
    read_description,
    weights,
)
from memformer.replay.segment import Segment

_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_WITHOUT_EFFECT = (
    "trust_remote_code", "_from_auto", "adapter_kwargs", "attn_implementation", "low_cpu_mem_usage", "use_safetensors",
    "_commit_hash", "weights_only",
)  # fmt: skip
_FILE_MISSING = {"_raise_exceptions_for_missing_entries": False}


class Texts:
    """Texts of any lengths that are read side by side, as `generate` has them: padded in front.

    Args:
        reader: Of B texts.
        lengths: Tokens of each text, without padding, B numbers.
    """

    def __init__(self, reader: Any, lengths: list[int]) -> None:
        self.reader, self.lengths = reader, lengths
        self.seen: torch.Tensor | None = None

    def read(self, tokens: torch.Tensor) -> None:
        """Reads on to the end of texts [B, n], padded in front.

        Raises:
            ValueError: They do not go on from what was read.
        """
        if self.seen is None:
            behind = [row.roll(length) for row, length in zip(tokens, self.lengths, strict=True)]
            self.reader.read(torch.stack(behind), self.lengths)
        else:
            done = self.seen.shape[1]
            if not torch.equal(tokens[:, :done], self.seen):
                raise ValueError("a memory cannot go back to an earlier token: use num_beams=1 and no assistant")
            self.reader.read(tokens[:, done:])
        self.seen = tokens.clone()


@dataclasses.dataclass
class MemoryOutput(CausalLMOutput):
    """Logits, and what has been read to give them.

    Attributes:
        reading: See `Texts`; None outside of `generate`.
    """

    reading: Texts | None = None


class MemoryCausalLM(PreTrainedModel, GenerationMixin):
    """A memory model.

    Args:
        config: As transformers read it from config.json.
        model: The model; None makes one of `memory_config`.
    """

    main_input_name = "input_ids"
    base_model_prefix = "model"
    _is_stateful = True
    _supports_sdpa = True

    memory_config: Any
    """The family's configuration class."""
    module: Any
    """The family's model."""
    reader: Any
    """The family's reader."""

    def __init__(self, config: Any, model: Any = None) -> None:
        super().__init__(config)
        if model is None:
            raise ValueError("a model with a memory is made from a directory: call from_pretrained")
        self.model = model

    @staticmethod
    def place(config: Any) -> Place:
        """Where the export keeps each parameter."""
        raise NotImplementedError

    @staticmethod
    def facts(config: Any) -> dict[str, Any]:
        """What the description must say of the configuration."""
        return {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads an export, from a directory or a hub.

        Args:
            pretrained_model_name_or_path: The directory, or the name on the hub.
            args: None.
            kwargs: dtype (None, "auto": the file's), device_map (a device), config, and those of the hub.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or an argument is not built.
        """
        hub = {name: kwargs.pop(name) for name in _OF_THE_HUB if name in kwargs}
        config, dtype = kwargs.pop("config", None), kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        device, told = _device(kwargs.pop("device_map", None)), kwargs.pop("output_loading_info", False)
        for name in [name for name, value in kwargs.items() if value is None or name in _WITHOUT_EFFECT]:
            del kwargs[name]
        if args or kwargs:
            raise ValueError(f"{cls.__name__}: {', '.join(kwargs) or args[0]} is not built: leave it out")
        directory = _directory(str(pretrained_model_name_or_path), hub)
        description = read_description(directory)
        try:
            own = cls.memory_config.from_dict(description["model"])
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{description_file(directory)}: {error}") from None
        check_facts(directory, description, cls.facts(own))
        with torch.device("meta"):
            model = cls.module(own)
        names = [name for name, _ in model.named_parameters()]
        found = weights(directory, description, cls.place(own), names)
        fill(model, own.tied(), found, directory / SINGLE, device)
        if config is None:
            config = (cls.config_class or AutoConfig).from_pretrained(directory)
        made = cls(config, model)
        if (directory / "generation_config.json").is_file():
            made.generation_config = GenerationConfig.from_pretrained(directory)
        if dtype not in (None, "auto"):
            made.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        made.eval()
        info: dict[str, Any] = {
            "missing_keys": set(),
            "unexpected_keys": set(),
            "mismatched_keys": set(),
            "error_msgs": [],
        }
        return (made, info) if told else made

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Not built: an export is written by `memformer export`, and copied as a directory."""
        raise ValueError("copy the directory that the model was loaded from: save_pretrained is not built")

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        reading: Texts | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
    ) -> MemoryOutput:
        """Logits of what follows each token.

        Args:
            input_ids: Texts from their beginnings, int64 [B, n].
            attention_mask: 0 at padding, which stands in front, [B, n].
            labels: As of any causal model of transformers: the texts, -100 where nothing is scored, [B, n].
            reading: Of `generate`: what has been read; the logits [B, 1, V] are then those of the next token alone.
            logits_to_keep: As of any causal model: this many from the end; 0: all.
            return_dict: Without effect.
            use_cache: Without effect.

        Returns:
            `logits` [B, n, V] and, with labels, `loss` in nats a token.

        Raises:
            ValueError: Texts of different lengths, outside of `generate`.
        """
        if input_ids is None:
            raise ValueError("input_ids is None: give tokens; inputs_embeds is not built")
        if reading is not None:
            reading.read(input_ids)
            return MemoryOutput(logits=self._known(reading.reader.logits)[:, None], reading=reading)
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            raise ValueError("texts of different lengths are scored one by one: leave the padding out")
        logits = self._scored(input_ids, 0 if labels is not None else logits_to_keep)
        loss = None
        if labels is not None:
            flat = logits[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=-100)
        return MemoryOutput(loss=loss, logits=logits[:, -logits_to_keep:] if logits_to_keep else logits)

    def _scored(self, tokens_Bn: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits of what follows each token, or at least the last `keep`: segment by segment, as the model was trained.

        Segments before the first that is kept are read by what the memory depends on alone.
        """
        length, starts = self.model.config.reading_length(None), self._is_start(tokens_Bn[:, :1])
        begins = int(starts.any())
        if begins and not bool(starts.all()):
            raise ValueError("some of the texts begin with a start token: give it to all or to none")
        # One more target than there are tokens, whose logits are those of what follows; it is not read.
        rest = F.pad(tokens_Bn[:, begins:], (0, 1))
        lanes = len(rest)
        memory = self.model.initial_memory(lanes)
        context = torch.zeros(lanes, length, dtype=torch.int64, device=rest.device)
        known, found = torch.zeros_like(context[:, 0]), []
        needed = rest.shape[1] - keep if keep else 0
        for start in range(0, rest.shape[1], length):
            target = rest[:, start : start + length]
            count = torch.full_like(known, target.shape[1])
            first = torch.full_like(known, start == 0, dtype=torch.bool)
            segment = Segment(context, known, target, count, first, start == 0, False)
            if start + length <= needed:
                memory = self.model.advance(segment, memory)
            else:
                logits, memory = self.model.logits(segment, memory)
                found.append(logits)
            context, known = target, torch.full_like(known, length)
        return self._padded(torch.cat(found, 1)[:, -tokens_Bn.shape[1] :])

    def _is_start(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whether tokens are start tokens, which the model puts in front of a text itself, bool of their shape."""
        bos = getattr(self.model, "bos", self.model.start_token_id)
        return (tokens == self.model.start_token_id) | (tokens == bos)

    def _padded(self, logits: torch.Tensor) -> torch.Tensor:
        """As many ids as config.json says: those that the model does not have are never drawn."""
        count = self.config.vocab_size
        return F.pad(logits, (0, max(0, count - logits.shape[-1])), value=float("-inf"))[..., :count]

    def _known(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """As `memformer generate` draws: a start token never follows."""
        start = torch.tensor([self.model.start_token_id], device=logits_BV.device)
        return self._padded(logits_BV.index_fill(-1, start, float("-inf")))

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        reading: Texts | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What `generate` calls the model with: all tokens so far, and what has been read of them."""
        if reading is None:
            seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask.bool().long()
            if bool((seen.diff(dim=1) < 0).any()):
                raise ValueError("padding stands behind a text: set the tokenizer's padding_side to left")
            lengths, count = seen.sum(1), input_ids.shape[1]
            first = input_ids.gather(1, (count - lengths).clamp(max=count - 1)[:, None])[:, 0]
            lengths = lengths - (self._is_start(first) & (lengths > 0)).long()
            reading = Texts(self.reader(self.model, len(lengths)), lengths.tolist())
        return {"input_ids": input_ids, "reading": reading}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """What has been read is kept with the other arguments of `generate`."""
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return updated | {"reading": outputs.reading}

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> bool:
        """No cache of transformers: the reader keeps what it needs, of one segment."""
        return False


def _device(device_map: Any) -> Any:
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if isinstance(device_map, dict) or device_map in ("balanced", "sequential"):
        raise ValueError(f"device_map {device_map!r} is not built: name one device")
    if device_map in (None, "auto"):
        return "cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu"
    return device_map


def _directory(name: str, hub: dict[str, Any]) -> Path:
    """Where the files of an export lie: the directory itself, or the hub's copy of it."""
    if Path(name).is_dir():
        return Path(name)
    stems = [f"{stem}.safetensors{end}" for stem in ("model", "memory") for end in ("", ".index.json")]
    files = [cached_file(name, file, **hub, **_FILE_MISSING) for file in (*DESCRIPTIONS, *stems)]
    there = [Path(file) for file in files if file is not None]
    if not there:
        raise FileNotFoundError(f"{name}: holds no config.json: name a directory made by memformer export")
    directory = there[0].parent
    description = read_description(directory)
    named = {**(description.get("files") or {}), **(description.get("base") or {}).get("files", {})}
    for file in (*named, "generation_config.json"):
        if (description.get("base") or {}).get("directory", ".") == "." or file in (description.get("files") or {}):
            cached_file(name, file, **hub, **_FILE_MISSING)
    return directory
