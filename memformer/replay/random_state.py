# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Random numbers that a replay can redraw.

Dropout masks of a segment must be the same in the first pass, in the replay and in full back-propagation, although
these draw different amounts between two segments (the first pass has no decoder). So each segment gets a seed of its
own, a function of the rollout's seed and the segment's number, rather than a saved generator state.

Where several segments are computed as one batch, each still draws from its own stream, so that the masks do not depend
on how many there are (`streams_of_parts`).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

_GOLDEN, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def mix_seed(seed: int, number: int) -> int:
    """A well-spread 63-bit seed for stream `number` of `seed` (one round of splitmix64)."""
    z = (seed + (number + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


@contextlib.contextmanager
def segment_seeds(seed: int | None, device: torch.device) -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds the CPU's generator and the device's for segment t; they are restored at the end.

    Args:
        seed: The rollout's seed; None draws one from torch's default generator (so the caller's stream moves on).
        device: The device whose generator is seeded beside the CPU's.
    """
    if seed is None:
        seed = int(torch.randint(2**62, (), dtype=torch.int64))
    base = seed
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):

        def seed_segment(segment: int) -> None:
            # torch.manual_seed would seed all devices of the host, and these alone are restored; without a GPU it
            # writes the stack down three times.
            own = mix_seed(base, segment)
            torch.default_generator.manual_seed(own)
            if devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(own)

        yield seed_segment


def stream_of(device: torch.device) -> torch.Tensor:
    """Where the random numbers of a device have come to."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


class _Streams:
    """Random streams of the equal parts of a batch."""

    def __init__(self, device: torch.device, streams: list[torch.Tensor]) -> None:
        self.device, self.streams = device, streams

    def draw(self, draw: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """`draw` of each part with its own stream, which moves on."""
        parts = []
        for number, part in enumerate(x.chunk(len(self.streams))):
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self.streams[number], self.device)
            else:
                torch.set_rng_state(self.streams[number])
            parts.append(draw(part))
            self.streams[number] = stream_of(self.device)
        return torch.cat(parts)


# Of the process and not of a thread: on a GPU, backward recomputes layers in a thread of its own.
_current: _Streams | None = None


@contextlib.contextmanager
def streams_of_parts(device: torch.device, streams: list[torch.Tensor]) -> Iterator[None]:
    """Inside, `drawn` takes the equal parts of a batch from streams of their own.

    Args:
        device: Whose generator draws.
        streams: Where each part begins (`stream_of`), in the order of the first dimension.
    """
    global _current
    _current = _Streams(device, list(streams))
    try:
        yield
    finally:
        _current = None


def drawn(draw: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What draws random numbers for a batch [B, ...], by the streams of its parts where there are such."""
    return draw(x) if _current is None else _current.draw(draw, x)


def redrawing(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function that is computed twice, in the forward and again in the backward, with the same random numbers.

    torch and DeepSpeed see to the generator's state; here it is that of the parts' streams.
    """
    if _current is None:
        return forward
    current, begun = _current, list(_current.streams)

    def run(*inputs: Any) -> torch.Tensor:
        current.streams[:] = begun
        return forward(*inputs)

    return run
