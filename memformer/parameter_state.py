# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Weights and optimizer states as pieces of named parameters: one form for every ZeRO stage and number of processes.

Each process owns, of each flattened parameter, the elements start .. stop-1; what lies where is this file's knowledge
of DeepSpeed 0.19.8. A checkpoint holds the pieces by the parameter's full name, so another topology reads the pieces
it needs from whatever files have them, one tensor at a time, and there is nothing to convert. (DeepSpeed's own
checkpoint is bound to its topology, its universal one does not go between stages 1 and 3, and both are pickles.)
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import UserError
from memformer.tensor_file import FragmentReader

WEIGHT = "weight"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A process's part of a parameter.

    Attributes:
        name: The parameter.
        start: First element of the flattened parameter.
        weight: float32 `[stop - start]`, the master weights; a view of the optimizer's memory.
        flat: The tensor that the optimizer steps (the weight is a part of it); key of its state.
        offset: Where in `flat` the part begins.
    """

    name: str
    start: int
    weight: torch.Tensor
    flat: torch.Tensor
    offset: int


class ParameterState:
    """The parameters of an engine as pieces.

    Args:
        deepspeed: The DeepSpeed engine.
        stage: Its ZeRO stage.
        rank: Number of this process among the replicas.
        size: Replicas.

    Raises:
        UserError: `deepspeed` settings give the engine an optimizer whose memory this form does not know.
    """

    def __init__(self, deepspeed: Any, stage: int, rank: int, size: int) -> None:
        self._engine, self._stage, self._rank, self._size = deepspeed, stage, rank, size
        self._base: Any = deepspeed.optimizer if stage == 0 else deepspeed.optimizer.optimizer
        if stage == 0 and not isinstance(self._base, torch.optim.Optimizer):
            raise UserError("deepspeed: its settings need parallel.zero_stage 1 or more here: set that")
        if stage == 3 and deepspeed.optimizer.swap_optimizer:
            raise UserError("deepspeed: optimizer states on NVMe cannot be saved: offload to cpu")

    def shapes(self) -> dict[str, list[int]]:
        """Shape of each whole parameter, by name; a tied one stands once."""
        return {name: list(_shape(p)) for name, p in self._engine.module.named_parameters()}

    def pieces(self) -> Iterator[Piece]:
        """This process's pieces; together those of all processes hold each element exactly once."""
        for name, parameter in self._engine.module.named_parameters():
            piece = self._piece(name, parameter)
            if piece is not None:
                yield piece

    def _piece(self, name: str, parameter: Any) -> Piece | None:
        if self._stage == 0:
            # Every process has everything: each writes its share.
            flat, numel = parameter.detach().view(-1), parameter.numel()
            start, stop = numel * self._rank // self._size, numel * (self._rank + 1) // self._size
            return Piece(name, start, flat[start:stop], parameter, start) if start < stop else None
        optimizer = self._engine.optimizer
        if self._stage == 3:
            group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = length * optimizer._get_param_partition_rank(parameter)
            count = min(length, parameter.ds_numel - start)  # the last partitions are padded
            flat = optimizer.fp32_partitioned_groups_flat[group]
        else:
            mapping = parameter._hp_mapping
            if mapping is None:
                return None
            start, count = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            offset = mapping.hp_fragment_address.start
        return Piece(name, start, flat.detach()[offset : offset + count], flat, offset) if count > 0 else None

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, int], dict[str, float]]:
        """What this process writes.

        Returns:
            1-D tensors by `KIND/NAME`, views of the live state; the start of each parameter's piece; the optimizer's
            step count of each parameter.
        """
        tensors, starts, steps = {}, {}, {}
        for piece in self.pieces():
            starts[piece.name] = piece.start
            tensors[f"{WEIGHT}/{piece.name}"] = piece.weight
            for kind, value in self._base.state.get(piece.flat, {}).items():
                if torch.is_tensor(value) and value.numel() == piece.flat.numel() and value.dim():
                    flat = value.view(-1)[piece.offset : piece.offset + piece.weight.numel()]
                    tensors[f"{kind}/{piece.name}"] = flat
                elif kind == "step":
                    steps[piece.name] = float(value)
        return tensors, starts, steps

    @torch.no_grad()
    def load(self, saved: FragmentReader) -> None:
        """Puts saved parameters and optimizer states in place, whatever topology they were saved from.

        Raises:
            ValueError: A parameter is missing or incomplete.
        """
        for name, parameter in self._engine.module.named_parameters():
            shape = _shape(parameter)
            piece = self._whole(name, parameter) if self._stage == 0 else self._piece(name, parameter)
            if piece is not None:
                stop = piece.start + piece.weight.numel()
                piece.weight.copy_(saved.read(WEIGHT, name, piece.start, stop))
                kinds = [kind for kind in saved.kinds(name) if kind != WEIGHT]
                state = self._state(piece.flat, saved.steps.get(name, 0.0)) if kinds else {}
                for kind in kinds:
                    target = state.setdefault(kind, torch.zeros_like(piece.flat)).view(-1)
                    values = saved.read(kind, name, piece.start, stop)
                    target[piece.offset : piece.offset + len(values)].copy_(values)
            if self._stage == 3:
                partition = parameter.ds_tensor.data.view(-1)
                start = partition.numel() * self._engine.optimizer._get_param_partition_rank(parameter)
                stop = min(shape.numel(), start + partition.numel())
                if start < stop:
                    partition[: stop - start].copy_(saved.read(WEIGHT, name, start, stop))
            if self._stage in (1, 2) or (self._stage == 3 and parameter.ds_status.name == "AVAILABLE"):
                parameter.data.copy_(saved.read(WEIGHT, name, 0, shape.numel()).view(shape))

    def _whole(self, name: str, parameter: torch.Tensor) -> Piece:
        return Piece(name, 0, parameter.detach().view(-1), parameter, 0)

    def _state(self, flat: torch.Tensor, step: float) -> dict[str, Any]:
        """The optimizer's state of a tensor, made as the optimizer itself would at its first step."""
        state: dict[str, Any] = self._base.state[flat]
        if isinstance(self._base, torch.optim.AdamW):
            state["step"] = torch.tensor(step, dtype=torch.float32, device=flat.device)
        else:
            state["step"] = int(step)
            for group in self._base.param_groups:
                if "step" in group:  # FusedAdam counts by group
                    group["step"] = int(step)
        return state


def _shape(parameter: Any) -> torch.Size:
    """Of the whole parameter; under ZeRO-3 the tensor itself may be empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
