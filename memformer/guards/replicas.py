# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Replicas of the parameters must be equal to the last bit; a checksum tells when they are not, and where."""

from collections import Counter, defaultdict
from typing import Any

import torch

from memformer.models.protocol import MemoryModel
from memformer.processes import group
from memformer.processes.topology import Mesh


@torch.no_grad()
def different_replicas(model: MemoryModel, mesh: Mesh) -> list[str]:
    """Compares every parameter's checksum over the processes that hold the same; called by all of them.

    Those are the processes of one place in the replica, and for a parameter that tensor parallelism does not cut, all
    of its stage. The checksum is the sum of the elements' bits as integers, so that any one flipped bit changes it.
    For models whose parameters are not partitioned over the replicas (ZeRO 0-2).

    Returns:
        For each process that disagrees with the majority, which parameters do; empty if all agree.
    """
    found = [(name, parameter) for name, parameter in model.named_parameters()]
    # (name, place among the tensor-parallel processes or -1 where all of them hold the same)
    keys = [(name, mesh.tensor.rank if getattr(p, "model_parallel", False) else -1) for name, p in found]
    sums = torch.stack([_bits(parameter).sum(dtype=torch.int64) for _, parameter in found]).cpu().tolist()
    own = {(mesh.pipe.rank, *key): value for key, value in zip(keys, sums, strict=True)}
    device = found[0][1].device
    if not _differs(torch.tensor(sums, device=device), mesh, [place < 0 for _, place in keys]):
        return []
    every: list[dict[Any, int]] = group.gather(own)
    counts: dict[Any, Counter[int]] = defaultdict(Counter)
    for each in every:
        for key, value in each.items():
            counts[key][value] += 1
    lines = []
    for rank, each in enumerate(every):
        wrong = [key[1] for key, value in each.items() if value != counts[key].most_common(1)[0][0]]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            lines.append(f"rank {rank}: {wrong[0]}{more}")
    return lines


def _differs(sums: torch.Tensor, mesh: Mesh, whole: list[bool]) -> bool:
    """Whether any process has other checksums than those that should hold the same."""
    first = mesh.gradients.broadcast(sums.clone())
    differs = bool((first != sums).any())
    kept = sums[torch.tensor(whole, device=sums.device)]
    differs |= bool((mesh.tensor.broadcast(kept.clone()) != kept).any())
    return bool(group.all_max(int(differs)))


def _bits(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().reshape(-1).view(torch.int32 if parameter.element_size() == 4 else torch.int16)
