# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which part of a module's work is done here: all of it, but where a layer is spread over processes.

`Heads` is for a module whose heads' results are joined instead of projected, `Inputs` for a linear map that is more
than `nn.Linear`.

Shapes: B lanes, K slots, D width, H heads, h of them here.
"""

import torch
import torch.nn.functional as F


class Heads:
    """All heads are here. What spreads a layer over processes puts another in its place (`Role.JOINED_HEADS`)."""

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """What is equal everywhere, on its way into the work of the heads; the shape stays."""
        return x

    def own(self, x_BKD: torch.Tensor) -> torch.Tensor:
        """The columns that the heads here work on, [B, K, D h/H]."""
        return x_BKD

    def join(self, x_BKD: torch.Tensor) -> torch.Tensor:
        """What all heads give, [B, K, D], from what those here give, [B, K, D h/H]."""
        return x_BKD

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Something of each head, [B, H, ...], from that of the heads here, [B, h, ...]; without gradient."""
        return x


class Inputs:
    """All inputs of a map are here. What spreads a layer over processes puts another in its place (`Role.ROWS`)."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The map of all inputs [..., outputs], from those here and the weight's columns for them."""
        return F.linear(x, weight, bias)

    def dropout(self, x: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
        """Dropout of the inputs here; the shape stays."""
        return F.dropout(x, probability, training)
