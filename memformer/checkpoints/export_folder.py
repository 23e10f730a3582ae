# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`ExportFolder`: the files of an export as they come into being, under whatever names its family has for them.

    own layout        model.safetensors  config.json (the description)            tokenizer.json  modeling_*.py
    another program's model.safetensors  config.json  memory.safetensors memory.json (the description)  tokenizer files

A stem that is larger than a limit is several files with an index, as transformers has them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from data_pipeline.files import sync
from memformer.checkpoints.tensor_file import write_tensors
from memformer.models.configuration import ModelConfig
from memformer.models.exported import DESCRIPTIONS, DTYPES, FORMAT, LAID_OUT, own_place, size_and_sum
from memformer.models.family_record import Family
from memformer.models.hub.bundle import bundle

TOKENIZER, DATA_TOKENIZER = "tokenizer.json", "memory-tokenizer.json"
"""The data set's tokenizer; its name where the pretrained model's own is beside it."""
FAST_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
}
"""What transformers must be told of a tokenizer.json of ours; texts are padded with its last id, the start token."""

Shapes = Mapping[str, tuple[int, ...]]


class ExportFolder:
    """The directory of an export that is being made.

    Attributes:
        tokenizer: Name of the file with the data set's tokenizer.

    Args:
        directory: An empty directory.
        kind: The model's family.
        model: Its configuration.
        state: The checkpoint's state.json.
        max_file_bytes: Weights beyond this are spread over several files.
        base: The pretrained directory that weights are left to, and the files of its weights; None: none are.
    """

    def __init__(
        self,
        directory: Path,
        kind: Family,
        model: ModelConfig,
        state: Mapping[str, Any],
        max_file_bytes: int,
        base: tuple[Path, list[Path]] | None = None,
    ) -> None:
        self.directory, self._kind, self._model, self._state = directory, kind, model, state
        self._most, self._base, self.tokenizer = max_file_bytes, base, TOKENIZER
        export = kind.export
        self._place = own_place if export is None or export.place is None else export.place(model)
        self._laid_out = export is not None and export.place is not None

    def write_tokenizer(self, file: Path) -> None:
        """Puts the tokenizer of the data set there, and what the pretrained model has beside its weights."""
        export = self._kind.export
        for each in () if export is None else export.beside(self._model):
            shutil.copyfile(each, self.directory / each.name)
        if (self.directory / TOKENIZER).exists():
            self.tokenizer = DATA_TOKENIZER
        elif export is not None:
            start = json.loads(file.read_text(encoding="utf-8"))["added_tokens"][-1]["content"]
            self._write_json("tokenizer_config.json", FAST_TOKENIZER | {"pad_token": start})
        shutil.copyfile(file, self.directory / self.tokenizer)

    def write(self, shapes: Shapes, tensor_of: Callable[[str], torch.Tensor], dtype: str) -> dict[str, int]:
        """Writes the weights, in place of those of an earlier call, and what describes them.

        Args:
            shapes: The parameters that are written.
            tensor_of: Gives the tensor of a name; it is dropped before the next one is asked for.
            dtype: fp32 or bf16.

        Returns:
            Bytes of each file of weights.

        Raises:
            OSError: The disk is full, or the directory cannot be written.
        """
        for old in self.directory.glob("*.safetensors*"):
            old.unlink()
        stems: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            stems.setdefault(self._place(name)[0], {})[name] = shape
        sums: dict[str, dict[str, Any]] = {}
        for stem, group in stems.items():
            sums |= self._write_stem(stem, group, tensor_of, DTYPES[dtype])
        self._describe(sums, dtype)
        return {name: int(entry["bytes"]) for name, entry in sums.items()}

    def sync(self) -> None:
        """Has the disk hold all of it."""
        for file in self.directory.iterdir():
            sync(file)
        sync(self.directory)

    def _write_stem(
        self, stem: str, shapes: Shapes, tensor_of: Callable[[str], torch.Tensor], dtype: torch.dtype
    ) -> dict[str, dict[str, Any]]:
        groups: list[list[str]] = [[]]
        filled = 0
        for name, shape in shapes.items():
            size = dtype.itemsize * torch.Size(shape).numel()
            if groups[-1] and filled + size > self._most:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
        count = len(groups)
        names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        if count == 1:
            names = [f"{stem}.safetensors"]
        sums: dict[str, dict[str, Any]] = {}
        places: dict[str, str] = {}
        for file, group in zip(names, groups, strict=True):
            own = {self._place(name)[1][0]: name for name in group}
            places |= dict.fromkeys(own, file)
            layout = {there: (dtype, shapes[name]) for there, name in own.items()}

            def of_file(there: str, own: Mapping[str, str] = own) -> torch.Tensor:
                return tensor_of(own[there]).to(dtype)

            sums[file] = write_tensors(self.directory / file, layout, of_file, {"format": "pt"})
        if count > 1:
            index = {"metadata": {"total_size": sum(entry["bytes"] for entry in sums.values())}, "weight_map": places}
            self._write_json(f"{stem}.safetensors.index.json", index)
        return sums

    def _describe(self, sums: dict[str, dict[str, Any]], dtype: str) -> None:
        """Writes config.json, the description, and the code for transformers."""
        export, state = self._kind.export, self._state
        description = {
            "format": LAID_OUT if self._laid_out else FORMAT,
            "architecture": self._kind.architecture,
            "model": state["model"],
            "tokenizer_sha256": state["tokenizer_sha256"],
            "step": state["step"],
            "tokens": state["tokens"],
        }
        if export is not None:
            (self.directory / export.code_file).write_text(bundle(export.code), encoding="utf-8")
            config = export.config(self._model, dtype)
            description |= export.facts(self._model) if self._laid_out else config
        if self.tokenizer != TOKENIZER:
            description["tokenizer_file"] = self.tokenizer
        if self._laid_out:
            self._write_json("config.json", config)
            own = {name: entry for name, entry in sums.items() if not name.startswith("model")}
            base = {name: entry for name, entry in sums.items() if name not in own}
            own["config.json"] = size_and_sum(self.directory / "config.json")
            where = "."
            if self._base is not None:
                own |= base
                where, base = str(self._base[0]), {file.name: size_and_sum(file) for file in self._base[1]}
            described = {"dtype": dtype, "files": own, "base": {"directory": where, "files": base}}
            self._write_json(DESCRIPTIONS[0], description | described)
        else:
            self._write_json("config.json", description | {"files": sums})

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
