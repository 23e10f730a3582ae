# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Replicas of the parameters must be equal to the last bit; a checksum tells when they are not, and where."""

from collections import Counter
from typing import Any

import torch

from memformer import distributed


@torch.no_grad()
def different_replicas(model: torch.nn.Module) -> list[str]:
    """Compares every parameter's checksum over the processes; called by all of them.

    The checksum is the sum of the elements' bits as integers, so that any one flipped bit changes it. For models
    whose parameters are whole on every process (ZeRO 0-2).

    Returns:
        For each process that disagrees with the majority, which parameters do; empty if all agree.
    """
    names = [name for name, _ in model.named_parameters()]
    sums = torch.stack([_bits(parameter).sum(dtype=torch.int64) for parameter in model.parameters()]).cpu()
    if distributed.all_max(_differs(sums)) == 0:
        return []
    every: list[list[int]] = distributed.gather(sums.tolist())
    majority = [Counter(column).most_common(1)[0][0] for column in zip(*every, strict=True)]
    lines = []
    for rank, own in enumerate(every):
        wrong = [name for name, a, b in zip(names, own, majority, strict=True) if a != b]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            lines.append(f"rank {rank}: {wrong[0]}{more}")
    return lines


def _differs(sums: torch.Tensor) -> int:
    """1 if these checksums are not rank 0's."""
    values: Any = distributed.from_main(sums.tolist())
    return int(values != sums.tolist())


def _bits(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().reshape(-1).view(torch.int32 if parameter.element_size() == 4 else torch.int16)
