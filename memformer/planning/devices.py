# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Devices and networks that `memformer plan` knows, and the peaks that MFU divides by, from the makers' data sheets.

Each device names its sheet. The sheets give links for both directions together; a ring uses one, so they are halved:
NVLink, or PCIe (Gen4 x16 64 GB/s, Gen5 128 GB/s) where cards have no other way, or one to a single neighbour alone. The
network is no matter of the sheet: it is that of the system that is named, and None where there is no usual one.

The figures were compared in November 2026 with public readings of the sheets, not with the sheets themselves:
stas00/ml-engineering (compute/accelerator, network) for A100, H100, H200, B200, GB200, L40S, MI250X and MI300X;
MLCommons' descriptions of systems (inference_results v6.0, v6.1) for the memory and network of B200 and GB200;
Microsoft's page of the ND MI300X v5 for its network; OLCF's Frontier User Guide for MI250X; for B200 and GB200 also
glennklockwood.com/garden/processors; shops and repositories that quote the sheet for H100 NVL, L4, V100, A10G and RTX
4090.
"""

import dataclasses

from data_pipeline.errors import UserError

CALL_SECONDS = 8.4e-6
"""Latency of a collective or message before its first byte is under way. This and the next two are what NCCL itself
reckons with for a ring of its protocol for large messages (github.com/NVIDIA/nccl, src/graph/tuning.cc: baseLat and
hwLat, Ring, Simple); it takes less for messages of some kB, and RCCL reckons with up to twice as much."""
NODE_HOP_SECONDS = 3.4e-6
"""Latency of a step of the ring from a GPU to another of its node, over NVLink (5.7e-6 over PCIe)."""
NETWORK_HOP_SECONDS = 14e-6
"""Latency of a step of the ring from a node to the next."""


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU in its node and network: what one process trains on.

    Attributes:
        name: As `torch.cuda.get_device_name()` has it, for `peak_flops`.
        memory: Bytes.
        memory_bandwidth: Bytes/s of that memory.
        node_bandwidth: Bytes/s in one direction to the GPUs of its node, all together.
        network_bandwidth: Bytes/s in one direction to other nodes; None: there is no usual network.
        source: The data sheet, and the system whose network it is.
        peers: GPUs to each of which there is a link of its own, with that part of node_bandwidth; None: all of it may
            go to any of them.
    """

    name: str
    memory: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float | None
    source: str
    peers: int | None = None

    def within(self, members: int) -> float:
        """Bytes/s in one direction between so many GPUs of a node; 2: from one to another."""
        return self.node_bandwidth if self.peers is None else self.node_bandwidth * min(1, (members - 1) / self.peers)


_H100 = "NVIDIA H100, www.nvidia.com/en-us/data-center/h100"
DEVICES = {
    "v100": Device(
        "Tesla V100-SXM2-32GB", 32e9, 900e9, 150e9, None,
        "NVIDIA Tesla V100 data sheet (SXM2), images.nvidia.com/content/technologies/volta/pdf/",
    ),
    "a10g": Device(
        "NVIDIA A10G", 24e9, 600e9, 32e9, None,
        "d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf",
    ),
    "a100": Device(
        "NVIDIA A100-SXM4-80GB", 80e9, 2039e9, 300e9, 25e9,
        "NVIDIA A100 data sheet, www.nvidia.com/en-us/data-center/a100; DGX A100: HDR 200 Gb/s a GPU",
    ),
    "l4": Device("NVIDIA L4", 24e9, 300e9, 32e9, None, "NVIDIA L4, www.nvidia.com/en-us/data-center/l4"),
    "l40s": Device("NVIDIA L40S", 48e9, 864e9, 32e9, None, "NVIDIA L40S, www.nvidia.com/en-us/data-center/l40s"),
    "rtx-4090": Device(
        "NVIDIA GeForce RTX 4090", 24e9, 1008e9, 32e9, None,
        "NVIDIA Ada GPU architecture, images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    "h100": Device("NVIDIA H100 80GB HBM3", 80e9, 3350e9, 450e9, 50e9, f"{_H100} (SXM); DGX H100: NDR 400 Gb/s a GPU"),
    "h100-pcie": Device("NVIDIA H100 PCIe", 80e9, 2000e9, 64e9, None, f"{_H100} (PCIe; NVLink joins two alone)"),
    "h100-nvl": Device("NVIDIA H100 NVL", 94e9, 3900e9, 64e9, None, f"{_H100} (NVL; NVLink joins two alone)"),
    "h200": Device(
        "NVIDIA H200", 141e9, 4800e9, 450e9, 50e9,
        "NVIDIA H200, www.nvidia.com/en-us/data-center/h200; DGX H200: NDR 400 Gb/s a GPU",
    ),
    "b200": Device(
        "NVIDIA B200", 180e9, 8000e9, 900e9, 50e9,
        "NVIDIA DGX B200 data sheet, resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet: NDR 400 Gb/s a GPU",
    ),
    "gb200": Device(  # one of the two GPUs of a superchip; all 72 of a rack are joined by NVLink: --gpus-per-node 72
        "NVIDIA GB200", 186e9, 8000e9, 900e9, 50e9,
        "NVIDIA GB200 NVL72, www.nvidia.com/en-us/data-center/gb200-nvl72: NDR 400 Gb/s a GPU",
    ),
    "mi250x": Device(  # one of its two dies, which is a GPU of its own to torch; sheet: 128 GB, 3.2 TB/s, 383 TFLOP/s
        "AMD Instinct MI250X", 64e9, 1600e9, 50e9, 12.5e9,
        "AMD Instinct MI250X, www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html, halved; links of 50 "
        "GB/s and 4 adapters of 200 Gb/s for 8 dies: docs.olcf.ornl.gov/systems/frontier_user_guide.html",
    ),
    "mi300x": Device(
        "AMD Instinct MI300X", 192e9, 5300e9, 448e9, 50e9,
        "AMD Instinct MI300X, www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html: 7 links of 64 GB/s; "
        "Azure ND MI300X v5: NDR 400 Gb/s a GPU",
        peers=7,
    ),
}  # fmt: skip


def device_of(name: str, nodes: int = 1, network_gigabits: float | None = None) -> Device:
    """The device by its short name.

    Args:
        name: As in `DEVICES`.
        nodes: Machines of the run.
        network_gigabits: Gb/s in one direction of a GPU's adapter, in place of the usual network; None: that.

    Raises:
        UserError: It is not known, or its network is not, and there are several nodes.
    """
    if name.lower() not in DEVICES:
        raise UserError(f"--device is {name!r}, which is not in the table: choose one of {', '.join(DEVICES)}")
    device = DEVICES[name.lower()]
    if network_gigabits is not None:
        return dataclasses.replace(device, network_bandwidth=network_gigabits * 1e9 / 8)
    if device.network_bandwidth is None and nodes > 1:
        raise UserError(f"--nodes is {nodes}, but {name} has no usual network: give --network-gigabits, Gb/s of a GPU")
    return device


# Dense peaks in TFLOP/s from the makers' data sheets (which often print twice this, "with sparsity"), by a part of
# torch.cuda.get_device_name(); the first match counts, so that special forms stand before general ones.
# Compared in November 2026 with public copies and readings: those of `DEVICES` as said above; A40 and L40
# (hmc-tech.com); A30, A10, T4 and V100-PCIE were not. RTX 4090: with sums in float32, as torch asks for them. AMD: of
# the matrix cores in all three columns; MI250X: of one of its two dies, which torch takes for a device.
# (name, bf16 tensor cores, fp16 tensor cores, fp32 outside the tensor cores: torch leaves TF32 off by default)
_PEAK_TFLOPS: tuple[tuple[str, float | None, float | None, float | None], ...] = (
    ("GB200", 2500.0, 2500.0, 80.0),
    ("B200", 2250.0, 2250.0, 80.0),
    ("H200 NVL", 835.5, 835.5, 60.0),
    ("H200", 989.4, 989.4, 66.9),
    ("H100 NVL", 835.5, 835.5, 60.0),
    ("H100 PCIe", 756.0, 756.0, 51.2),
    ("H100", 989.4, 989.4, 66.9),
    ("A100", 312.0, 312.0, 19.5),
    ("A40", 149.7, 149.7, 37.4),
    ("A30", 165.0, 165.0, 10.3),
    ("A10G", 70.0, 70.0, 35.0),
    ("A10", 125.0, 125.0, 31.2),
    ("L40S", 362.05, 362.05, 91.6),
    ("L40", 181.0, 181.0, 90.5),
    ("L4", 121.0, 121.0, 30.3),
    ("RTX 4090 Laptop", None, None, None),
    ("RTX 4090 D", None, None, None),
    ("RTX 4090", 165.2, 165.2, 82.6),
    ("V100-SXM2", None, 125.0, 15.7),
    ("V100-PCIE", None, 112.0, 14.0),
    ("T4", None, 65.0, 8.1),
    ("MI300X", 1307.4, 1307.4, 163.4),
    ("MI250X", 191.5, 191.5, 47.85),
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
