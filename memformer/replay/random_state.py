# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Random numbers that a replay can redraw.

Dropout masks of a segment must be the same in the first pass, in the replay and in full back-propagation, although
these draw different amounts between two segments (the first pass has no decoder). So each segment gets a seed of its
own, a function of the rollout's seed and the segment's number, rather than a saved generator state.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch

_GOLDEN, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def mix_seed(seed: int, number: int) -> int:
    """A well-spread 63-bit seed for stream `number` of `seed` (one round of splitmix64)."""
    z = (seed + (number + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


@contextlib.contextmanager
def segment_seeds(
    seed: int | None, device: torch.device, reseed: Callable[[int], object] = torch.manual_seed
) -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds every generator for segment t; the generators are restored at the end.

    Args:
        seed: The rollout's seed; None draws one from torch's default generator (so the caller's stream moves on).
        device: The device whose generator is restored beside the CPU's.
        reseed: What seeds the generators; replaced where a model-parallel tracker must be seeded as well.
    """
    if seed is None:
        seed = int(torch.randint(2**62, (), dtype=torch.int64))
    base = seed
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        yield lambda segment: (reseed(mix_seed(base, segment)), None)[1]
