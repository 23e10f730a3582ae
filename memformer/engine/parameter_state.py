# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Weights and optimizer states as pieces of named parameters: one form for every ZeRO stage and topology.

Each process owns some elements of some rows or columns of each parameter (`Region`): tensor parallelism decides on the
rows and columns, ZeRO on the elements; what lies where is this file's knowledge of DeepSpeed 0.19.8. What tensor
parallelism does not cut is written by the first of its processes. A checkpoint holds the pieces by the parameter's
full name, so another topology reads the pieces it needs from whatever files have them, one tensor at a time, and there
is nothing to convert. (DeepSpeed's own checkpoint is bound to its topology, its universal one does not go between
stages 1 and 3, and both are pickles.)
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import UserError
from memformer.engine.fragments import FragmentReader, Region
from memformer.engine.frozen import is_frozen
from memformer.parallel.tensor import slice_of
from memformer.processes.topology import Mesh

WEIGHT = "weight"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A process's part of a parameter.

    Attributes:
        name: The parameter.
        region: Which elements of the whole parameter they are.
        weight: `[elements]`: float32, the master weights, a view of the optimizer's memory; of what is not trained, the
            weights as they are stored.
        flat: The tensor that the optimizer steps (the weight is a part of it); key of its state.
        offset: Where in `flat` the part begins.
    """

    name: str
    region: Region
    weight: torch.Tensor
    flat: torch.Tensor
    offset: int


class ParameterState:
    """The parameters of an engine as pieces.

    Args:
        deepspeed: The DeepSpeed engine.
        zero_stage: Of the engine.
        mesh: This process among all.

    Attributes:
        zero_stage: Of the engine.
        base: The optimizer that steps the parameters, inside DeepSpeed's own.

    Raises:
        UserError: `deepspeed` settings give the engine an optimizer whose memory this form does not know.
    """

    def __init__(self, deepspeed: Any, zero_stage: int, mesh: Mesh) -> None:
        self._engine, self.zero_stage, self._mesh = deepspeed, zero_stage, mesh
        self.base: Any = deepspeed.optimizer if zero_stage == 0 else deepspeed.optimizer.optimizer
        if zero_stage == 0 and not isinstance(self.base, torch.optim.Optimizer):
            raise UserError("deepspeed: its settings need parallel.zero_stage 1 or more here: set that")
        if zero_stage == 3 and deepspeed.optimizer.swap_optimizer:
            raise UserError("deepspeed: optimizer states on NVMe cannot be saved: offload to cpu")

    def shapes(self) -> dict[str, list[int]]:
        """Shape of each whole parameter, by name; a tied one stands once. Called by all processes."""
        own = {name: list(_region(p, 0, 0).shape) for name, p in self._engine.module.named_parameters()}
        return {name: shape for stage in self._mesh.pipe.gather(own) for name, shape in stage.items()}

    def pieces(self) -> Iterator[Piece]:
        """This process's pieces of what is trained; together those of all processes hold each element exactly once."""
        return self._pieces(frozen=False)

    def stepped(self) -> Iterator[Piece]:
        """What the optimizer steps here of each trained parameter, whether others step the same elements or not."""
        for name, parameter in self._engine.module.named_parameters():
            if not is_frozen(parameter) and (piece := self._stepped(name, parameter)) is not None:
                yield piece

    def flats(self) -> list[torch.Tensor]:
        """The tensors that the optimizer steps here, in the order in which all processes of the stage step theirs."""
        if self.zero_stage == 0:
            return [p for p in self._engine.module.parameters() if not is_frozen(p)]
        zero: Any = self._engine.optimizer
        return list(zero.fp32_partitioned_groups_flat if self.zero_stage == 3 else zero.single_partition_of_fp32_groups)

    def frozen(self) -> dict[str, str]:
        """Name and dtype of the parameters that are not trained; empty where all are."""
        found = ((name, p) for name, p in self._engine.module.named_parameters() if is_frozen(p))
        return {name: str(p.dtype).removeprefix("torch.") for name, p in found}

    def _pieces(self, frozen: bool) -> Iterator[Piece]:
        for name, parameter in self._engine.module.named_parameters():
            if is_frozen(parameter) != frozen:
                continue
            if self._mesh.tensor.rank and slice_of(parameter) is None:
                continue  # the first tensor-parallel process has the same
            piece = self._piece(name, parameter)
            if piece is not None:
                yield piece

    def _piece(self, name: str, parameter: Any) -> Piece | None:
        if self.zero_stage == 0 or (self.zero_stage < 3 and is_frozen(parameter)):
            # Every process has everything: each writes its share.
            flat, numel = parameter.detach().view(-1), parameter.numel()
            rank, size = self._mesh.gradients.rank, self._mesh.gradients.size
            start, stop = numel * rank // size, numel * (rank + 1) // size
            region = _region(parameter, start, stop)
            return Piece(name, region, flat[start:stop], parameter, start) if start < stop else None
        if is_frozen(parameter):
            flat = parameter.ds_tensor.detach().view(-1)
            start = flat.numel() * self._engine.optimizer._get_param_partition_rank(parameter)
            count = min(flat.numel(), parameter.ds_numel - start)
            return Piece(name, _region(parameter, start, start + count), flat[:count], flat, 0) if count > 0 else None
        optimizer = self._engine.optimizer
        if self.zero_stage == 3:
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
        region = _region(parameter, start, start + count)
        return Piece(name, region, flat.detach()[offset : offset + count], flat, offset) if count > 0 else None

    def tensors(self, frozen: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What this process writes.

        Args:
            frozen: Of what is not trained, instead of what is.

        Returns:
            1-D tensors by `KIND/NAME`, views of the live state; and the metadata of their file, as JSON: where each
            parameter's piece starts, in which block of rows and columns, and the optimizer's step count of it.
        """
        tensors, starts, blocks, steps = {}, {}, {}, {}
        for piece in self._pieces(frozen):
            starts[piece.name] = piece.region.start
            if piece.region.rows or piece.region.columns:
                blocks[piece.name] = piece.region.block
            tensors[f"{WEIGHT}/{piece.name}"] = piece.weight
            for kind, value in self.base.state.get(piece.flat, {}).items():
                if torch.is_tensor(value) and value.numel() == piece.flat.numel() and value.dim():
                    flat = value.view(-1)[piece.offset : piece.offset + piece.weight.numel()]
                    tensors[f"{kind}/{piece.name}"] = flat
                elif kind == "step":
                    steps[piece.name] = float(value)
        metadata = {"starts": starts, "blocks": blocks, "steps": steps}
        return tensors, {name: json.dumps(value) for name, value in metadata.items()}

    @torch.no_grad()
    def load(self, saved: FragmentReader) -> None:
        """Puts saved parameters and optimizer states in place, whatever topology they were saved from.

        Raises:
            ValueError: A parameter is missing or incomplete.
        """
        for name, parameter in self._engine.module.named_parameters():
            shape = _shape(parameter)
            if is_frozen(parameter):
                piece = whole_piece(name, parameter) if self.zero_stage < 3 else self._piece(name, parameter)
                if piece is not None:
                    piece.weight.copy_(saved.read(WEIGHT, name, piece.region))
                self._refresh(name, parameter, saved)
                continue
            piece = self._stepped(name, parameter)
            if piece is not None:
                piece.weight.copy_(saved.read(WEIGHT, name, piece.region))
                kinds = [kind for kind in saved.kinds(name) if kind != WEIGHT]
                state = self._state(piece.flat, saved.steps.get(name, 0.0)) if kinds else {}
                for kind in kinds:
                    dtype = getattr(self.base, "state_dtype", None)
                    target = state.setdefault(kind, torch.zeros_like(piece.flat, dtype=dtype)).view(-1)
                    values = saved.read(kind, name, piece.region)
                    target[piece.offset : piece.offset + len(values)].copy_(values)
            if self.zero_stage == 3:
                partition = parameter.ds_tensor.data.view(-1)
                start = partition.numel() * self._engine.optimizer._get_param_partition_rank(parameter)
                stop = min(shape.numel(), start + partition.numel())
                if start < stop:
                    partition[: stop - start].copy_(saved.read(WEIGHT, name, _region(parameter, start, stop)))
            self._refresh(name, parameter, saved)

    def _refresh(self, name: str, parameter: Any, saved: FragmentReader) -> None:
        """Gives a whole parameter that is made from pieces elsewhere its numbers, where there is one just now."""
        made = not is_frozen(parameter) and self.zero_stage in (1, 2)
        if made or (self.zero_stage == 3 and parameter.ds_status.name == "AVAILABLE"):
            shape = _shape(parameter)
            parameter.data.copy_(saved.read(WEIGHT, name, _region(parameter, 0, shape.numel())).view(shape))

    def _stepped(self, name: str, parameter: torch.Tensor) -> Piece | None:
        return whole_piece(name, parameter) if self.zero_stage == 0 else self._piece(name, parameter)

    def _state(self, flat: torch.Tensor, step: float) -> dict[str, Any]:
        """The optimizer's state of a tensor, made as the optimizer itself would at its first step."""
        state: dict[str, Any] = self.base.state[flat]
        if isinstance(self.base, torch.optim.AdamW):
            state["step"] = torch.tensor(step, dtype=torch.float32, device=flat.device)
        else:
            state["step"] = int(step)
            for group in self.base.param_groups:
                if "step" in group:  # FusedAdam counts by group
                    group["step"] = int(step)
        return state


def whole_piece(name: str, parameter: torch.Tensor) -> Piece:
    """All of a parameter that a process has, which is stepped where it lies."""
    return Piece(name, _region(parameter, 0, parameter.numel()), parameter.detach().view(-1), parameter, 0)


def _shape(parameter: Any) -> torch.Size:
    """Of this process's rows or columns of it, all replicas together; under ZeRO-3 the tensor itself may be empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _region(parameter: torch.Tensor, start: int, stop: int) -> Region:
    """Elements start .. stop-1 of what tensor parallelism leaves this process of the parameter."""
    part = slice_of(parameter)
    if part is None:
        return Region(tuple(_shape(parameter)), start, stop)
    ends = (part.start, part.stop)
    return Region(part.shape, start, stop, *((ends, None) if part.dim == 0 else (None, ends)))
