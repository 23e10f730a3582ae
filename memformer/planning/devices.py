# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Devices and networks that `memformer plan` knows, from the makers' data sheets.

Peak FLOP/s are those of `memformer.model.flops.peak_flops`. NVLink is given there for both directions together; a ring
uses one, so it is halved. Between nodes: one adapter a GPU, as in NVIDIA's DGX systems of the generation (HDR 200 Gb/s,
NDR 400 Gb/s). A100: 80 GB, 600 GB/s; H100 SXM: 80 GB, 900 GB/s; H200: 141 GB, 900 GB/s; compared in November 2026 with
public copies of the data sheets (glennklockwood.com/garden/processors, archive-lib.hpctech.co.jp,
alpha-one-index.github.io/ai-infra-index).
"""

import dataclasses

from data_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU in its node and network.

    Attributes:
        name: As `torch.cuda.get_device_name()` has it, for `peak_flops`.
        memory: Bytes.
        node_bandwidth: Bytes/s in one direction to the GPUs of its node.
        network_bandwidth: Bytes/s in one direction to other nodes.
    """

    name: str
    memory: float
    node_bandwidth: float
    network_bandwidth: float


DEVICES = {
    "a100": Device("NVIDIA A100-SXM4-80GB", 80e9, 300e9, 25e9),
    "h100": Device("NVIDIA H100 80GB HBM3", 80e9, 450e9, 50e9),
    "h200": Device("NVIDIA H200", 141e9, 450e9, 50e9),
}


def device_of(name: str) -> Device:
    """The device by its short name.

    Raises:
        UserError: It is not known.
    """
    if name.lower() not in DEVICES:
        raise UserError(f"--device is {name!r}, which is not in the table: choose one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]
