# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The configuration of a run: one schema for the YAML files, the command line, the checks and the help.

The section `model` is checked by the configuration class of `model.family`, all others are the same for every family.
A YAML file may begin with `extends: [../model/tiny.yaml, builtin:model/7b.yaml]`; the named files, `builtin:` those of
the package, are read first, in order, and the file's own values go over them, `--section.field VALUE` over both.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)

from data_pipeline.errors import UserError
from data_pipeline.segment_schedule import SegmentSchedule
from memformer.config import checks
from memformer.config.addresses import without_passwords
from memformer.config.deepspeed_keys import unfit
from memformer.config.evaluation import EvaluationConfig
from memformer.config.faults import Faults
from memformer.config.files import dump_yaml, read_values
from memformer.config.json_schema import settings_of
from memformer.config.places import Place
from memformer.config.profile import ProfileConfig
from memformer.config.section import Section
from memformer.config.written import Where, Written, settle
from memformer.models.configuration import ModelConfig
from memformer.models.registry import DEFAULT, UnknownFamily, family


def _segments(value: object) -> int | dict[int, int]:
    """A number, or a schedule, with whole numbers."""
    starts = SegmentSchedule.of(value).starts
    return dict(starts) if isinstance(value, Mapping) else starts[0][1]


Segments = Annotated[
    int | dict[int, int],
    PlainValidator(_segments),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "object"}]}),
]
"""A number of segments, or a schedule of it."""


class DataSource(Section):
    """One data set of several."""

    path: Place
    """Directory or address of the data set."""
    weight: float = Field(1.0, ge=0)
    """Its share of the tokens, relative to the others; may change at a resume, for the steps to come."""


class DataConfig(Section):
    """What is read, and in what shape."""

    path: Place | list[DataSource]
    """Data set directory made by `memformer data build`; with train/ and validation/ inside, both are used. An address
    (http://, https://, s3://, pipe:COMMAND) is read over the network. Several data sets: a list of {path, weight}."""
    eval_path: Place | None = None
    """Data set of the held-out documents; null: the validation/ beside the training set, if there is one."""
    num_lanes: int = Field(16, ge=1)
    """Lanes B of the global batch, over all processes; must be a multiple of the data-parallel processes."""
    segment_length: int = Field(128, ge=2)
    """Tokens S of a segment."""
    num_segments: Segments = 4
    """Segments T that one optimizer step trains through; or by the steps done before, {0: 1, 1000: 2, 3000: 4}."""
    audit: bool = False
    """Write audit/rank-*.jsonl: every segment as it was delivered to the model."""
    prefetch: int = Field(2, ge=1)
    """Rollouts read ahead of the training step."""
    eval_max_document_tokens: int | None = Field(None, ge=1)
    """Cut longer held-out documents into pieces of this many tokens, each read with a fresh memory, so that few lanes
    idle in the end of an evaluation; null: never."""
    on_damage: Literal["stop", "skip"] = "stop"
    """A damaged document ends the run (stop), or is left out by all processes from then on, with an event (skip)."""
    on_change: Literal["refuse", "restart"] = "refuse"
    """A run that resumes with another data set or seed than its checkpoint's is refused; or it goes on with weights,
    optimizer and schedule, and reads the new data from the beginning, every lane with a fresh memory (restart)."""
    cache_dir: Place | None = None
    """Local directory for what is copied from addresses, shared by the processes of a machine; null: one in the
    system's directory for temporary files."""
    cache_gigabytes: float = Field(50.0, gt=0)
    """Size of the copied shards at most, in GB (10^9 bytes); the least recently used go first, those in use stay."""
    remote_mode: Literal["spool", "range"] = "spool"
    """Addresses: copy whole shards to cache_dir (spool), or ask for parts of shards ahead of the plan (range)."""
    allow_pipe: bool = False
    """Allow addresses pipe:COMMAND, which run a shell command."""
    look_ahead: int = Field(32, ge=0)
    """Addresses: rollouts whose data is asked for ahead of the one being read."""

    @property
    def segments(self) -> SegmentSchedule:
        """T by the number of steps done before."""
        return SegmentSchedule.of(self.num_segments)

    @property
    def most_segments(self) -> int:
        """The largest T of the run."""
        return self.segments.most

    _no_passwords = model_validator(mode="after")(without_passwords)


class TrainingConfig(Section):
    """The loop."""

    max_steps: int = Field(1000, ge=1)
    """Optimizer steps of the whole run."""
    eval_interval: int = Field(500, ge=0)
    """Steps between evaluations on the held-out documents; 0: never."""
    eval_segments: int = Field(64, ge=1)
    """Segments a lane of one evaluation at most."""
    train: Literal["all", "memory", "lora"] = "all"
    """What is trained: all; the memory's parameters alone (memory); or these and the adapters of model.lora (lora).
    The rest is frozen: no gradients, no optimizer states, matrices stored in 16 bits under precision bf16, and written
    by the first checkpoint alone, which the later ones share."""
    replay: Literal["mrbp", "bptt"] = "mrbp"
    """Memory replay back-propagation, or full back-propagation through time (the reference; T times the memory)."""
    lanes_per_micro_batch: int | None = Field(None, ge=1)
    """Lanes of a process that are replayed together; null: all of them. Fewer need less memory."""
    segments_per_decoder_batch: int = Field(1, ge=1)
    """G: segments that the decoder of a replay, or of an evaluation, takes as one batch; more pay where a segment's is
    too small for the device (docs/parallelism.md)."""
    wavefront_window: int = Field(0, ge=0)
    """W: segments of a replay that go through the layers along diagonals, and whose graphs are held at a time, of a
    backbone with a matrix at each layer (docs/backbones.md); 0: one segment after another."""
    gradient_accumulation_dtype: Literal["float32", "bfloat16"] = "float32"
    """What gradients of segments and groups of lanes are added up in, of weights that precision bf16 only multiplies.
    bfloat16: half the memory, and every addition rounds (docs/parallelism.md)."""
    log_interval: int = Field(10, ge=1)
    """Steps between two lines of the log (metrics.jsonl has every step)."""
    wall_clock_limit_seconds: float = Field(0, ge=0)
    """Seconds after its start when a process saves and leaves with 75, to be started again; 0: no limit."""
    finish_step_seconds: float = Field(10, ge=0)
    """A run that is asked to stop finishes its step if steps take less than this; a longer one is abandoned at the
    next segment and done again later."""
    diagnostics_interval: int = Field(50, ge=0)
    """Steps between two looks into the memory (slot norms, the writer's weight on itself); 0: never."""
    memory_pictures_interval: int = Field(1000, ge=0)
    """Steps between two sets of pictures of the memory (those of `memformer inspect-memory`, on a held-out document) as
    TensorBoard images; needs matplotlib, tensorboard, held-out documents and parallel.pipeline 1; 0: never."""


class OptimizerConfig(Section):
    """AdamW or Muon, the schedule, clipping."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon, which steps the matrices between embedding and head along their momentum made orthogonal, one
    state instead of two, and all else by AdamW, with one learning rate for both (docs/optimizers.md)."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    memory_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the memory's own parameters, with the schedule of the others; null: learning_rate."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay, on matrices only (not on norms, not on the slot bias)."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up from 0. Unless it is set, a tenth of training.max_steps where that is less."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine to the end; or stable, then linear decay over decay_fraction (wsd); or constant."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """Learning rate at the last step, as a fraction of the peak."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Part of max_steps that the wsd schedule decays over."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first decay rate."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's second decay rate."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's momentum, with Nesterov's look ahead."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """What AdamW's averages and Muon's momentum are stored in between steps. bfloat16: half the memory, rounded up or
    down at random so that small changes count on average; weights and gradients stay float32."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest global L2 norm of the gradient; 0: no clipping."""
    implementation: Literal["torch", "deepspeed"] = "torch"
    """torch's fused AdamW, or DeepSpeed's (FusedAdam on GPUs, CPUAdam with offload: compiled at the first start)."""

    @property
    def memory_factor(self) -> float:
        """What the learning rate is multiplied by for the memory's parameters."""
        return 1.0 if self.memory_learning_rate is None else self.memory_learning_rate / self.learning_rate


class ParallelConfig(Section):
    """How the model is spread over the processes."""

    tensor: int = Field(1, ge=1)
    """Processes that share each layer of a model replica: heads, feed-forward, vocabulary. Must divide model.num_heads,
    model.writer_heads and model.d_ff; best a divisor of the GPUs of a machine."""
    pipeline: int = Field(1, ge=1)
    """Pipeline stages that share the layers of a model replica; lanes are replayed in groups that follow each other
    through the stages (training.lanes_per_micro_batch)."""
    segment: int = Field(1, ge=1)
    """Processes that share each rollout of the same lanes: a group of lanes (training.lanes_per_micro_batch) has
    consecutive segments of it on each, and hands its memory on (docs/parallelism.md)."""
    pipeline_layers: list[int] | None = None
    """Layers of each stage, encoder before decoder, e.g. [8, 6, 6]; null: balanced by their FLOPs."""
    segments_in_flight: int | None = Field(None, ge=1)
    """Segments whose graph a pipeline stage holds at most; null: 2 * pipeline + 2, or pipeline + 1 where each layer has
    a memory of its own. Fewer need less memory and leave stages waiting."""
    zero_stage: int = Field(1, ge=0, le=3)
    """DeepSpeed ZeRO stage: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
    gradient_reduction: Literal["rollout", "segment"] = "rollout"
    """Reduce gradients once a rollout, or once a segment (T times the traffic; ZeRO 2 and 3 then hold no full
    gradient during the rollout). Both are exact."""
    zero3_gather: Literal["rollout", "segment"] = "rollout"
    """ZeRO 3: gather the parameters once a rollout (one whole model resident), or layer by layer in every segment."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """ZeRO 1-3: where optimizer states and fp32 master weights lie and are stepped; cpu: in host memory."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """ZeRO 3: where each process's part of the parameters lies between its uses; cpu: in host memory."""

    @model_validator(mode="after")
    def _of_the_stage(self) -> "ParallelConfig":
        checks.zero(self)
        return self


class ActivationCheckpointingConfig(Section):
    """Memory for time inside a replayed segment, and where the replay buffer lies."""

    mode: Literal["none", "full"] = "none"
    """none, or full: recompute each layer in its backward, inside the replayed segment."""
    partition_activations: bool = False
    """Partition the memories between segments, and with mode full the input of each layer, over the tensor-parallel
    processes; needs parallel.tensor above 1."""
    cpu_checkpointing: bool = False
    """Keep the memories between segments, and with mode full the input of each layer, in host memory."""
    memory_interval: int = Field(1, ge=1)
    """k: of the memories between segments keep every k-th, and compute the others again from it when their turn comes.
    About T/k + k of T are kept, fewest at the square root of T, for one more `advance` of each other; 1: all are."""
    contiguous_checkpointing: bool = False
    """Keep the partitioned inputs of the layers in one buffer, against fragmentation; needs mode full and
    partition_activations."""

    @model_validator(mode="after")
    def _contiguous_parts(self) -> "ActivationCheckpointingConfig":
        if self.contiguous_checkpointing and not (self.partition_activations and self.mode == "full"):
            raise ValueError(
                "contiguous_checkpointing is true: set mode to full and partition_activations to true as well, or set "
                "it to false"
            )
        return self


class LossScaleConfig(Section):
    """The scale of the objective under precision fp16 (memformer/engine/precision.py)."""

    initial: float = Field(65536.0, ge=1)
    """Scale of the first step."""
    minimum: float = Field(1.0, gt=0)
    """It is halved no further; a gradient that is not finite at this scale is a fault (guards.max_skips)."""
    growth_interval: int = Field(1000, ge=1)
    """Steps without overflow after which it is doubled."""

    @model_validator(mode="after")
    def _minimum_below_initial(self) -> "LossScaleConfig":
        if self.minimum > self.initial:
            raise ValueError(f"minimum is {self.minimum:g}: set it to at most initial = {self.initial:g}")
        return self


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    interval: int = Field(500, ge=0)
    """Steps between checkpoints; 0: none by steps. There is always one at the end and when asked to stop."""
    interval_minutes: float = Field(0, ge=0)
    """Minutes after the last checkpoint when another one is due, whatever the step; 0: none by time."""
    keep_last: int = Field(2, ge=1)
    """Complete checkpoints kept; older ones are deleted after a newer one is complete."""
    keep_interval: int = Field(0, ge=0)
    """Checkpoints of every such number of steps are kept for ever; 0: none."""
    keep_hours: float = Field(0, ge=0)
    """The first checkpoint of every such number of hours is kept for ever; 0: none."""
    background: bool = False
    """Copy the state to host memory (on a GPU to pinned memory, which stays) and write it while training goes on."""
    mirror: Annotated[Place, AfterValidator(checks.in_a_cloud)] | None = None
    """Address (s3://BUCKET/RUN, gs://, az://) that checkpoints are copied to while training goes on, one for each run;
    --resume with it goes on from there on another machine. As many are kept there as here. null: none."""
    mirror_read_back: bool = True
    """Read every copied file from there before the copy counts; false: rely on its size and on the checksums of its
    upload, where reading is paid for."""
    mirror_wait_seconds: float = Field(600, ge=0)
    """Seconds that a run waits at its end for its last checkpoint to be copied. One that is asked to stop keeps
    besides to the time that its launcher leaves it."""


class GuardsConfig(Section):
    """What is watched, and what is done about it."""

    max_skips: int = Field(20, ge=0)
    """Steps among the last skip_window that may be skipped for a gradient that is not finite; one more ends the run."""
    skip_window: int = Field(1000, ge=1)
    """Steps over which skips are counted."""
    memory_after_skip: Literal["reset", "keep"] = "reset"
    """Lanes with a non-finite loss or memory in a skipped step: the initial memory, or what they have (or had)."""
    spike_window: int = Field(64, ge=4)
    """Steps whose losses a new loss is compared with."""
    spike_threshold: float = Field(0, ge=0)
    """Standard deviations above the mean of the window that make a loss a spike; 0: no spikes."""
    spike_action: Literal["report", "rollback"] = "report"
    """A spike is reported; or weights and optimizer return to the last checkpoint, and the data read since is left."""
    max_rollbacks: int = Field(3, ge=0)
    """Rollbacks of a run; one more ends it."""
    hang_timeout_seconds: float = Field(900, ge=0)
    """Nothing moves for so long: stacks are written, the rank at fault is named, the run ends; 0: no watch."""
    collective_timeout_seconds: float = Field(1800, gt=0)
    """Time-out of the process group; must be longer than hang_timeout_seconds."""
    straggler_interval: int = Field(100, ge=0)
    """Steps between comparisons of the processes' own times; 0: never."""
    straggler_factor: float = Field(1.5, gt=1)
    """A process that is busy this many times as long as the median of the others is named as slow."""
    checksum_interval: int = Field(500, ge=0)
    """Steps between comparisons of the replicas' parameters (ZeRO 0-2), which must be equal; 0: never."""

    @model_validator(mode="after")
    def _report_before_time_out(self) -> "GuardsConfig":
        if self.hang_timeout_seconds >= self.collective_timeout_seconds:
            raise ValueError(
                f"hang_timeout_seconds is {self.hang_timeout_seconds:g}: set it below collective_timeout_seconds = "
                f"{self.collective_timeout_seconds:g}"
            )
        return self


class Config(Section):
    """A training run."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # ModelConfig here; `schema_of` says which it is

    run_dir: Place
    """Directory of the run: configuration, metrics, logs, checkpoints. In every path and address ~ and $VARIABLE stand
    for what they name; $$ is a dollar sign."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights, of dropout and of the order of documents."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """fp32; bf16 or fp16: autocast over fp32 master weights, fp16 with a dynamic loss scale; auto: bf16 on GPUs, fp32
    elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: GPUs if there are any."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile each layer, in the run's first steps; what comes of it is kept in run_dir/compiled for later lives.
    auto: on GPUs, where it was timed (docs/parallelism.md), if there is a compiler."""
    init_from: Place | None = None
    """Directory of an export whose weights a new run starts from; a run that resumes ignores it."""
    tensorboard: bool = True
    """Write TensorBoard events to run_dir/tensorboard."""
    loggers: Annotated[list[Literal["wandb", "mlflow", "trackio", "prometheus"]], AfterValidator(checks.each_once)] = (
        Field([])
    )
    """Services that get the same numbers (docs/operations.md); addresses, projects and keys come from their own
    variables."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    activation_checkpointing: ActivationCheckpointingConfig = Field(default_factory=ActivationCheckpointingConfig)
    loss_scale: LossScaleConfig = Field(default_factory=LossScaleConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    guards: GuardsConfig = Field(default_factory=GuardsConfig)
    profile: ProfileConfig = Field(default_factory=ProfileConfig)
    deepspeed: dict[str, Any] = Field({})
    """DeepSpeed JSON keys that go over the generated configuration, for what this schema does not cover."""

    @model_validator(mode="after")
    def _short_warmup(self) -> "Config":
        if "warmup_steps" not in self.optimizer.model_fields_set:
            steps = min(self.optimizer.warmup_steps, self.training.max_steps // 10)
            self.__dict__["optimizer"] = self.optimizer.model_copy(update={"warmup_steps": steps})
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        model_length, length = self.model.segment_length, self.data.segment_length
        if model_length not in (None, length):
            raise ValueError(
                f"model.segment_length is {model_length} but data.segment_length is {length}: leave the former out"
            )
        checks.steps(self)
        checks.residual_stream(self)
        checks.gradient_accumulation(self)
        checks.optimizer(self)
        checks.memory_parameters(self)
        checks.tensor_parallel(self)
        checks.contiguous(self)
        checks.replay(self)
        checks.wavefront(self)
        checks.pipeline(self)
        checks.segments(self)
        return self

    def values(self) -> dict[str, Any]:
        """The whole configuration as plain values, defaults included: what `parse_config` reads."""
        values = self.model_dump()
        values["model"] = {"family": self.model.family, **values["model"]}
        return values

    def as_yaml(self) -> str:
        """The whole configuration, defaults included, as YAML that `load_config` reads."""
        return dump_yaml(self.values())

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made by `schema_of`, so that pickle cannot find it by its name.
        return parse_config, (self.values(), "a copied configuration")


@functools.cache
def schema_of(family_name: str) -> type[Config]:
    """The configuration of a run whose model is of this family.

    Raises:
        UnknownFamily: There is no such family.
    """
    kind = family(family_name).config
    return create_model("Config", __base__=Config, model=(kind, Field(default_factory=kind)))


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, what it extends, and command-line overrides.

    Args:
        path: The YAML file, or the `builtin:NAME` of one that comes with the package.
        overrides: `["--section.field", "VALUE", ...]` or `["--section.field=VALUE", ...]`; values are YAML.

    Raises:
        UserError: A file that is missing or no mapping, a malformed override, or faulty settings: every fault is
            named with its field, value and mend.
    """
    return parse_config(read_values(path, overrides), str(path))


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Checks plain values against the schema; `source` names them in the error.

    Raises:
        UserError: Every fault is named with its field, value and mend.
    """
    name, where, model = DEFAULT, f"{source}: model.family", values.get("model")
    if isinstance(model, dict) and "family" in model:
        said = model["family"]
        name = said.text if isinstance(said, Written) else str(said)
        if isinstance(said, Written):
            where = said.source if said.source.startswith("--") else f"{said.source}: model.family"
        values = {**values, "model": {field: value for field, value in model.items() if field != "family"}}
    try:
        schema = schema_of(name)
    except UnknownFamily as error:
        raise UserError(f"{where}: {error}") from None
    values = {"data": {}, **values}  # without the section it is data.path that is missing
    found: list[tuple[Where, str]] = []
    plain = settle(values, schema, found)
    faults = Faults(values, source, lambda: [field for field, _ in settings_of(schema, items=True)])
    if not found:
        keys = plain.get("deepspeed")
        found += [(("deepspeed", *place), words) for place, words in unfit(keys if isinstance(keys, dict) else {})]
        try:
            config = schema.model_validate(plain)
        except ValidationError as error:
            found += faults.of_schema(error.errors())
    if found:
        raise UserError(faults.joined(found))
    return config


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "none, required"
    return "empty" if field["default"] == [] else json.dumps(field["default"])


def describe_fields(family_name: str = DEFAULT) -> str:
    """Every setting with its default and meaning, one a line, for `memformer train --help`.

    Raises:
        UnknownFamily: There is no such family.
    """
    return "\n".join(
        f"  --{name:<44} {field.get('description', '')} (default: {_default(field)})"
        for name, field in settings_of(schema_of(family_name))
    )
