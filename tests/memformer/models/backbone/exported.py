# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Exports of tiny models by the code of `memformer export`, without a run before it."""

from pathlib import Path
from typing import Any

from data_pipeline.tokenizer_choice import make_tokenizer
from memformer.checkpoints.export_folder import ExportFolder
from memformer.models.registry import family_of


def write_export(model: Any, directory: Path, dtype: str = "fp32", most: int = 10**9, left_to: Any = None) -> Path:
    """The files that an export of a model has.

    Args:
        model: Of any family, with 257 ids: those of bytes and a start token.
        directory: To be made.
        dtype: Of the weights.
        most: Bytes of a file at most.
        left_to: The pretrained directory and its files that weights of the language model are left to; None: none.
    """
    directory.mkdir(parents=True)
    tokenizer = make_tokenizer("bytes")
    tokenizer.save(directory.parent / "tokenizer.json")
    state = {"model": model.config.to_dict(), "tokenizer_sha256": tokenizer.sha256, "step": 3, "tokens": 5}
    weights = dict(model.named_parameters())
    folder = ExportFolder(directory, family_of(model.config), model.config, state, most, left_to)
    folder.write_tokenizer(directory.parent / "tokenizer.json")
    if left_to is not None:
        from memformer.models.backbone.parts import file_names

        weights = {name: each for name, each in weights.items() if not file_names(name, model.config.architecture)}
    folder.write({name: tuple(each.shape) for name, each in weights.items()}, weights.__getitem__, dtype)
    return directory
