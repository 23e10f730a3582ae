# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Fetching`: what the host must know of a step comes from the device in one copy.

The host waits for the device where it asks for a number. A step must ask once: whether the gradient is finite. The loss
and the rest of what is measured go with it, so that the host has the next rollout ready while the optimizer steps.
"""

import torch


class Fetching:
    """The numbers of one step after another; nothing is rounded on the way."""

    def __init__(self) -> None:
        self._beside: torch.Tensor | None = None
        self._found: list[float] = []

    def take_along(self, values: torch.Tensor) -> None:
        """Has these come with the next copy.

        Args:
            values: float64, [count].
        """
        self._beside, self._found = values, []

    def fetch(self, values: torch.Tensor) -> torch.Tensor:
        """Waits for the device; the values on the host.

        Args:
            values: float32 or float64, of any shape.
        """
        beside = self._beside
        if beside is None or beside.device != values.device:
            return values.cpu()
        both = torch.cat([values.reshape(-1).double(), beside]).cpu()
        self._beside, self._found = None, both[values.numel() :].tolist()
        return both[: values.numel()].to(values.dtype).reshape(values.shape)

    def taken_along(self) -> list[float]:
        """What `take_along` was given; where no copy has been made since, one is made."""
        if self._beside is not None:
            self._found, self._beside = self._beside.tolist(), None
        return self._found
