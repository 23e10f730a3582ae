# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A few optimizer steps of a tiny model, trained in every way there is, and by the reference: one process, full BPTT.

AdamW's epsilon is 1e-3 here: at 1e-8 it turns the rounding of near-zero gradients into visible noise in every
variant. Errors are relative to the update, that is ||weights - reference|| / ||reference - initial||.

Tolerances: fp32 1e-5 (seen: 1e-6, the order of summation); bf16 3e-2 against the fp32 reference (seen: under 1e-2,
bfloat16's 8 bits of mantissa), and 5e-3 nats on losses; fp16, with 3 bits more, 5e-3 (seen: 1e-3) and 5e-4.

Muon's directions are gradients whose small singular values are made large, and their rounding with them, up to
485-fold: fp32 1e-4 (seen: under 1e-5, against matrices in float64); 16 bits 1.5e-1 (seen: 7e-2 and 3e-2, where
gradients and matrices are so rounded), with the losses of the others.
"""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from data_pipeline.reading import known_segments
from memformer import MemformerConfig
from memformer.config.schema import Config, parse_config
from memformer.engine.base import Engine
from memformer.engine.making import make_engine
from memformer.engine.optimizer import make_optimizer
from memformer.models.backbone import BackboneConfig, LoraConfig, MemoryConfig
from memformer.models.configuration import Forgetting
from memformer.models.registry import family_of
from memformer.parallel.segment.sharing import groups_of, trained_segments
from memformer.parallel.tensor import whole_tensor
from memformer.planning.traffic import traffic_by_stage
from memformer.processes.collective_log import LOG
from memformer.processes.group import World
from memformer.replay import Carry, Rollout, bptt_backward
from memformer.replay.random_state import mix_seed
from memformer.training.initial_weights import construction_of
from tests.distributed.collectives import counted
from tests.distributed.processes import Crew
from tests.memformer.engine.plain_muon import PlainMuon

LANES, SEGMENTS, LENGTH, STEPS = 4, 3, 8, 3  # the least with a segment between the first and the last
MODEL = MemformerConfig(
    num_encoder_layers=2,
    num_decoder_layers=2,
    d_model=32,
    num_heads=4,
    d_ff=64,
    num_memory_slots=5,
    vocab_size=51,  # two tensor-parallel processes have 25 and 26
    start_token_id=49,
)

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _backbone(kind: str, memory: MemoryConfig, lora: LoraConfig | None = None, **sizes: Any) -> BackboneConfig:
    ids = {"vocab_size": MODEL.vocab_size, "start_token_id": MODEL.start_token_id}
    return BackboneConfig(backbone={"model_type": kind} | _LLAMA | sizes, memory=memory, lora=lora, overlap=2, **ids)


_MATRICES = MemoryConfig(d_key=3, num_write_tokens=2, layers=(0, 2))
BACKBONES = {
    "matrices": _backbone("llama", _MATRICES),
    "armt": _backbone("llama", dataclasses.replace(_MATRICES, rule="armt")),
    "slots": _backbone("qwen3", MemoryConfig(kind="slots", num_slots=3, write_layer=2, forgetting="written")),
    "late slots": _backbone("qwen3", MemoryConfig(kind="slots", num_slots=3, write_layer=2, layers=(2,))),
    "tokens": _backbone("mistral", MemoryConfig(kind="tokens", num_slots=3)),
    "lower": _backbone("llama", dataclasses.replace(_MATRICES, layers=(0, 1)), tie_word_embeddings=True),
    "adapters": _backbone("qwen2", _MATRICES, lora=LoraConfig(rank=3, targets=("q_proj", "o_proj", "down_proj"))),
}


DIVIDED = 10
"""How much further armt may be from its reference: it divides by sums of features, here down to 1e-4, which amplifies
rounding. Weights that are moved by half a unit in the last place of float32 and then trained in float64 end 1e-4 to
2.5e-4 elsewhere, with the delta rule 5e-6 to 1.2e-5; in float64 processes agree to 1e-12 (test_backbone_tensor.py)."""
FIVE_SEGMENTS = 5
"""The same of the delta rule over five segments: weights so moved end 7e-6 to 3.1e-5 elsewhere in float32, whose
reference is 1.2e-5 from that in float64. Seen: 2.2e-5 on one kind of processor, under 1e-5 on others."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to train; of a model of the family backbone where it names one of these."""

    zero_stage: int
    precision: str = "fp32"
    replay: str = "mrbp"
    gradient_reduction: str = "rollout"
    zero3_gather: str = "rollout"
    mode: str = "none"
    partition_activations: bool = False
    cpu_checkpointing: bool = False
    contiguous_checkpointing: bool = False
    memory_interval: int = 1
    lanes_per_micro_batch: int | None = None
    decoder_batch: int = 1
    wavefront: int = 0
    clipping: float = 0.0
    dropout: float = 0.0
    offload: str = "none"
    tie_embeddings: bool = True
    memory_read_norm: bool = False
    memory_forgetting: Forgetting = "paper"
    memory_write_threshold: float = 0.0
    overlap: int = 0
    block: str = "paper"
    residual_dtype: str = "float32"
    data: int = 2
    tensor: int = 1
    pipeline: int = 1
    segment: int = 1
    segments: int = SEGMENTS
    growing: bool = False
    train: str = "all"
    memory_learning_rate: float | None = None
    pipeline_layers: tuple[int, ...] | None = None
    segments_in_flight: int | None = None
    num_memory_slots: int = MODEL.num_memory_slots
    backbone: str = ""
    chunked: bool = False
    weighted: bool = False
    optimizer: str = "adamw"
    state_dtype: str = "float32"
    sums: str = "float32"
    loss_scale: float = 65536.0

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.data * self.tensor * self.pipeline * self.segment

    @property
    def steps(self) -> int:
        """Optimizer steps: the second has all that the first leaves behind. ZeRO-3 traces two, and fetches by them."""
        return STEPS if self.zero_stage == 3 else 2

    def segments_of(self, step: int) -> int:
        """Of a rollout: fewer in the first, where they grow."""
        return self.segments - 2 if self.growing and step == 0 else self.segments

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)[1:]
            if getattr(self, f.name) != f.default
        ]
        return "-".join([f"zero{self.zero_stage}", *changed])


def config_of(case: Case) -> Config:
    """The case as a run's configuration."""
    of_model = (
        "dropout",
        "tie_embeddings",
        "memory_read_norm",
        "memory_forgetting",
        "memory_write_threshold",
        "overlap",
        "block",
        "residual_dtype",
        "num_memory_slots",
    )
    model = MODEL.to_dict() | {name: getattr(case, name) for name in of_model}
    if case.backbone:
        model = {"family": "backbone"} | BACKBONES[case.backbone].to_dict() | {"dropout": case.dropout}
    checkpointing = (
        "mode",
        "partition_activations",
        "cpu_checkpointing",
        "contiguous_checkpointing",
        "memory_interval",
    )
    parallel = (
        "tensor",
        "pipeline",
        "pipeline_layers",
        "segment",
        "segments_in_flight",
        "zero_stage",
        "gradient_reduction",
        "zero3_gather",
    )
    offload = {
        "offload_optimizer": "none" if case.offload == "none" else "cpu",
        "offload_parameters": "cpu" if case.offload == "parameters" else "none",
    }
    return parse_config(
        {
            "run_dir": "unused",
            "precision": case.precision,
            "model": model,
            "data": {
                "path": "unused",
                "num_lanes": LANES,
                "segment_length": LENGTH,
                "num_segments": {step: case.segments_of(step) for step in range(2)},
            },
            "training": {
                "train": case.train,
                "replay": case.replay,
                "lanes_per_micro_batch": case.lanes_per_micro_batch,
                "segments_per_decoder_batch": case.decoder_batch,
                "wavefront_window": case.wavefront,
                "gradient_accumulation_dtype": case.sums,
            },
            "optimizer": {
                "name": case.optimizer,
                "state_dtype": case.state_dtype,
                "epsilon": 1e-3,
                "memory_learning_rate": case.memory_learning_rate,
                "gradient_clipping": case.clipping,
                "warmup_steps": 0,
            },
            "loss_scale": {"initial": case.loss_scale},
            "parallel": {name: getattr(case, name) for name in parallel} | offload,
            "activation_checkpointing": {name: getattr(case, name) for name in checkpointing},
        },
        "test",
    )


def rollout_of(step: int, segments: int = SEGMENTS, weighted: bool = False) -> Rollout:
    """Step `step`'s global rollout: ragged, with a reset in the middle and a lane that goes idle.

    With `weighted`, targets have loss weights; in step 0 nothing of the second half of the lanes counts.
    """
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, 49, (LANES, segments, LENGTH), generator=generator)
    lengths = torch.full((LANES, segments), LENGTH)
    resets = torch.zeros(LANES, segments, dtype=torch.bool)
    lengths[1, 0], resets[1, min(1, segments - 1)] = 3, True
    lengths[3, segments - 1] = 0
    if step == 0:
        resets[:, 0] = True
    if not weighted:
        return Rollout.of(tokens, lengths, resets)
    weights = torch.randint(0, 5, tokens.shape, generator=generator) / 4
    weights[torch.arange(LENGTH) >= lengths[..., None]] = 0
    if step == 0:
        weights[LANES // 2 :] = 0
    return Rollout.of(tokens, lengths, resets, loss_weights=weights)


def counted_of(rollout: Rollout) -> float:
    """What the loss of a rollout is divided by."""
    return float((rollout.lengths if rollout.loss_weights is None else rollout.loss_weights).sum())


def model_of(case: Case) -> Any:
    """The model that every process starts from; of a backbone away from the zeros that its memory starts with."""
    torch.manual_seed(0)
    config = config_of(case).model
    model = family_of(config).build(config)
    with torch.no_grad():
        for parameter in model.parameters() if case.backbone else ():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def trained(case: Case, name: str) -> bool:
    """Whether a parameter is."""
    return family_of(config_of(case).model).trains(case.train, name)


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All weights of a whole model as one vector."""
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def reference(case: Case) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """(losses, flat initial weights, flat final weights) of one process with full BPTT and plain AdamW or Muon.

    Lanes are taken in the groups that the case's processes have, so that dropout draws the same masks.
    """
    exact = dataclasses.replace(case, precision="fp32", residual_dtype="float32", sums="float32")
    config, model = config_of(exact), model_of(case)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(case, name))
    if case.optimizer == "muon":
        optimizer: torch.optim.Optimizer = PlainMuon(model, config.optimizer)
    else:
        optimizer = make_optimizer(model, config.optimizer, torch.device("cpu"))
        for group in optimizer.param_groups:
            group["lr"] *= group["rate_factor"]
    initial = flat(model)
    own = LANES // case.data
    groups = [(0, own)] if case.segment == 1 else groups_of(config, own)
    spans = [(first + start, first + stop) for first in range(0, LANES, own) for start, stop in groups]
    carries = [Carry.empty(model.initial_memory(stop - start), LENGTH) for start, stop in spans]
    losses = []
    for step in range(case.steps):
        rollout = rollout_of(step, case.segments_of(step), case.weighted)
        optimizer.zero_grad()
        count = counted_of(rollout)
        total = 0.0
        for i, span in enumerate(spans):
            seed = mix_seed(step, span[0])
            result = bptt_backward(model, rollout.lanes(*span), carries[i], denominator=count, seed=seed)
            carries[i] = result.carry
            total += float(result.segment_losses.sum())
        if case.clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), case.clipping)
        optimizer.step()
        losses.append(total / count)
    return losses, initial, flat(model)


def known_of(rollout: Rollout, engine: Engine) -> Rollout:
    """The lanes of this process, with the tokens and weights that its stream would read."""
    mesh, count = engine.world.mesh, len(rollout.tokens) // engine.world.mesh.data.size
    own = rollout.lanes(mesh.data.rank * count, (mesh.data.rank + 1) * count)
    trained = trained_segments(engine.config, mesh)
    if trained is None:
        return own
    unknown = torch.from_numpy(~known_segments(trained(rollout.num_segments)))[..., None]
    weights = None if own.loss_weights is None else own.loss_weights.masked_fill(unknown, 0)
    return dataclasses.replace(own, tokens=own.tokens.masked_fill(unknown, 0), loss_weights=weights)


def engine_of(world: World, case: Case) -> Engine:
    """The case's engine on these processes, arranged as it asks; `engine.world` is where this one stands."""
    model = model_of(case)
    if case.chunked:  # a few tokens at a time; the reference has whole logits
        model.head.chunk_bytes = 5 * 4 * len(model.head.weight)
    config, world = config_of(case), world.arranged(case.tensor, case.pipeline, case.segment)
    if case.zero_stage == 3 and case.tensor == 1:  # spread as in a run, not by the engine
        construction_of(config, model.config, world).built(model)
    return make_engine(model, config, world, case.precision)


def train(world: World, case: Case) -> dict[str, Any]:
    """The same steps through the engine, on this process's lanes; `calls` and `messages` are the last step's bytes."""
    engine = engine_of(world, case)
    world = engine.world
    carry = Carry.empty(engine.initial_memory(LANES // case.data), LENGTH)
    losses, norms = [], []
    for step in range(case.steps):
        rollout = rollout_of(step, case.segments_of(step), case.weighted)
        count = counted_of(rollout)
        LOG.messages.clear()
        with counted() as calls:
            result = engine.rollout_backward(known_of(rollout, engine), carry, count, seed=step)
            report = engine.step(config_of(case).optimizer.learning_rate)
        assert report.applied
        norms.append(report.grad_norm)
        carry = result.carry
        losses.append(float(result.segment_losses.sum()) / count)
    traffic = {
        "calls": {kind: size for kind, (_, size) in calls.items()},
        "messages": {kind: size for kind, (_, size) in LOG.messages.items()},
    }
    with engine.whole_model():
        own = {name: whole_tensor(p, world.mesh.tensor) for name, p in engine.model.named_parameters()}
    whole = {name: weight.detach() for stage in world.mesh.pipe.gather(own) for name, weight in stage.items()}
    weights = torch.cat([whole[name].flatten() for name, _ in model_of(case).named_parameters()])
    engine.close()
    told = {"losses": losses, "weights": weights.numpy(), "norms": norms, "replica": world.mesh.data.rank}
    return told | traffic | {"buffer": engine.replay_buffer_bytes}


Trained = Callable[[Case], list[dict[str, Any]]]
"""What `train` returned on each process."""


@contextlib.contextmanager
def trained_when_asked() -> Iterator[Trained]:
    """Inside, gives the results of cases. Each is trained once, when it is first asked for.

    Processes of each number train all their cases, since starting them costs most.
    """
    with contextlib.ExitStack() as stack:
        crew = functools.cache(lambda size: stack.enter_context(Crew(size)))
        yield functools.cache(lambda case: crew(case.world_size).run(train, case))


def assert_equals_reference(case: Case, ranks: list[dict[str, Any]]) -> None:
    """What `train` returned on each process, against `reference`."""
    losses, initial, expected = reference(case)
    weights = [torch.from_numpy(rank["weights"]) for rank in ranks]
    assert all(torch.equal(each, weights[0]) for each in weights), "processes differ"
    mask = torch.cat([torch.full((p.numel(),), trained(case, name)) for name, p in model_of(case).named_parameters()])
    error = float((weights[0] - expected)[mask].norm() / (expected - initial)[mask].norm())
    stored = expected.bfloat16().float() if case.precision == "bf16" else expected
    assert bool(((weights[0] == stored) | (weights[0] == expected))[~mask].all()), "what is frozen has moved"
    limits = {"adamw": {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3}, "muon": {"fp32": 1e-4, "bf16": 0.15, "fp16": 0.15}}
    amplified = DIVIDED if case.backbone == "armt" else 1
    if case.backbone == "matrices" and case.segments >= 5:
        amplified = FIVE_SEGMENTS
    assert error < limits[case.optimizer][case.precision] * amplified, error
    # One process of each replica: all of them know its loss.
    speakers = {rank["replica"]: rank for rank in ranks}
    summed = [sum(rank["losses"][step] for rank in speakers.values()) for step in range(case.steps)]
    assert summed == pytest.approx(losses, abs={"fp32": 1e-5, "bf16": 5e-3, "fp16": 5e-4}[case.precision])
    assert all(rank["losses"] == speakers[rank["replica"]]["losses"] for rank in ranks)


def assert_traffic_as_planned(case: Case, ranks: list[dict[str, Any]]) -> None:
    """The bytes of every kind in the last step of `train`, in which nothing is set up any more, against the plan's."""
    config = config_of(case)
    stages = traffic_by_stage(config, config.model, case.world_size)
    for rank, own in enumerate(ranks):
        if rank and (case.tensor > 1 or case.segment > 1):
            continue  # the vocabulary, or a rollout, does not divide evenly; the plan is of the first process
        stage = stages[rank * case.pipeline // case.world_size]
        messages = Counter(stage["segment"] if case.segment > 1 else stage["pipeline"])
        expected = (
            stage["data"] + stage["tensor"] + stage["replica"] + Counter(all_reduce=messages.pop("all_reduce", 0))
        )
        found: Counter[str] = Counter()
        for kind, size in own["calls"].items():
            found[kind.removesuffix("_into_tensor").removesuffix("_tensor")] += size
        del found["isend"]  # counted by kind in the messages
        if case.zero_stage == 3 and case.zero3_gather == "segment":
            # DeepSpeed compares what its processes trace; lists of numbers, whatever the width.
            assert found.pop("broadcast", 0) < 10_000
        assert found == expected
        assert own["messages"] == messages
