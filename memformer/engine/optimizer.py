# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""AdamW or Muon with decay on matrices only, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from memformer.config.schema import OptimizerConfig
from memformer.engine.adamw import AdamW
from memformer.engine.matrix_exchange import MatrixExchange
from memformer.engine.muon import Muon
from memformer.engine.parameter_state import ParameterState, whole_piece
from memformer.engine.reduction import through_the_model
from memformer.engine.sent import Sent, sent_by_parameter
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of
from memformer.models.scoring import Head
from memformer.processes.topology import Axis, Mesh

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""By `optimizer.state_dtype`."""


def hidden_matrices(model: MemoryModel) -> set[str]:
    """Names of the parameters that Muon steps: linear maps between one hidden vector and another.

    Not embeddings, of tokens or positions, nor the head, whose rows belong to one token each; nor what is no map and
    does not decay (first slots, slot bias, gates); nor adapters, of which only the product of two is a map. A
    matrix that a backbone has fused (queries, keys and values of GPT-2 and Pythia) is taken as the one matrix it is.
    """
    module: Any = model
    tables = [each for each in module.modules() if isinstance(each, (nn.Embedding, Head))]
    of_tokens = {id(parameter) for each in tables for parameter in each.parameters(recurse=False)}
    undecayed, is_adapter = model.undecayed(), family_of(model.config).adapter
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and len(_shape(parameter)) == 2
        if id(parameter) not in of_tokens and name not in undecayed and not (is_adapter and is_adapter(name))
    }


def parameter_groups(
    model: MemoryModel,
    config: OptimizerConfig,
    sent_in: torch.dtype | None = None,
    neighbours: Sequence[Sequence[nn.Parameter]] = (),
    parts: int = 1,
) -> list[dict[str, Any]]:
    """Matrices, which decay, and the rest (norms, biases, what the model leaves undecayed), which does not.

    With a learning rate of the memory's own its parameters are further groups of this kind; with Muon, so are the
    matrices that it steps; and what is sent in other precisions. What is frozen is in none, and a group that would be
    empty is left out.

    Args:
        model: Its parameters.
        config: The settings.
        sent_in: The 16 bits in which ZeRO 1 and 2 send what is only multiplied; None: all is sent alike.
        neighbours: Parameters that follow each other in a group, and so in the flat tensors that ZeRO makes of them.
        parts: Into which ZeRO cuts these; where nothing has neighbours, each goes through the whole model.

    Returns:
        `params`, `weight_decay`, `rate_factor`, which the learning rate is multiplied by, `muon`, and `sent`.
    """
    undecayed = model.undecayed()
    of_memory = None if config.memory_learning_rate is None else family_of(model.config).memory
    of_muon = hidden_matrices(model) if config.name == "muon" else set()
    kinds = [(apart, *kind) for apart in (False, True) for kind in ((True, True), (False, True), (False, False))]
    found: dict[tuple[bool, bool, bool], dict[Sent, list[nn.Parameter]]] = {kind: {} for kind in kinds}
    sent = sent_by_parameter(model, sent_in)
    places = {id(each): place for place, each in enumerate(parameter for kind in neighbours for parameter in kind)}
    ordered = sorted(model.named_parameters(), key=lambda named: places.get(id(named[1]), len(places)))
    for name, parameter in ordered:
        apart = of_memory is not None and of_memory(name)
        decays = len(_shape(parameter)) >= 2 and name not in undecayed
        if parameter.requires_grad:
            found[apart, name in of_muon, decays].setdefault(sent[id(parameter)], []).append(parameter)
    return [
        {
            "params": parameters if places else through_the_model(parameters, parts),
            "weight_decay": config.weight_decay if decays else 0.0,
            "rate_factor": config.memory_factor if apart else 1.0,
            "muon": muon,
            "sent": how,
        }
        for (apart, muon, decays), by_precision in found.items()
        for how, parameters in by_precision.items()
    ]


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    # ds_shape: ZeRO-3's Init has replaced the data by a partition.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def make_optimizer(
    model: MemoryModel,
    config: OptimizerConfig,
    device: torch.device,
    sent_in: torch.dtype | None = None,
    neighbours: Sequence[Sequence[nn.Parameter]] = (),
    parts: int = 1,
) -> torch.optim.Optimizer:
    """The optimizer that the settings ask for; a `Muon` still has to be told where its matrices lie.

    Args:
        model: Its parameters.
        config: The settings.
        device: Where the optimizer steps: the model's device, or the CPU when it is offloaded.
        sent_in: As in `parameter_groups`.
        neighbours: As there.
        parts: As there.
    """
    groups = parameter_groups(model, config, sent_in, neighbours, parts)
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.implementation == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        made = DeepSpeedCPUAdam if device.type == "cpu" else FusedAdam
        return made(groups, adam_w_mode=True, **options)  # type: ignore[no-any-return]
    state_dtype = STORED[config.state_dtype]
    if config.name == "muon":
        return Muon(groups, config.momentum, state_dtype, **options)
    return AdamW(groups, state_dtype, **options)


def spread_matrices(
    optimizer: torch.optim.Optimizer,
    model: MemoryModel,
    state: ParameterState,
    mesh: Mesh,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Tells a `Muon` where its matrices lie, when ZeRO has put them there; nothing for another optimizer.

    Called by all processes together.

    Args:
        optimizer: What `make_optimizer` made.
        model: Whose parameters it steps.
        state: These as pieces.
        mesh: This process among all.
        device: Where matrices are made orthogonal.
        dtype: What in.
    """
    if not isinstance(optimizer, Muon):
        return
    names = hidden_matrices(model)
    pieces = [piece for piece in state.stepped() if piece.name in names]
    # Without ZeRO every replica has all gradients, and makes every matrix orthogonal itself.
    axis = mesh.stage if state.zero_stage else mesh.tensor
    optimizer.spread(MatrixExchange(axis, state.flats(), pieces, device, dtype))


def keep_matrices_whole(optimizer: torch.optim.Optimizer, model: MemoryModel) -> None:
    """The same where a plain model is trained by one process, without an engine; in float32."""
    if not isinstance(optimizer, Muon):
        return
    names, parameters = hidden_matrices(model), dict(model.named_parameters())
    pieces = [whole_piece(name, p) for name, p in parameters.items() if name in names]
    optimizer.spread(MatrixExchange(Axis(), list(parameters.values()), pieces, pieces[0].flat.device, torch.float32))


def learning_rate(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """The learning rate of optimizer step `step` (1-based).

    Linear warm-up over `warmup_steps` (the step after it has the peak), then the schedule, which reaches
    `final_fraction` of the peak at `max_steps`.
    """
    peak, floor = config.learning_rate, config.learning_rate * config.final_fraction
    if step <= config.warmup_steps:
        return peak * step / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, max_steps - max(1, round(config.decay_fraction * max_steps)))
    progress = min(1.0, max(0.0, (step - start) / max(1, max_steps - start)))
    if config.schedule == "wsd":
        return peak + (floor - peak) * progress
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
