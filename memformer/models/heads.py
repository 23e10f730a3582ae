# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Heads`: which heads of a module are here, for a module whose heads' results are joined instead of projected.

Shapes: B lanes, K slots, D width, H heads, h of them here; all of them, but where a layer is spread over processes.
"""

import torch


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
