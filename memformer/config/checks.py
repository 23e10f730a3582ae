# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What settings ask of each other across sections: each check refuses with a ValueError of one line.

Each takes a `memformer.config.schema.Config`, or a section of it, which calls it when it is made; `each_once` takes a
list, `in_a_cloud` an address.
"""

import json
import math
from typing import Any, TypeVar

from data_pipeline.cloud_settings import CloudAddress
from data_pipeline.errors import UserError
from memformer.models.registry import family_of, stages_of, wavefronts_of

Value = TypeVar("Value", str, int, float)


def each_once(values: list[Value]) -> list[Value]:
    """A list in which nothing stands twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"is {values}: one comes twice, leave it out")
    return values


def in_a_cloud(address: str) -> str:
    """An address that can be copied to."""
    try:
        return str(CloudAddress.parse(address))
    except UserError as error:
        raise ValueError(str(error)) from None


def steps(config: Any) -> None:
    """What lies within the run's steps."""
    last = config.training.max_steps
    if config.optimizer.warmup_steps > last:
        raise ValueError(
            f"optimizer.warmup_steps is {config.optimizer.warmup_steps}: set it to at most training.max_steps = {last}"
        )
    if config.profile.steps and config.profile.steps[1] > last:
        raise ValueError(f"profile.steps is {config.profile.steps}: the last step is training.max_steps = {last}")


def residual_stream(config: Any) -> None:
    """What precision a residual stream in 16 bits is for."""
    if getattr(config.model, "residual_dtype", "float32") == "compute" and config.precision in ("fp32", "fp16"):
        why = "nothing is in 16 bits" if config.precision == "fp32" else "a stream that grows would leave its range"
        raise ValueError(f"model.residual_dtype is compute: in precision {config.precision} {why}, set it to float32")


def gradient_accumulation(config: Any) -> None:
    """Where gradients are added up in 16 bits: whole on each process, in copies of the weights, and reduced once."""
    parallel, training = config.parallel, config.training
    if training.gradient_accumulation_dtype == "float32":
        return
    asked = "training.gradient_accumulation_dtype is bfloat16"
    if config.precision in ("fp32", "fp16"):
        raise ValueError(f"{asked}: gradients of precision {config.precision} are not in it, set it to float32")
    if parallel.zero_stage == 0:
        raise ValueError(
            f"{asked}: at parallel.zero_stage 0 the optimizer steps by the sums themselves: set it to float32, or the "
            "latter to 1, 2 or 3"
        )
    gathered = parallel.zero3_gather if parallel.zero_stage == 3 else "rollout"
    for name, found, plain in (
        ("parallel.gradient_reduction", parallel.gradient_reduction, "rollout"),
        ("parallel.zero3_gather", gathered, "rollout"),
        ("training.wavefront_window", training.wavefront_window, 0),
    ):
        if found != plain:
            raise ValueError(f"{asked}, but {name} is {found}: set it to float32, or the latter to {plain}")


def zero(parallel: Any) -> None:
    """What offloading and gathering ask of the stage of ZeRO."""
    if parallel.zero3_gather != "rollout" and parallel.zero_stage != 3:
        raise ValueError(
            f"zero3_gather is {parallel.zero3_gather}: at zero_stage {parallel.zero_stage} nothing is gathered, leave "
            "it out, or set zero_stage to 3"
        )
    if parallel.offload_optimizer != "none" and parallel.zero_stage == 0:
        raise ValueError(
            "offload_optimizer is cpu: at zero_stage 0 every process steps every parameter where it lies, set "
            "zero_stage to 1, 2 or 3"
        )
    if parallel.offload_parameters != "none" and parallel.zero_stage != 3:
        raise ValueError(
            f"offload_parameters is cpu: at zero_stage {parallel.zero_stage} every process needs the whole parameters "
            "all the time, set zero_stage to 3"
        )
    if parallel.offload_parameters != "none" and parallel.offload_optimizer == "none":
        raise ValueError(
            "offload_parameters is cpu: the parameters are the optimizer's master weights, which then lie there "
            "too, set offload_optimizer to cpu"
        )


def optimizer(config: Any) -> None:
    """What DeepSpeed's own AdamW does not do, as the whole optimizer or as that of a part of what is offloaded."""
    offload: Any = config.deepspeed
    for key in ("zero_optimization", "offload_optimizer"):  # of any form: what is no section is told elsewhere
        offload = offload.get(key) if isinstance(offload, dict) else None
    theirs = {
        f"deepspeed.zero_optimization.offload_optimizer.{key} is {json.dumps(offload[key])}": "leave it out"
        for key in ("ratio", "super_offload")
        if isinstance(offload, dict) and key in offload
    }
    if config.optimizer.implementation == "deepspeed":
        theirs["optimizer.implementation is deepspeed"] = "set it to torch"
    for field, plain in (("name", "adamw"), ("state_dtype", "float32")):
        value = getattr(config.optimizer, field)
        for said, mend in theirs.items():
            if value != plain:
                raise ValueError(
                    f"{said}: DeepSpeed's own AdamW is not built for optimizer.{field} {value}: {mend}, or set the "
                    f"latter to {plain}"
                )


def memory_parameters(config: Any) -> None:
    """What is asked of the memory's parameters, or of adapters, alone."""
    model, family, train = config.model, family_of(config.model), config.training.train
    asked = [("optimizer.memory_learning_rate", "leave it out")] * (config.optimizer.memory_learning_rate is not None)
    asked += [("training.train", "set it to all")] * (train != "all")
    for name, mend in asked:
        if family.memory is None:
            raise ValueError(f"{name}: not built for family {family.name}: {mend}")
        if not model.memory_shape[0]:
            raise ValueError(f"{name}: the model has no memory slots: {mend}")
    if train == "lora" and family.adapter is None:
        raise ValueError(f"training.train is lora: not built for family {family.name}: set it to all or memory")
    if train == "lora" and not model.adapted:
        raise ValueError(
            "training.train is lora, but model.lora is left out: give its rank, or set the former to memory"
        )
    if train != "lora" and model.adapted:
        raise ValueError(f"model.lora is given, but training.train is {train}: set it to lora, or leave model.lora out")


def tensor_parallel(config: Any) -> None:
    """What tensor parallelism and activation partitioning ask of the model."""
    tensor, model = config.parallel.tensor, config.model
    family = family_of(model)
    if tensor == 1 and config.activation_checkpointing.partition_activations:
        raise ValueError(
            "activation_checkpointing.partition_activations is true: it needs parallel.tensor above 1, set it to false"
        )
    if tensor == 1:
        return
    if family.shard is None:
        raise ValueError(f"parallel.tensor: not built for family {family.name}: set it to 1")
    try:
        sizes = family.shard.sizes(model)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    for name, size in sizes.items():
        if size % tensor:
            raise ValueError(
                f"model.{name} is {size}, which parallel.tensor {tensor} does not divide: choose a multiple of "
                f"{tensor}, or set parallel.tensor to a divisor of {size}"
            )
    count = math.prod(model.memory_shape)
    if config.activation_checkpointing.partition_activations and count % tensor:
        raise ValueError(
            f"activation_checkpointing.partition_activations is true: parallel.tensor {tensor} does not divide the "
            f"{count} numbers of a lane's memory ({' x '.join(map(str, model.memory_shape))}): set it to false"
        )


def contiguous(config: Any) -> None:
    """DeepSpeed's buffers of layers' inputs are all of the first layer's size, and emptied at the first backward."""
    if not config.activation_checkpointing.contiguous_checkpointing:
        return
    apart = family_of(config.model).decoder_apart
    for name, value, why in (
        ("model.overlap", config.model.overlap if apart else 0, "the decoder's inputs are longer than the encoder's"),
        (
            "training.segments_per_decoder_batch",
            config.training.segments_per_decoder_batch,
            "the decoder's inputs are larger than the encoder's",
        ),
        ("parallel.pipeline", config.parallel.pipeline, "a stage keeps the inputs of several segments"),
    ):
        if value > 1:
            raise ValueError(
                "activation_checkpointing.contiguous_checkpointing is true, for inputs of one size and one segment, "
                f"but {name} is {value}: {why}; set the former to false, or the latter to 1"
            )


def replay(config: Any) -> None:
    """What full back-propagation, and a decoder that takes several segments at once, leave nothing to."""
    interval, bptt = config.activation_checkpointing.memory_interval, config.training.replay == "bptt"
    if bptt and interval > 1:
        raise ValueError(
            f"activation_checkpointing.memory_interval is {interval}, but training.replay is bptt, which keeps every "
            "segment's graph: set the former to 1, or the latter to mrbp"
        )
    group, family = config.training.segments_per_decoder_batch, family_of(config.model)
    if group == 1:
        return
    asked = f"training.segments_per_decoder_batch is {group}"
    if not family.decoder_apart:
        raise ValueError(f"{asked}: not built for family {family.name}: set it to 1")
    if bptt:
        raise ValueError(f"{asked}, but training.replay is bptt, which takes no groups: set the former to 1")
    if config.parallel.pipeline > 1:
        raise ValueError(f"{asked}: not built for parallel.pipeline above 1: set one of them to 1")
    if interval > 1:
        raise ValueError(
            f"{asked}, which keeps the memory before every {group} segments alone: set "
            f"activation_checkpointing.memory_interval, which is {interval}, to 1"
        )
    if config.parallel.offload_optimizer != "none" and config.parallel.gradient_reduction == "segment":
        raise ValueError(
            f"{asked}: with parallel.offload_optimizer, DeepSpeed steps what the last of several reductions reduces, "
            "which has no decoder: set parallel.gradient_reduction to rollout"
        )
    if group > config.data.most_segments:
        raise ValueError(
            f"{asked}: a rollout has {config.data.most_segments} segments (data.num_segments) at most, set it to no "
            "more"
        )
    if config.compile is True and config.model.dropout:
        raise ValueError(
            f"{asked}: with compile, masks cannot be drawn by segment: set model.dropout to 0, or one of the others to "
            "1 or false"
        )


def wavefront(config: Any) -> None:
    """What training along diagonals asks of the model and of the other settings."""
    window, parallel, training = config.training.wavefront_window, config.parallel, config.training
    if not window:
        return
    asked, checkpointing = f"training.wavefront_window is {window}", config.activation_checkpointing
    try:
        diagonals = wavefronts_of(config.model)
    except ValueError as error:
        raise ValueError(f"{asked}: {error}: set it to 0") from None
    try:
        diagonals.check(config.model, trained=True)
    except ValueError as error:
        raise ValueError(f"{asked}: model.{error}: set the former to 0") from None
    if window > config.data.most_segments:
        raise ValueError(
            f"{asked}: a rollout has {config.data.most_segments} segments (data.num_segments) at most, set it to no "
            "more"
        )
    alone = {
        "training.replay": (training.replay, "mrbp", "keeps every segment's graph"),
        "parallel.tensor": (parallel.tensor, 1, "cuts the layers that a diagonal has as one batch"),
        "parallel.pipeline": (parallel.pipeline, 1, "gives the layers of a diagonal to several processes"),
        "parallel.segment": (parallel.segment, 1, "gives the segments of a diagonal to several processes"),
        "activation_checkpointing.memory_interval": (
            checkpointing.memory_interval,
            1,
            "thins out what is kept, of which there is the memory before each window alone",
        ),
        "compile": (config.compile is True, False, "compiles layers one by one"),
    }
    for name, (found, plain, does) in alone.items():
        if found != plain:
            value = json.dumps(plain) if isinstance(plain, bool) else plain
            raise ValueError(f"{asked}: {name} {does}: set the former to 0, or the latter to {value}")
    if parallel.zero_stage == 3:
        raise ValueError(
            f"{asked}: parallel.zero_stage 3 partitions the parameters, which a wavefront has side by side: set the "
            "latter to 0, 1 or 2"
        )
    if checkpointing.mode == "full" and checkpointing.cpu_checkpointing:
        raise ValueError(
            f"{asked}: with activation_checkpointing.mode full the inputs of its diagonals stay on the device: set "
            "cpu_checkpointing to false, or mode to none"
        )


def pipeline(config: Any) -> None:
    """What pipelines ask of the model and of the other settings."""
    parallel, stages = config.parallel, config.parallel.pipeline
    if stages == 1 and parallel.segments_in_flight is not None:
        raise ValueError(
            f"parallel.segments_in_flight is {parallel.segments_in_flight}, but parallel.pipeline is 1, and has none: "
            "leave the former out, or set the latter to 2 or more"
        )
    if stages == 1 and parallel.pipeline_layers is None:
        return
    if stages == 1 and family_of(config.model).stages is None:
        raise ValueError(f"parallel.pipeline_layers: not built for family {config.model.family}: leave it out")
    cut = stages_of(config.model)
    layers = sum(cut.layers(config.model))
    if parallel.pipeline_layers is not None:
        by_hand = parallel.pipeline_layers
        if len(by_hand) != stages or min(by_hand, default=0) < 1 or sum(by_hand) != layers:
            raise ValueError(
                f"parallel.pipeline_layers is {by_hand}: give each of the {stages} stages of parallel.pipeline at "
                f"least 1 layer, {layers} in all ({cut.words})"
            )
    if stages == 1:
        return
    if stages > layers:
        raise ValueError(
            f"parallel.pipeline is {stages}, but the model has {layers} layers, and each stage needs one: set it to at "
            f"most {layers}"
        )
    rows, columns = () if cut.rows is None else cut.rows(config.model), config.model.memory_shape[1]
    if config.activation_checkpointing.partition_activations and any(n * columns % parallel.tensor for n in rows):
        raise ValueError(
            f"activation_checkpointing.partition_activations is true: parallel.tensor {parallel.tensor} does not "
            f"divide the {max(rows) * columns} numbers of a layer's memory ({max(rows)} x {columns}): set it to false"
        )
    if parallel.zero_stage > 1:
        raise ValueError(
            f"parallel.zero_stage is {parallel.zero_stage}: a pipeline stage keeps its gradients whole until all "
            "segments of a rollout have added to them, so with parallel.pipeline above 1 set it to 0 or 1"
        )
    interval = config.activation_checkpointing.memory_interval
    if interval > 1:
        raise ValueError(f"activation_checkpointing.memory_interval is {interval}: pipelines keep all, set it to 1")
    if parallel.gradient_reduction == "segment":
        raise ValueError("parallel.gradient_reduction is segment: pipelines reduce once a rollout, set it to rollout")
    if config.training.replay == "bptt":
        raise ValueError(
            "training.replay is bptt, which is for one stage: with parallel.pipeline above 1 set it to mrbp"
        )


def segments(config: Any) -> None:
    """What segments over processes ask of the model, of rollouts and of the other settings."""
    parallel, ranks = config.parallel, config.parallel.segment
    if ranks == 1:
        return
    asked = f"parallel.segment is {ranks}"
    if not config.model.memory_shape[0]:
        raise ValueError(
            f"{asked}: the model has no memory slots, so that its segments need nothing of each other: set it to 1, "
            "and give more lanes (data.num_lanes) to data-parallel processes"
        )
    if parallel.pipeline > 1:
        raise ValueError(f"{asked}: not built for parallel.pipeline above 1: set one of them to 1")
    if config.training.replay == "bptt":
        raise ValueError(f"{asked}, but training.replay is bptt, which has one graph on one process: set it to mrbp")
    interval = config.activation_checkpointing.memory_interval
    if interval > 1:
        raise ValueError(
            f"activation_checkpointing.memory_interval is {interval}: with parallel.segment above 1 each process keeps "
            "all memories of its own segments, set it to 1"
        )
    if parallel.gradient_reduction == "segment":
        raise ValueError(
            f"parallel.gradient_reduction is segment, but {asked}, whose processes come to their segments at other "
            "times: set it to rollout"
        )
    if config.compile is True and config.model.dropout:
        raise ValueError(
            f"{asked}: with compile, masks cannot be drawn by segment: set model.dropout to 0, or compile to false"
        )
    fewest = min(count for _, count in config.data.segments.starts)
    if fewest < ranks:
        raise ValueError(
            f"{asked}, but a rollout has {fewest} segments (data.num_segments): give at least {ranks}, one to each "
            "process, or set it to no more"
        )
    if parallel.zero_stage == 3 and parallel.zero3_gather == "segment":
        raise ValueError(
            f"parallel.zero3_gather is segment, but {asked}: a process that waits for a memory gathers nothing, and "
            "the others would wait for it; set it to rollout"
        )
