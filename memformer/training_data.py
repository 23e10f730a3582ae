# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The data sets of a run: found, checked against the model, opened as streams."""

import dataclasses
import json
from pathlib import Path

import torch

from data_pipeline import DocumentIndex, SegmentBatch, SegmentStream, UserError, trace_rows
from memformer.config import Config, DataConfig
from memformer.distributed import World
from memformer.model import MemformerConfig
from memformer.replay import Rollout
from memformer.run_directory import RunDirectory, truncate_lines


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training documents and, if there are any, the held-out ones."""

    train: DocumentIndex
    held_out: DocumentIndex | None

    @classmethod
    def open(cls, config: DataConfig) -> "TrainingData":
        """Finds and opens the data sets of `data.path` and `data.eval_path`.

        Raises:
            UserError: A data set is missing or damaged, or the two have different tokenizers.
        """
        root = Path(config.path)
        split = not (root / "manifest.json").exists() and (root / "train" / "manifest.json").exists()
        train = DocumentIndex.load(root / "train" if split else root)
        held_out_path = Path(config.eval_path) if config.eval_path else root / "validation"
        if not config.eval_path and not (split and (held_out_path / "manifest.json").exists()):
            return cls(train, None)
        held_out = DocumentIndex.load(held_out_path)
        if held_out.manifest.tokenizer_sha256 != train.manifest.tokenizer_sha256:
            raise UserError(
                f"data.eval_path: {held_out_path} was built with another tokenizer than {train.path}: "
                "build both with the same --tokenizer"
            )
        return cls(train, held_out)

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer that the data sets were built with."""
        return self.train.path / "tokenizer.json"

    def complete(self, model: MemformerConfig, segment_length: int) -> MemformerConfig:
        """The model's configuration with what the data decides filled in.

        Raises:
            UserError: The configuration names a vocabulary or start token that the data set does not have.
        """
        tokenizer = self.train.tokenizer
        for name, found in (("vocab_size", tokenizer.vocab_size), ("start_token_id", tokenizer.start_token_id)):
            if getattr(model, name) not in (None, found):
                raise UserError(
                    f"model.{name} is {getattr(model, name)} but {self.train.path} was built with another tokenizer "
                    f"({name} {found}): build the data set with that tokenizer, or leave model.{name} out"
                )
        return dataclasses.replace(
            model,
            vocab_size=tokenizer.vocab_size,
            start_token_id=tokenizer.start_token_id,
            segment_length=segment_length,
        )

    def train_stream(self, config: Config, world: World) -> SegmentStream:
        """The endless stream of this process's lanes."""
        data = config.data
        return SegmentStream(
            self.train,
            num_lanes=data.num_lanes,
            segment_length=data.segment_length,
            num_segments=data.num_segments,
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            prefetch=data.prefetch,
        )

    def held_out_stream(self, config: Config, world: World) -> SegmentStream:
        """One epoch of the held-out documents, one segment a batch; as many lanes as documents, at most num_lanes."""
        if self.held_out is None:
            raise ValueError("there are no held-out documents")
        lanes = min(config.data.num_lanes, max(len(self.held_out), world.size))
        return SegmentStream(
            self.held_out,
            num_lanes=lanes,
            segment_length=config.data.segment_length,
            num_segments=1,
            rank=world.rank,
            world_size=world.size,
            epochs=1,
            order="longest_first",
        )


def rollout_of(batch: SegmentBatch, device: torch.device) -> Rollout:
    """The batch as tensors on the device."""
    return Rollout.of(
        torch.from_numpy(batch.tokens), torch.from_numpy(batch.lengths), torch.from_numpy(batch.resets), device
    )


class Audit:
    """Writes what was delivered to the model, in the form of `memformer data trace`.

    Args:
        run: The run.
        rank: This process.
        enabled: The setting `data.audit`.
        last_step: The last step of the checkpoint that the run resumes from; later lines are dropped.
    """

    def __init__(self, run: RunDirectory, rank: int, enabled: bool, last_step: int) -> None:
        self._rank, self._file = rank, None
        if enabled:
            run.audit.mkdir(exist_ok=True)
            path = run.audit / f"rank-{rank:05d}.jsonl"
            truncate_lines(path, last_step)
            self._file = path.open("a", encoding="utf-8")

    def delivered(self, batch: SegmentBatch) -> None:
        """One line a segment of the batch."""
        if self._file is not None:
            self._file.writelines(json.dumps(row) + "\n" for row in trace_rows(batch, self._rank))
            self._file.flush()
