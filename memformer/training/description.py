# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What follows from a run's settings: its arithmetic costs, its identity in checkpoints, the lines it starts with."""

import dataclasses
import logging
import platform
from typing import Any

import torch

from data_pipeline.addresses import told
from memformer.config.schema import Config
from memformer.engine.compilation import kept_in, why_plain
from memformer.engine.precision import resolve_precision
from memformer.models.configuration import ModelConfig
from memformer.models.sizes import count_parameters, hardware_flops_per_token, model_flops_per_token
from memformer.parallel.pipeline.split import schedule_of, split_of
from memformer.planning.devices import peak_flops
from memformer.processes.group import World
from memformer.run.data import TrainingData
from memformer.run.directory import RunDirectory

LOG = logging.getLogger("memformer")


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the run's arithmetic costs, for its utilisation of the hardware.

    Attributes:
        model_flops: FLOPs a token of forward and backward, without anything computed twice.
        hardware_flops: The same with what replay and activation checkpointing compute again, by the segments T of a
            step.
        peak: FLOP/s of all devices together; None where the device is not known.
    """

    model_flops: float
    hardware_flops: dict[int, float]
    peak: float | None

    @classmethod
    def of(cls, config: Config, model: ModelConfig, world: World) -> "Costs":
        """The costs of a run."""
        length, replay = config.data.segment_length, config.training.replay
        checkpointing, train = config.activation_checkpointing.mode, config.training.train
        interval, group = config.activation_checkpointing.memory_interval, config.training.segments_per_decoder_batch
        window = config.training.wavefront_window
        peak = None
        if world.device.type == "cuda":
            name = torch.cuda.get_device_name(world.device)
            precision = resolve_precision(config.precision, world.device)
            peak = peak_flops(name, precision)
        return cls(
            model_flops_per_token(model, length, train),
            {
                segments: hardware_flops_per_token(
                    model, length, segments, replay, checkpointing, interval, train, group, window
                )
                for _, segments in config.data.segments.starts
            },
            None if peak is None else peak * world.size,
        )

    def utilisation(self, tokens_per_second: float, segments: int) -> dict[str, float | None]:
        """mfu and hfu, 0 to 1, of a step of T segments; None ("n/a") where the device's peak is not known."""
        if self.peak is None:
            return {"mfu": None, "hfu": None}
        return {
            "mfu": tokens_per_second * self.model_flops / self.peak,
            "hfu": tokens_per_second * self.hardware_flops[segments] / self.peak,
        }


def run_identity(
    config: Config, model: ModelConfig, data: TrainingData, world: World, precision: str
) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it."""
    import deepspeed

    return {
        "family": model.family,
        "model": model.to_dict(),
        "tokenizer_sha256": data.train.tokenizer.sha256,
        "data_fingerprint": data.train.fingerprint,
        "asked_sha256": data.asked_sha256,
        "num_lanes": config.data.num_lanes,
        "zero_stage": config.parallel.zero_stage,
        "world_size": world.size,
        **world.mesh.sizes,
        "precision": precision,
        "device": world.device.type,
        "settings": config.values(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
        },
    }


def told_to_services(identity: dict[str, Any], config: Config, model: ModelConfig) -> dict[str, Any]:
    """What services for experiments are told of a run: its identity, its size, its costs; nothing secret.

    Args:
        identity: `run_identity`.
        config: The run.
        model: Its model.
    """
    length, train = config.data.segment_length, config.training.train
    costs = {"model_flops_per_token": model_flops_per_token(model, length, train)}
    known: dict[str, Any] = told({**identity, "parameters": count_parameters(model), **costs})
    return known


def describe_run(config: Config, model: ModelConfig, documents: TrainingData, world: World, precision: str) -> None:
    """Prints the numbers that follow from the settings, and what may not be meant."""
    data = config.data
    tokens = data.num_lanes * data.most_segments * data.segment_length
    in_all = data.num_lanes * data.segments.total(config.training.max_steps) * data.segment_length
    train = documents.train
    LOG.info("run directory %s, configuration %s", config.run_dir, RunDirectory(config.run_dir).config)
    trained = "" if config.training.train == "all" else f" ({count_parameters(model, config.training.train):,} trained)"
    LOG.info("model: %s parameters%s, %s", f"{count_parameters(model):,}", trained, model.summary())
    LOG.info(
        "batch: %d lanes x %s segments x %d tokens = %s tokens a step%s; %s tokens in all",
        data.num_lanes,
        data.segments.words(),
        data.segment_length,
        f"{tokens:,}",
        " at most" if len(data.segments.starts) > 1 else "",
        f"{in_all:,}",
    )
    LOG.info(
        "data: %s documents of %s tokens in all, read %.3g times",
        f"{len(train):,}",
        f"{train.num_tokens:,}",
        in_all / train.num_tokens,
    )
    if train.has_loss_weights:
        share = 100 * train.counted_tokens / train.num_tokens
        LOG.info("loss: of %.4g %% of these tokens, by the weights in the data; tokens and speed are of all", share)
    if documents.asked:
        asked = [prompt for cell in documents.asked for prompt in cell.prompts]
        LOG.info(
            "tasks: every %d steps %s documents of %s tokens in all",
            config.evaluation.interval,
            f"{len(asked):,}",
            f"{sum(len(prompt.tokens) for prompt in asked):,}",
        )
    LOG.info(
        "%d process(es) on %s (pipeline %d x data %d x segment %d x tensor %d), ZeRO stage %d, %s",
        world.size,
        world.device.type,
        *world.mesh.sizes.values(),
        config.parallel.zero_stage,
        precision,
    )
    plain = why_plain(config, world.device)
    if plain is None:
        kept = kept_in(config, world.device)
        LOG.info("layers are compiled in the first steps, which take longer, and kept in %s", kept)
    elif world.device.type == "cuda":
        LOG.info("layers are not compiled: %s", plain)
    if world.mesh.pipe.size > 1:
        _describe_pipeline(config, model, world)
    if precision == "fp32":
        for name, found in (
            ("model.residual_dtype", getattr(model, "residual_dtype", "float32")),
            ("training.gradient_accumulation_dtype", config.training.gradient_accumulation_dtype),
        ):
            if found != "float32":
                LOG.warning(
                    "%s is %s, which changes no number here: precision auto is fp32 on %s; set precision to bf16 to "
                    "try it, or leave %s out",
                    name,
                    found,
                    world.device.type,
                    name,
                )
    if "model" not in config.model_fields_set:
        LOG.warning(
            "the configuration has no section model, so that the default is trained; other sizes are a file that "
            "it extends, such as extends: [builtin:model/tiny.yaml], or settings such as --model.d_model 128"
        )
    if train.num_tokens < tokens:
        LOG.warning(
            "%s holds %s tokens, fewer than the %s of one step: every step reads the same text more than once; give "
            "more text, or lower data.num_lanes, data.num_segments or data.segment_length",
            train.location,
            f"{train.num_tokens:,}",
            f"{tokens:,}",
        )
    elif len(train) < data.num_lanes:
        LOG.warning(
            "%s holds %s documents, fewer than the %s lanes: lanes begin the same document together, and a step reads "
            "the same tokens several times; give more documents, cut long ones into several, or lower data.num_lanes",
            train.location,
            f"{len(train):,}",
            f"{data.num_lanes:,}",
        )
    if documents.held_out is None and config.training.eval_interval:
        LOG.warning(
            "there are no held-out documents, so that nothing is evaluated: build the data set with "
            "--validation-fraction 0.1, name another one as data.eval_path, or set training.eval_interval to 0"
        )


def _describe_pipeline(config: Config, model: ModelConfig, world: World) -> None:
    own_lanes = config.data.num_lanes // world.mesh.data.size
    schedule = schedule_of(config, model, own_lanes)
    stages, groups = schedule.layout.stages, schedule.layout.micro_batches
    LOG.info(
        "stages of %s layers, %d micro-batch(es): stages wait %.1f %% of a rollout by their FLOPs (1F1B: %.1f %%)",
        "+".join(map(str, split_of(config, model).layers)),
        groups,
        100 * schedule.bubble,
        100 * (stages - 1) / (groups + stages - 1),
    )
