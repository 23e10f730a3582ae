# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Devices and networks that `memformer plan` knows, and the peaks that MFU divides by, from the makers' data sheets.

NVLink is given there for both directions together; a ring uses one, so it is halved. Between nodes: one adapter a GPU,
as in NVIDIA's DGX systems of the generation (HDR 200 Gb/s, NDR 400 Gb/s). A100: 80 GB, 600 GB/s; H100 SXM: 80 GB,
900 GB/s; H200: 141 GB, 900 GB/s; compared in November 2026 with public copies of the data sheets
(glennklockwood.com/garden/processors, archive-lib.hpctech.co.jp, alpha-one-index.github.io/ai-infra-index).
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


# Dense peaks in TFLOP/s from the makers' data sheets (which often print twice this, "with sparsity"), by a part of
# torch.cuda.get_device_name(); the first match counts, so that special forms stand before general ones.
# Compared in November 2026 with public copies: A100 and H100 (glennklockwood.com/garden/processors), H100 PCIe
# (archive-lib.hpctech.co.jp), A40, L40 and B200 (hmc-tech.com). The other rows were not.
# (name, bf16 tensor cores, fp16 tensor cores, fp32 outside the tensor cores: torch leaves TF32 off by default)
_PEAK_TFLOPS: tuple[tuple[str, float | None, float | None, float | None], ...] = (
    ("B200", 2250.0, 2250.0, None),
    ("H200 NVL", 835.5, 835.5, 60.0),
    ("H200", 989.4, 989.4, 66.9),
    ("H100 NVL", 835.5, 835.5, 60.0),
    ("H100 PCIe", 756.0, 756.0, 51.2),
    ("H100", 989.4, 989.4, 66.9),
    ("A100", 312.0, 312.0, 19.5),
    ("A40", 149.7, 149.7, 37.4),
    ("A30", 165.0, 165.0, 10.3),
    ("A10G", None, None, None),
    ("A10", 125.0, 125.0, 31.2),
    ("L40S", 362.0, 362.0, 91.6),
    ("L40", 181.0, 181.0, 90.5),
    ("L4", 121.0, 121.0, 30.3),
    ("V100-SXM2", None, 125.0, 15.7),
    ("V100-PCIE", None, 112.0, 14.0),
    ("T4", None, 65.0, 8.1),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a GPU in FLOP/s, or None where the figure is not known: then there is no MFU to report.

    Args:
        device_name: What `torch.cuda.get_device_name()` says, or any other device's name.
        precision: Of the matrix products: fp32, bf16 or fp16.
    """
    column = {"bf16": 1, "fp16": 2, "fp32": 3}.get(precision)
    words = f" {device_name.upper().replace('-', ' ')} "
    for row in _PEAK_TFLOPS:
        if column is not None and f" {row[0].upper().replace('-', ' ')} " in words:
            tflops = row[column]
            return None if tflops is None else float(tflops) * 1e12
    return None
