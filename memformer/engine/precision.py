# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Precisions: what is computed in 16 bits, and the loss scale that float16 needs.

Parameters and the optimizer are float32 always, and the sums of gradients unless the run asks for bfloat16
(`training.gradient_accumulation_dtype`). Under bf16 and fp16, matrix products run in 16
bits (torch.autocast), and ZeRO 1-3 sends the gradients of linear layers in 16 bits.

float16 has no gradients below 6e-8 and none above 65,504, so the objective is multiplied by a scale that is as large as
it can be: halved when a gradient overflows, which leaves the step out, and doubled after a while without (Micikevicius
et al., "Mixed Precision Training", 2018). The scale is ours rather than DeepSpeed's or torch's GradScaler: DeepSpeed
0.19.8 gives each of its own to every process and parameter group under autocast, where they need not agree, and
neither would be in our checkpoints.
"""

from typing import Any

import torch

from memformer.config.schema import LossScaleConfig

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of matrix products by precision; fp32 has no entry."""


def resolve_precision(setting: str, device: torch.device) -> str:
    """fp32, bf16 or fp16 for the setting `precision` (auto or one of them)."""
    if setting != "auto":
        return setting
    return "bf16" if device.type == "cuda" else "fp32"


class LossScale:
    """The scale of the objective, the same on all processes, since all see the same gradient norm.

    Args:
        settings: Where it starts, how it grows.
    """

    def __init__(self, settings: LossScaleConfig) -> None:
        self._settings = settings
        self.value = settings.initial
        self._steps_since = 0

    def update(self, applied: bool) -> None:
        """After a step: halves the scale if the gradient was not finite, doubles it after `growth_interval` others."""
        if not applied:
            self.value, self._steps_since = max(self._settings.minimum, self.value / 2), 0
            return
        self._steps_since += 1
        if self._steps_since >= self._settings.growth_interval:
            self.value, self._steps_since = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """JSON-ready, for a checkpoint."""
        return {"value": self.value, "steps_since": self._steps_since}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; what another precision saved (nothing) leaves it as it is."""
        if state:
            self.value, self._steps_since = float(state["value"]), int(state["steps_since"])
