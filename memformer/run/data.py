# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The data sets of a run: found, checked against the model, opened as streams. Only the streams need torch."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline import (
    Blend,
    DocumentIndex,
    FarSettings,
    SegmentBatch,
    SegmentStream,
    UserError,
    open_data,
    trace_rows,
)
from data_pipeline.addresses import beneath
from data_pipeline.far import default_cache
from data_pipeline.opening import holds_data
from data_pipeline.stream_settings import Damage, StreamSettings
from data_pipeline.tasks import parse_tasks
from data_pipeline.tasks.filler import texts_for
from data_pipeline.tasks.prompts import Cell, Grid, make_cells
from memformer.config.evaluation import EvaluationConfig
from memformer.config.schema import Config, DataConfig
from memformer.models.configuration import ModelConfig
from memformer.run import jsonl
from memformer.run.appending import Appender
from memformer.run.directory import RunDirectory

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from memformer.processes.group import World
    from memformer.replay import Rollout

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
        train: The training documents.
        held_out: The held-out ones, if there are any.
        asked: Documents of tasks, which the model is asked while it trains; see `asking`.
    """

    train: DocumentIndex | Blend
    held_out: DocumentIndex | Blend | None
    asked: tuple[Cell, ...] = ()

    @classmethod
    def open(cls, config: DataConfig) -> "TrainingData":
        """Finds and opens the data sets of `data.path` and `data.eval_path`.

        Raises:
            UserError: A data set is missing or damaged, the two have different tokenizers, or nothing is to be learned.
        """
        far = far_settings(config)
        named = config.path if isinstance(config.path, list) else [(config.path, 1.0)]
        sources = [source if isinstance(source, tuple) else (source.path, source.weight) for source in named]
        split = {path: not holds_data(path, far) and holds_data(beneath(path, "train"), far) for path, _ in sources}
        parts = [(beneath(path, "train") if split[path] else path, weight) for path, weight in sources]
        train = open_data(parts[0][0] if len(parts) == 1 else parts, far)
        if not train.counted_tokens:
            raise UserError(
                f"data.path: no token of {train.location} counts in the loss, all its loss weights are 0: name other "
                "data, or build it without --loss-weights-key"
            )
        if config.eval_path:
            held_out_paths = [config.eval_path]
        else:
            beside = [beneath(path, "validation") for path, _ in sources if split[path]]
            held_out_paths = [path for path in beside if holds_data(path, far)]
        if not held_out_paths:
            return cls(train, None)
        several = len(held_out_paths) > 1
        held_out = open_data([(path, 1.0) for path in held_out_paths] if several else held_out_paths[0], far)
        if held_out.tokenizer_sha256 != train.tokenizer_sha256:
            raise UserError(
                f"data.eval_path: {held_out.location} was built with another tokenizer than {train.location}: "
                "build both with the same --tokenizer"
            )
        return cls(train, held_out)

    def asking(self, settings: EvaluationConfig) -> "TrainingData":
        """The same with the documents of the tasks that the run is asked, in the tokens of its data.

        Raises:
            UserError: A document does not fit into its length, a text cannot be read, or the data set does not know
                its tokenizer.
        """
        if not settings.tasks:
            return self
        tasks = parse_tasks(",".join(settings.tasks))
        grid = Grid(settings.length, settings.depths, settings.documents, settings.seed)
        with _faults_of("evaluation.text"):
            texts = texts_for(tasks, settings.length, settings.text)
        with _faults_of("evaluation.tasks"):
            return dataclasses.replace(self, asked=make_cells(tasks, texts, grid, self.train.tokenizer))

    @property
    def asked_sha256(self) -> str | None:
        """Of the tokens that the run is asked, and where answers stand in them; None: it is asked none."""
        digest = hashlib.sha256()
        for prompt in (prompt for cell in self.asked for prompt in cell.prompts):
            digest.update(f"{len(prompt.tokens)} {prompt.answers} ".encode() + prompt.tokens.astype("<i8").tobytes())
        return digest.hexdigest() if self.asked else None

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer that the data sets were built with."""
        return self.train.path / "tokenizer.json"

    def complete(self, model: ModelConfig, segment_length: int) -> ModelConfig:
        """The model's configuration with what the data decides filled in.

        Raises:
            UserError: The configuration names a vocabulary or start token that the data set does not have, or the
                model does not take the data's.
        """
        tokenizer = self.train.tokenizer
        for name, found in (("vocab_size", tokenizer.vocab_size), ("start_token_id", tokenizer.start_token_id)):
            if getattr(model, name) not in (None, found):
                raise UserError(
                    f"model.{name} is {getattr(model, name)} but {self.train.location} was built with another "
                    f"tokenizer ({name} {found}): build the data set with that tokenizer, or leave model.{name} out"
                )
        try:
            return model.completed(tokenizer.vocab_size, tokenizer.start_token_id, segment_length)
        except ValueError as error:
            raise UserError(f"model.{error}") from None

    def train_stream(
        self, config: Config, world: "World", trained: "Callable[[int], NDArray[np.bool_]] | None" = None
    ) -> SegmentStream:
        """The endless stream of this process's lanes; all processes of a replica read the same.

        Args:
            config: The run.
            world: This process among all.
            trained: `StreamSettings.trained`.
        """
        settings = stream_settings(
            config,
            world,
            "training",
            num_lanes=config.data.num_lanes,
            num_segments=config.data.num_segments,
            seed=config.seed,
            prefetch=config.data.prefetch,
            trained=trained,
        )
        return SegmentStream(self.train, settings)

    def held_out_lanes(self, config: Config, world: "World") -> int:
        """As many lanes as held-out documents, at most num_lanes, of all processes."""
        assert self.held_out is not None
        return min(config.data.num_lanes, max(len(self.held_out), world.mesh.data.size))

    def held_out_stream(self, config: Config, world: "World", num_segments: int = 1) -> SegmentStream:
        """One epoch of the held-out documents, by default one segment a batch."""
        if self.held_out is None:
            raise ValueError("there are no held-out documents")
        settings = stream_settings(
            config,
            world,
            "held-out",
            num_lanes=self.held_out_lanes(config, world),
            num_segments=num_segments,
            epochs=1,
            order="longest_first",
            max_document_tokens=config.data.eval_max_document_tokens,
        )
        return SegmentStream(self.held_out, settings)


@contextlib.contextmanager
def _faults_of(setting: str) -> Iterator[None]:
    """Faults inside are those of a setting; options of the command line that they name are settings of a run here."""
    try:
        yield
    except UserError as error:
        words = str(error).removeprefix("--text ")
        words = words.replace("--lengths", "evaluation.length").replace("--text", "evaluation.text")
        raise UserError(f"{setting}: {words}", error.exit_code) from None


def stream_settings(config: Config, world: "World", documents: str, **fields: Any) -> StreamSettings:
    """What all streams of a run have in common, and what one of them has of its own.

    Args:
        config: The run.
        world: This process among all.
        documents: What is read, for messages: training or held-out.
        fields: Further fields of `StreamSettings`.
    """
    return StreamSettings(
        segment_length=config.data.segment_length,
        rank=world.mesh.data.rank,
        world_size=world.mesh.data.size,
        on_damage=config.data.on_damage,
        agree=agreement(world),
        on_skip=reporting(config, world, documents),
        **fields,
    )


def far_settings(config: DataConfig) -> FarSettings:
    """How data sets at an address are read."""
    return FarSettings(
        cache_dir=Path(config.cache_dir) if config.cache_dir else default_cache(),
        cache_gigabytes=config.cache_gigabytes,
        mode=config.remote_mode,
        allow_pipe=config.allow_pipe,
        look_ahead=config.look_ahead,
    )


def agreement(world: "World") -> Callable[[Damage], Damage]:
    """How processes tell each other which documents they found damaged: one number a batch, and names where needed."""

    from memformer.processes import group

    def agree(found: Damage) -> Damage:
        if world.size == 1:
            return found
        if not group.all_max(len(found)):
            return {}
        return {document: line for each in group.gather(dict(found)) for document, line in each.items()}

    return agree


def reporting(config: Config, world: "World", documents: str) -> Callable[[Damage], None]:
    """What is said of documents that are skipped: an event each, and a line in the log."""

    run = RunDirectory(config.run_dir)

    def report(damage: Damage) -> None:
        if world.is_main:
            for document, line in sorted(damage.items()):
                run.event("skip_document", documents=documents, document=document, reason=line)
                LOG.warning("skipped a damaged document (%s): %s", documents, line)

    return report


def rollout_of(batch: SegmentBatch, device: "torch.device") -> "Rollout":
    """The batch as tensors on the device."""
    import torch

    from memformer.replay import Rollout

    tokens, lengths, resets = (torch.from_numpy(each) for each in (batch.tokens, batch.lengths, batch.resets))
    weights = None if batch.loss_weights is None else torch.from_numpy(batch.loss_weights)
    return Rollout.of(tokens, lengths, resets, device, weights)


def counted_tokens(batch: SegmentBatch, world: "World") -> float:
    """What the loss of a rollout is divided by: the number of its targets of all lanes, or the sum of their weights.

    The number is known from the plan. Of weights each replica has read those that it trains on alone, so that all
    processes call this together; they are multiples of 1/32,768, so that the sum is exact whatever the topology.
    """
    if batch.loss_weights is None:
        return batch.valid_tokens
    from memformer.processes import group

    return group.sum_of_numbers(batch.counted if world.mesh.replica.rank == 0 else 0.0)


class Audit:
    """Writes what was delivered to the model, in the form of `memformer data trace`.

    Args:
        run: The run.
        world: This process among all; one of each replica writes, under the number of the replica.
        enabled: The setting `data.audit`.
    """

    def __init__(self, run: RunDirectory, world: "World", enabled: bool) -> None:
        self._rank = world.mesh.data.rank
        path = run.audit / f"rank-{self._rank:05d}.jsonl"
        self._file = Appender(path) if enabled and world.mesh.speaks else None

    def __enter__(self) -> "Audit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    @staticmethod
    def truncate_all(run: RunDirectory, last_step: int) -> None:
        """Drops what was read after the checkpoint that the run resumes from, by whatever number of processes."""
        for path in sorted(run.audit.glob("rank-*.jsonl")):
            jsonl.truncate(path, last_step)

    def delivered(self, batch: SegmentBatch) -> None:
        """One line a segment of the batch."""
        if self._file is not None:
            rows = trace_rows(batch, self._rank)
            self._file.append("".join(json.dumps(row) + "\n" for row in rows).encode())
